"""One case of the methods that the paper compares with: the optimiser that it names, and what is compared on the way."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from mmrl.clip import ClassList, Clip
from mmrl.methods import Gradients, Loss, Method, Task, TwoTower
from tools.golden.judge import Errors, GoldenError, Tensors, note, ours, rounding_decides, value

NUMBER = r"([0-9.]+(?:e-?[0-9]+)?)"
KINDS: dict[str, type[torch.optim.Optimizer]] = {"SGD": torch.optim.SGD, "Adam": torch.optim.Adam, "AdamW": torch.optim.AdamW}


@dataclass(frozen=True)
class Stepping:
    """How a case steps.

    Attributes:
        kind: class of the optimiser.
        settings: its arguments, lr among them.
        cosine: number of steps of a cosine to 0 that is stepped after every batch; None: constant rate.
    """

    kind: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    cosine: int | None = None

    @property
    def lr(self) -> float:
        return float(self.settings["lr"])

    @property
    def eps(self) -> float | None:
        """Adam's epsilon; None where the first update is linear in the gradient."""
        return None if self.kind == "SGD" else float(self.settings.get("eps", 1e-8))

    def start(self, parameters: Iterable[Tensor]) -> tuple[torch.optim.Optimizer, Callable[[], object]]:
        """The optimiser, and what is called after each of its steps."""
        optimizer = KINDS[self.kind](parameters, **self.settings)
        if self.cosine is None:
            return optimizer, lambda: None
        return optimizer, torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.cosine).step


def stepping(case: Mapping[str, Any]) -> Stepping:
    """What the case's `optimizer` says, a dict, or text in its `hyper` such as "SGD momentum 0.9 weight_decay 5e-4" beside an lr."""
    hyper = case.get("hyper", {})
    said = case.get("optimizer", hyper.get("optimizer"))
    if isinstance(said, Mapping):
        settings = {key: tuple(entry) if isinstance(entry, list) else entry for key, entry in said.items() if key != "class"}
        kind = value(said, "class")
    elif isinstance(said, str):
        kind, settings = said.split()[0], {"lr": value(hyper, "lr")}
        for key in ("momentum", "dampening", "weight_decay", "eps"):
            found = re.search(rf"\b{key}\s*=?\s*{NUMBER}", said)
            settings |= {key: float(found[1])} if found else {}
        betas = re.search(rf"\bbetas\s*=?\s*\(\s*{NUMBER}\s*,\s*{NUMBER}\s*\)", said)
        settings |= {"betas": (float(betas[1]), float(betas[2]))} if betas else {}
        settings |= {"nesterov": True} if re.search(r"(?<!no )\bnesterov", said) else {}
    else:
        raise GoldenError("golden.json names no optimizer here")
    if kind not in KINDS:
        raise GoldenError(f"the optimizer is '{kind}'; known are {', '.join(KINDS)}")
    cosine = re.search(r"CosineAnnealingLR over T_max=([0-9]+)", str(case.get("schedule", "")))
    return Stepping(kind, settings, int(cosine[1]) if cosine else None)


def differentiate(method: Method) -> Callable[..., Gradients]:
    """Gradients of a scalar with regard to the method's parameters."""
    parameters = list(method.parameters())

    def gradients(total: Tensor, *, retain_graph: bool = False) -> Gradients:
        return list(torch.autograd.grad(total, parameters, retain_graph=retain_graph, allow_unused=True))

    return gradients


@dataclass
class Steps:
    """More steps on a batch, with `optimizer`; `mmrl.methods.MoreSteps`."""

    method: Method
    optimizer: torch.optim.Optimizer

    @property
    def rate(self) -> float:
        return float(self.optimizer.param_groups[0]["lr"])

    def gradients(self, total: Tensor) -> Gradients:
        return differentiate(self.method)(total)

    def update(self, gradients: Gradients) -> None:
        for parameter, gradient in zip(self.method.parameters(), gradients, strict=True):
            parameter.grad = gradient
        self.optimizer.step()


@dataclass
class Replay:
    """A method in the state of a case, and the errors found."""

    case: Mapping[str, Any]
    tensors: Tensors
    clip: Clip
    method: Method
    classes: ClassList
    given: Task
    errors: Errors

    @classmethod
    def task(cls, names: tuple[str, ...], template: str, tensors: Tensors, clip: Clip) -> Task:
        """What the method is trained for."""
        return Task(names, template)

    @property
    def dtype(self) -> torch.dtype:
        return next(self.clip.model.parameters()).dtype

    def dropout(self) -> AbstractContextManager[None]:
        """What a method leaves out in training is what the file recorded."""
        return nullcontext()

    def recorded(self) -> None:
        """What a training loop draws, step by step, is what the file recorded."""

    def images(self, step: int) -> Tensor:
        return self.tensors["images"][step].to(self.dtype)

    def check(self, group: str, key: str, found: Tensor) -> None:
        """Compare with the file's `key`, if it has it."""
        if key in self.tensors:
            note(self.errors, group, found, self.tensors[key])

    def before(self) -> None:
        """Features and logits of the initial parameters."""
        method, first = self.method, self.images(0)
        head = method.head(self.classes)
        if isinstance(method, TwoTower):
            self.check("features", "text_features", head)
            self.check("features", "image_features", method.image_features(first).class_token)
        if "V" not in method.modality:
            frozen = self.clip.encode_image(first, normalise=False)
            self.check("features", "image_encoder_raw", frozen)
            self.check("features", "image_features_raw", frozen)
        self.check("logits", "logits", method.logits(first, head, seen=True))

    def train(self, how: Stepping) -> None:
        """All steps, with what is known of single ones."""
        method, case, labels = self.method, self.case, self.tensors["labels"]
        parameters = dict(method.named_parameters())
        optimizer, after_step = how.start(parameters.values())
        gradients = ours(method, self.tensors, "grad.")
        epochs, steps_per_epoch = case["hyper"].get("epochs", 1), case["hyper"].get("steps_per_epoch", len(case["losses"]))
        losses = []
        for step in range(len(case["losses"])):
            loss, found = method.gradients(self.images(step), labels[step], self.classes, differentiate(method))
            losses.append(loss.total.detach())
            self.loss(step, loss)
            for (key, parameter), gradient in zip(parameters.items(), found, strict=True):
                parameter.grad = torch.zeros_like(parameter) if gradient is None else gradient
                if step == 0:
                    note(self.errors, "gradients", parameter.grad, gradients[key])
            optimizer.step()
            method.stepped([(loss.kept, labels[step])], self.classes, self.more(step, optimizer))
            self.stepped(step)
            after_step()
            for prefix in ("step1.", "after_step1.") if step == 0 else ():
                if self.tensors.behind(prefix):
                    self.parameters("after step 1", prefix, gradients, how)
            if (step + 1) % steps_per_epoch == 0:
                epoch = (step + 1) // steps_per_epoch
                if self.tensors.behind(f"epoch{epoch}."):
                    self.parameters("epochs' parameters", f"epoch{epoch}.", gradients, how)
                if epoch == epochs:
                    with torch.no_grad():
                        self.trained()
                method.epoch_ended(epoch, epochs)
        note(self.errors, "losses", torch.stack(losses), torch.tensor(case["losses"], dtype=torch.float64))  # one may be all but zero
        self.parameters("final parameters", "final.", gradients, how)

    def more(self, step: int, optimizer: torch.optim.Optimizer) -> Steps:
        """What a method takes more steps with after that of a batch."""
        return Steps(self.method, optimizer)

    def stepped(self, step: int) -> None:
        """What is known of those steps."""

    def trained(self) -> None:
        """After the last step, before the last epoch is called over."""

    def loss(self, step: int, loss: Loss) -> None:
        """What is known of a loss beside its value."""
        if step == 0:
            self.check("logits", "logits", loss.logits)

    def parameters(self, group: str, prefix: str, gradients: Mapping[str, Tensor], how: Stepping) -> None:
        golden = ours(self.method, self.tensors, prefix)
        for key, parameter in self.method.named_parameters():
            eps, gradient = how.eps, gradients[key]
            undecided = None if eps is None else rounding_decides(gradient, golden[key], lr=how.lr, eps=eps)
            note(self.errors, group, parameter, golden[key], undecided)

    def after(self) -> None:
        """Logits of the trained parameters."""
        logits = self.method.logits(self.images(0), self.method.head(self.classes), seen=True)
        self.check("evaluation logits", "eval_logits", logits)
        self.check("evaluation logits", "eval_cosine", logits / self.method.logit_scale)
