"""The only training loop."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from itertools import islice
from typing import Any, NoReturn, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from mmrl.clip import ClassList
from mmrl.engine.config import FitConfig
from mmrl.engine.parallel import Peers
from mmrl.engine.schedule import learning_rates
from mmrl.errors import MmrlError
from mmrl.methods import Loss, Method

BETAS = (0.9, 0.999)
MOST_SKIPPED = 50  # steps in a row that fp16 may skip while its scale adapts
GROWTH = 1e3  # a trained tensor that grows as much in one step has blown up
Row = dict[str, float]  # one step of the history
State = dict[str, Any]


class Batches(Protocol):
    """Training data: `epoch(number, start)` gives the batches of epoch `number` from position `start`, always the same ones."""

    def __len__(self) -> int: ...

    def epoch(self, number: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]: ...


@runtime_checkable
class Shareable(Batches, Protocol):
    """Batches that several processes can train on together."""

    def shard(self, rank: int, of: int) -> Batches:
        """As many batches, each with the part of its images that process `rank` (from 0) of `of` takes."""
        ...


class NonFiniteError(MmrlError):
    """A number that is not finite came up; the parameters are the latest that a finite loss was computed with.

    `scores` tells whether those give finite logits; if not, not even the initial ones do, and there is nothing to keep.
    """

    scores = True


class _Step(nn.Module):
    """A forward pass that accelerate can wrap; what it trains is the method's parameters."""

    def __init__(self, method: Method, classes: ClassList) -> None:
        super().__init__()
        self.method = method
        self.classes = classes

    def forward(self, images: Tensor, labels: Tensor) -> Loss:
        return self.method.loss(images, labels, self.classes)


class Trainer:
    """Trains the parameters of `method` in place: AdamW, a learning rate for every epoch, gradients averaged over `accumulate` batches.

    Several processes train as one: each computes on its part of every batch, and gradients and history are means over all.

    Args:
        batches: with the images of this process.
        accelerator: from `mmrl.engine.precision.accelerator`.
        peers: the processes; by default this one alone.
        save: called with the state at checkpoints.
        watch: called after every step with its row of the history.
    """

    def __init__(
        self,
        method: Method,
        batches: Batches,
        classes: ClassList,
        config: FitConfig,
        accelerator: Any,
        *,
        peers: Peers | None = None,
        save: Callable[[State], None] | None = None,
        watch: Callable[[Row], None] | None = None,
    ) -> None:
        self.method, self.batches, self.config, self.accelerator = method, batches, config, accelerator
        self.device = method.clip.device
        self.peers = peers or Peers()
        self._save, self._watch = save, watch
        optimizer = torch.optim.AdamW(method.parameters(), lr=config.lr, betas=BETAS, weight_decay=config.weight_decay)
        self._alone = _Step(method, classes)  # without the exchange between processes that accelerate puts around it
        self.forward, self.optimizer = accelerator.prepare(self._alone, optimizer)
        self.rates = learning_rates(config.epochs, config.lr, warmup_epochs=config.warmup_epochs, warmup_lr=config.warmup_lr)
        self.epoch, self.position, self.step = 0, 0, 0  # position: batches of this epoch behind us
        self.history: list[Row] = []
        self._before, self._start = 0.0, time.monotonic()
        self._skipped = 0
        self._good = self._copied()  # parameters whose loss was finite: those that an update made are not known to be

    @property
    def seconds(self) -> float:
        """Time spent training, also by processes before this one."""
        return self._before + time.monotonic() - self._start

    def state(self) -> State:
        """Everything to go on from, as plain data and tensors."""
        scaler = self.accelerator.scaler
        return {
            "finished": False,
            "epoch": self.epoch,
            "position": self.position,
            "step": self.step,
            "parameters": {name: value.detach().cpu() for name, value in self.method.state_dict().items()},
            "optimizer": self.optimizer.state_dict(),
            "scaler": None if scaler is None else scaler.state_dict(),
            "rng": torch.get_rng_state(),
            "rng_cuda": torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None,
            "history": self.history,
            "seconds": self.seconds,
        }

    def restore(self, state: State) -> None:
        """Go on where `state` was taken."""
        self.method.load_state_dict(state["parameters"], strict=True)
        self.optimizer.load_state_dict(state["optimizer"])
        if self.accelerator.scaler is not None and state["scaler"]:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        torch.set_rng_state(state["rng"])
        if self.device.type == "cuda" and state["rng_cuda"] is not None:
            torch.cuda.set_rng_state(state["rng_cuda"], self.device)
        self._good = self._copied()
        self.epoch, self.position, self.step = state["epoch"], state["position"], state["step"]
        self.history = list(state["history"])
        self._before = state["seconds"]

    def _copied(self) -> dict[str, Tensor]:
        return {name: value.detach().clone() for name, value in self.method.state_dict().items()}

    def run(self) -> None:
        """Train to the end.

        Raises:
            NonFiniteError: something is not finite; it is named, and the parameters are set back to the latest whose loss was finite.
        """
        was_training = self.method.training
        self.method.train()
        try:
            while self.epoch < self.config.epochs:
                self._run_epoch()
        finally:
            self.method.train(was_training)

    def _run_epoch(self) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = self.rates[self.epoch]
        total, every = len(self.batches), self.config.checkpoint_every
        source = self.batches.epoch(self.epoch, self.position)
        while group := self.peers.together(lambda: list(islice(source, self.config.accumulate))):
            row = self._update(group)
            self.step += 1
            self.position += len(group)
            self.history.append({"step": self.step, "epoch": self.epoch + 1, "lr": self.rates[self.epoch], **row})
            if self._watch is not None:
                self._watch(self.history[-1])
            if every and self.step % every == 0 and self.position < total:
                self._checkpoint()
        self.epoch, self.position = self.epoch + 1, 0
        self._checkpoint()

    def _checkpoint(self) -> None:
        if self._save is not None:
            self._save(self.state())

    def _update(self, group: list[tuple[Tensor, Tensor]]) -> Row:
        """One step on the mean loss of a few batches; the row says loss, accuracy and terms, averaged over them and all processes."""
        self.optimizer.zero_grad()
        names, rows = ["loss", "accuracy"], []
        for number, (images, labels) in enumerate(group, 1):
            images, labels = images.to(self.device), labels.to(self.device)
            with nullcontext() if number == len(group) else self.accelerator.no_sync(self.forward):  # gradients travel once a step
                loss = self.forward(images, labels)
                self.accelerator.backward(loss.total / len(group))
            accuracy = (loss.logits.argmax(-1) == labels).float().mean()
            rows.append(torch.stack([loss.total.detach().float(), accuracy, *(t.detach().float() for t in loss.terms.values())]))
            names[2:] = loss.terms
        norm = nn.utils.get_total_norm(self._gradients()).reshape(1)
        measured = torch.cat([torch.stack(rows).mean(0), norm])
        if self.peers.count > 1:
            measured = self.accelerator.reduce(measured, "mean")
        *means, size = measured.tolist()  # one wait for the device a step
        scaled = self.accelerator.scaler is not None  # then large gradients are met by a smaller scale, not by stopping
        if not all(map(_finite, means)):
            self._stop(group)
        self._good = self._copied()
        if not (scaled or _finite(size)):
            self._stop(group)
        self.optimizer.step()
        self._skipped = self._skipped + 1 if self.accelerator.optimizer_step_was_skipped else 0
        if self._skipped > MOST_SKIPPED:
            self._stop(group)
        return dict(zip(names, means, strict=True))

    def _gradients(self) -> list[Tensor]:
        found = {name: p.grad for name, p in self.method.named_parameters()}
        unused = [name for name, gradient in found.items() if gradient is None]
        if unused and self.peers.count > 1:  # torch would wait for its gradient for ever, or fail in the next step
            raise MmrlError(
                f"the loss of method '{self.method.name}' does not depend on its parameter '{unused[0]}', which several processes cannot "
                "train; start one."
            )
        return [gradient for gradient in found.values() if gradient is not None]

    def _stop(self, group: list[tuple[Tensor, Tensor]]) -> NoReturn:
        found = self.peers.gather(self._first_bad(group))
        _, name = min(found)  # what goes wrong in one process makes the gradients of all bad
        grown = self._grown()
        self.optimizer.zero_grad()
        self.method.load_state_dict(self._good, strict=True)
        error = NonFiniteError(
            f"training stopped in epoch {self.epoch + 1}, step {self.step + 1}: {name} is not finite{grown}. "
            "The parameters are the latest that gave a finite loss. A lower lr often helps; with fp16 also bf16 or fp32."
        )
        error.scores = all(self.peers.gather(self._scores(group)))
        raise error

    def _grown(self) -> str:
        """Which trained tensor has grown most since the parameters were good, where one has grown beyond all measure."""
        sizes = {name: float(value.abs().max()) for name, value in self.method.state_dict().items() if value.numel()}
        ratios = {name: size / (float(self._good[name].abs().max()) + 1e-6) for name, size in sizes.items() if _finite(size)}
        worst = max(ratios, key=lambda name: ratios[name], default=None)
        return f"; the trained tensor '{worst}' had grown to {sizes[worst]:.3g}" if worst and ratios[worst] > GROWTH else ""

    def _scores(self, group: list[tuple[Tensor, Tensor]]) -> bool:
        """Whether the method, as it is now, gives finite logits for the batch and finite class features."""
        with torch.no_grad():
            text = self.method.text_features(self._alone.classes)
            finite = (images.nan_to_num(0, 0, 0).to(self.device) for images, _ in group)  # it may be an image that is not
            return all(bool(self.method.logits(images, text, True).isfinite().all()) for images in finite)

    def _first_bad(self, group: list[tuple[Tensor, Tensor]]) -> tuple[int, str]:
        """Place and name of the first tensor that is not finite, in the order of computation."""
        place = 0
        for place, (name, tensor) in enumerate(self._computed(group)):
            if not bool(tensor.isfinite().all()):
                return place, name
        return place + 1, "the loss"  # it was, and is no more: the method is not deterministic

    def _computed(self, group: list[tuple[Tensor, Tensor]]) -> Iterator[tuple[str, Tensor]]:
        """Images, parameters, loss terms, gradients."""
        for images, _ in group:
            yield "an input image", images
        for name, parameter in self.method.named_parameters():
            yield f"parameter '{name}'", parameter
        for images, labels in group:
            with torch.no_grad():
                loss = self._alone(images.to(self.device), labels.to(self.device))
            yield from ((f"loss term '{name}'", term) for name, term in loss.terms.items())
            yield "the total loss", loss.total
        yield from ((f"the gradient of '{name}'", p.grad) for name, p in self.method.named_parameters() if p.grad is not None)


def _finite(value: float) -> bool:
    return value - value == 0
