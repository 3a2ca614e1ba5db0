"""The only training loop."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from mmrl.clip import ClassList
from mmrl.engine.batches import Batch, Batches, placed
from mmrl.engine.config import FitConfig
from mmrl.engine.parallel import Peers
from mmrl.engine.precision import autocast
from mmrl.engine.randomness import random_state, set_random_state
from mmrl.engine.schedule import learning_rates
from mmrl.engine.turns import Turns, finish
from mmrl.errors import MmrlError
from mmrl.methods import Differentiate, Gradients, Method

BETAS = (0.9, 0.999)
MOST_SKIPPED = 50  # steps in a row that fp16 may skip while its scale adapts
GROWTH = 1e3  # a trained tensor that grows as much in one step has blown up
Row = dict[str, float]  # one step of the history
State = dict[str, Any]


class NonFiniteError(MmrlError):
    """A number that is not finite came up; the parameters are the latest that a finite loss was computed with.

    `scores` tells whether those give finite logits; if not, not even the initial ones do, and there is nothing to keep.
    """

    scores = True


class Trainer:
    """Trains the parameters of `method` in place, with gradients averaged over `accumulate` batches.

    Several processes train as one: each computes on its part of every batch, and gradients and history are means over all.

    Args:
        batches: with the images of this process.
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
        *,
        peers: Peers | None = None,
        save: Callable[[State], None] | None = None,
        watch: Callable[[Row], None] | None = None,
    ) -> None:
        self.method, self.batches, self.classes, self.config = method, batches, classes, config
        self.device = method.clip.device
        self.peers = peers or Peers()
        self._save, self._watch = save, watch
        self._parameters = list(method.parameters())
        self.optimizer = method.optimizer(self._parameters, config) or make_optimizer(self._parameters, config)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=config.precision == "fp16")
        self.steps, self.epochs = length_of(config, len(batches))
        self.rates = rates_of(config, len(batches))
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
        return {
            "finished": False,
            "epoch": self.epoch,
            "position": self.position,
            "step": self.step,
            "parameters": {name: value.detach().cpu() for name, value in self._tensors().items()},
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            **random_state(self.device),
            "history": self.history,
            "seconds": self.seconds,
        }

    def restore(self, state: State) -> None:
        """Go on where `state` was taken."""
        self._put(state["parameters"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        set_random_state(state, self.device)
        self._good = self._copied()
        self.epoch, self.position, self.step = state["epoch"], state["position"], state["step"]
        self.history = list(state["history"])
        self._before = state["seconds"]

    def _tensors(self) -> dict[str, Tensor]:
        """Parameters and buffers, also those that no adapter keeps."""
        return {**dict(self.method.named_parameters()), **dict(self.method.named_buffers())}

    def _put(self, tensors: dict[str, Tensor]) -> None:
        with torch.no_grad():
            for name, value in self._tensors().items():
                value.copy_(tensors[name])

    def _copied(self) -> dict[str, Tensor]:
        return {name: value.detach().clone() for name, value in self._tensors().items()}

    def run(self) -> None:
        """Train to the end. Raises as `turns`."""
        finish(self.turns())

    def turns(self) -> Turns[None]:
        """Train to the end, a step a turn.

        Raises:
            NonFiniteError: something is not finite; it is named, and the parameters are set back to the latest whose loss was finite.
        """
        was_training = self.method.training
        self.method.train()
        try:
            while self.step < self.steps:
                batches = self.batches.epoch(self.epoch, self.position)
                while self.step < self.steps:
                    yield from self._wait()
                    if not self._take(batches):
                        break
                self.epoch, self.position = self.epoch + 1, 0
                self.method.epoch_ended(self.epoch, self.epochs)
                self._checkpoint()
        finally:
            self.method.train(was_training)

    def _wait(self) -> Turns[None]:
        """While others take their turns, which is not this training's time."""
        self._before = self.seconds
        yield self.epoch, self.position
        self._start = time.monotonic()

    def _take(self, batches: Iterator[Batch]) -> bool:
        """A step on the next of `batches`, if there are any; an image that cannot be read in one process is an error in all."""
        group = self.peers.together(lambda: list(islice(batches, self.config.accumulate)))
        if group:
            self._step(group)
            self._require_finite_end(group)
        return bool(group)

    def _require_finite_end(self, group: list[Batch]) -> None:
        """The parameters that the last step leaves: no loss of a step after it tells whether they are finite."""
        if self.step == self.steps and not self._whole():
            self.step -= 1
            self._stop(group)

    def _whole(self) -> bool:
        """Whether all parameters are finite."""
        return all(bool(p.isfinite().all()) for p in self._parameters)

    def _step(self, group: list[Batch]) -> None:
        """One step on the mean loss of a few batches; its row has loss, accuracy and terms, averaged over them and all processes."""
        self.optimizer.zero_grad()
        names, rows, kept = ["loss", "accuracy"], [], []
        for images, labels in group:
            seen, labels = placed(images, self.device), labels.to(self.device)
            with autocast(self.config.precision, self.device):
                loss, gradients = self.method.gradients(seen, labels, self.classes, self._differentiate(1 / len(group)))
            for parameter, gradient in zip(self._parameters, gradients, strict=True):
                if gradient is not None:
                    parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient
            accuracy = (loss.logits.argmax(-1) == labels).float().mean()
            rows.append(torch.stack([loss.total.detach().float(), accuracy, *(t.detach().float() for t in loss.terms.values())]))
            names[2:] = loss.terms
            kept.append((loss.kept, labels))
        means = self._update(group, torch.stack(rows).mean(0))
        with autocast(self.config.precision, self.device):
            self.method.stepped(kept, self.classes, _More(self))
        self.history.append({"step": self.step + 1, "epoch": self.epoch + 1, "lr": self._rate(), **dict(zip(names, means, strict=True))})
        self.step += 1
        self.position += len(group)
        if self._watch is not None:
            self._watch(self.history[-1])
        every = self.config.checkpoint_every
        if every and self.step % every == 0 and self.position < len(self.batches) and self.step < self.steps:
            self._checkpoint()

    def _differentiate(self, share: float) -> Differentiate:
        """Gradients of a loss that counts as `share` of the step's."""

        def differentiate(total: Tensor, *, retain_graph: bool = False) -> Gradients:
            with torch.autocast(self.device.type, enabled=False):
                scaled = self.scaler.scale(total * share if share < 1 else total)
                found: Gradients = list(torch.autograd.grad(scaled, self._parameters, retain_graph=retain_graph, allow_unused=True))
            self.peers.mean([gradient for gradient in found if gradient is not None])
            return found

        return differentiate

    def _rate(self) -> float:
        """Learning rate of the present step."""
        return self.rates[self.epoch if self.config.schedule_step == "epoch" else self.step]

    def _update(self, group: list[Batch], row: Tensor) -> list[float]:
        """Move the parameters, unless a number is not finite. Returns the values of the row."""
        norm = nn.utils.get_total_norm([p.grad for p in self._parameters if p.grad is not None]).reshape(1)
        measured = torch.cat([row, norm.float()])
        self.peers.mean([measured])
        *means, size = measured.tolist()  # one wait for the device a step
        if not all(map(_finite, means)) or not (_finite(size) or self._whole()):  # fused attention may hide a query that is not finite
            self._stop(group)
        self._good = self._copied()
        scaled = self.scaler.is_enabled()  # then large gradients are met by a smaller scale, not by stopping
        if not (scaled or _finite(size)):
            self._stop(group)
        for parameters in self.optimizer.param_groups:
            parameters["lr"] = self._rate() * parameters.get("lr_scale", 1.0)
        before = self.scaler.get_scale()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self._skipped = self._skipped + 1 if self.scaler.get_scale() < before else 0
        if self._skipped > MOST_SKIPPED:
            self._stop(group)
        return means

    def _checkpoint(self) -> None:
        if self._save is not None:
            self._save(self.state())

    def _stop(self, group: list[Batch]) -> NoReturn:
        found = self.peers.gather(self._first_bad(group))
        _, name = min(found)  # what goes wrong in one process makes the gradients of all bad
        grown = self._grown()
        self.optimizer.zero_grad()
        self._put(self._good)
        error = NonFiniteError(
            f"training stopped in epoch {self.epoch + 1}, step {self.step + 1}: {name} is not finite{grown}. "
            "The parameters are the latest that gave a finite loss. A lower lr often helps; with fp16 also bf16 or fp32."
        )
        error.scores = all(self.peers.gather(self._scores(group)))
        raise error

    def _grown(self) -> str:
        """Which trained tensor has grown most since the parameters were good, where one has grown beyond all measure."""
        sizes = {name: float(value.detach().abs().max()) for name, value in self._tensors().items() if value.numel()}
        ratios = {name: size / (float(self._good[name].abs().max()) + 1e-6) for name, size in sizes.items() if _finite(size)}
        worst = max(ratios, key=lambda name: ratios[name], default=None)
        return f"; the trained tensor '{worst}' had grown to {sizes[worst]:.3g}" if worst and ratios[worst] > GROWTH else ""

    def _scores(self, group: list[Batch]) -> bool:
        """Whether the method, as it is now, gives finite logits for the batch and finite class features."""
        with torch.no_grad():
            head = self.method.head(self.classes)
            finite = (placed(images, self.device).pixels.nan_to_num(0, 0, 0) for images, _ in group)  # it may be an image that is not
            return all(bool(self.method.logits(images, head, True).isfinite().all()) for images in finite)

    def _first_bad(self, group: list[Batch]) -> tuple[int, str]:
        """Place and name of the first tensor that is not finite, in the order of computation."""
        place = 0
        for place, (name, tensor) in enumerate(self._computed(group)):
            if not bool(tensor.isfinite().all()):
                return place, name
        return place + 1, "the loss"  # it was, and is no more: the method is not deterministic

    def _computed(self, group: list[Batch]) -> Iterator[tuple[str, Tensor]]:
        """Images, parameters, loss terms, gradients."""
        for images, _ in group:
            yield "an input image", placed(images, self.device).pixels
        for name, parameter in self.method.named_parameters():
            yield f"parameter '{name}'", parameter
        for images, labels in group:
            with torch.no_grad(), autocast(self.config.precision, self.device):
                loss = self.method.loss(placed(images, self.device), labels.to(self.device), self.classes)
            yield from ((f"loss term '{name}'", term) for name, term in loss.terms.items())
            yield "the total loss", loss.total
        yield from ((f"the gradient of '{name}'", p.grad) for name, p in self.method.named_parameters() if p.grad is not None)


class _More:
    """The steps that a method takes after the trainer's own, at its rate; see `MoreSteps`."""

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer
        self.rate = trainer._rate()

    def gradients(self, total: Tensor) -> Gradients:
        found, scaler = self._trainer._differentiate(1)(total), self._trainer.scaler
        if not scaler.is_enabled():
            return found
        exact: Gradients = [None if gradient is None else gradient / scaler.get_scale() for gradient in found]
        finite = all(bool(gradient.isfinite().all()) for gradient in exact if gradient is not None)
        return exact if finite else [None] * len(exact)  # the scale is the trainer's to adapt

    def update(self, gradients: Gradients) -> None:
        for parameter, gradient in zip(self._trainer._parameters, gradients, strict=True):
            parameter.grad = gradient
        self._trainer.optimizer.step()


def _finite(value: float) -> bool:
    return value - value == 0


def make_optimizer(parameters: list[nn.Parameter], config: FitConfig) -> torch.optim.Optimizer:
    """The optimiser that `config` asks for."""
    if config.optimizer == "sgd":
        return torch.optim.SGD(parameters, lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay)
    kind = torch.optim.AdamW if config.optimizer == "adamw" else torch.optim.Adam
    return kind(parameters, lr=config.lr, betas=BETAS, eps=config.eps, weight_decay=config.weight_decay)


def length_of(config: FitConfig, batches: int) -> tuple[int, int]:
    """Steps and epochs of a training with `batches` batches an epoch; the last epoch may be cut short by `iterations`."""
    each = -(-batches // config.accumulate)
    steps = config.iterations or config.epochs * each
    return steps, -(-steps // each)


def rates_of(config: FitConfig, batches: int) -> list[float]:
    """Learning rate of every epoch, or of every step."""
    steps, epochs = length_of(config, batches)
    by_step = config.schedule_step == "step"
    return learning_rates(
        steps if by_step else epochs,
        config.lr,
        warmup=config.warmup_epochs * (-(-batches // config.accumulate) if by_step else 1),
        warmup_lr=config.warmup_lr,
        final_lr=config.final_lr,
        cosine=config.schedule == "cosine",
    )
