"""What one training step computes, on the device alone: losses, gradients, and the optimiser's move. Nothing is read back here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mmrl.clip import ClassList, Images
from mmrl.engine.config import FitConfig
from mmrl.engine.optimizers import laid_out
from mmrl.engine.parallel import Peers
from mmrl.engine.precision import autocast
from mmrl.methods import Differentiate, Gradients, Method


class Computed(NamedTuple):
    """Of a step's batches: loss, accuracy and loss terms, averaged over them and all processes.

    Attributes:
        names: of these numbers.
        measured: them, and the norm of all gradients (len(names) + 1,), on the device.
        kept: for every batch, what its loss kept for `Method.stepped`, and labels (B,).
    """

    names: tuple[str, ...]
    measured: Tensor
    kept: list[tuple[Any, Tensor]]


class Stepper:
    """Computes steps on groups of batches; a group's gradients are those of its mean loss, averaged over all processes.

    Attributes:
        skipped: steps in a row that fp16 left out while its scale adapted.
    """

    def __init__(
        self, method: Method, classes: ClassList, config: FitConfig, peers: Peers, optimizer: torch.optim.Optimizer,
        scaler: torch.amp.GradScaler,
    ) -> None:  # fmt: skip
        self.method, self.classes, self.peers, self.optimizer, self.scaler = method, classes, peers, optimizer, scaler
        self.device, self.precision = method.clip.device, config.precision
        self.parameters: list[nn.Parameter] = list(method.parameters())
        self._fused = any(group.get("fused") for group in optimizer.param_groups)
        self.skipped = 0

    @property
    def scaled(self) -> bool:
        """Whether large gradients are met by a smaller scale of the loss, and not by stopping."""
        return self.scaler.is_enabled()

    def autocast(self) -> torch.autocast:
        return autocast(self.precision, self.device)

    def gradients(self, group: Sequence[tuple[Images, Tensor]], *, alone: bool = False) -> Computed:
        """Puts the gradients into the parameters. `alone`: of this process's images only."""
        self.optimizer.zero_grad()
        names, rows, kept = ["loss", "accuracy"], [], []
        differentiate = self.differentiate(1 / len(group), alone=alone)
        for images, labels in group:
            with self.autocast():
                loss, gradients = self.method.gradients(images, labels, self.classes, differentiate)
            for parameter, gradient in zip(self.parameters, gradients, strict=True):
                if gradient is not None:
                    parameter.grad = self._laid_out(gradient, parameter) if parameter.grad is None else parameter.grad + gradient
            accuracy = (loss.logits.argmax(-1) == labels).float().mean()
            rows.append(torch.stack([loss.total.detach().float(), accuracy, *(t.detach().float() for t in loss.terms.values())]))
            names[2:] = loss.terms
            kept.append((loss.kept, labels))
        norm = nn.utils.get_total_norm([p.grad for p in self.parameters if p.grad is not None]).reshape(1)
        measured = torch.cat([torch.stack(rows).mean(0), norm.float()])
        if not alone:
            self.peers.mean([measured])
        return Computed(tuple(names), measured, kept)

    def differentiate(self, share: float, *, alone: bool = False) -> Differentiate:
        """Gradients of a loss that counts as `share` of the step's."""

        def differentiate(total: Tensor, *, retain_graph: bool = False) -> Gradients:
            with torch.autocast(self.device.type, enabled=False):
                scaled = self.scaler.scale(total * share if share < 1 else total)
                found: Gradients = list(torch.autograd.grad(scaled, self.parameters, retain_graph=retain_graph, allow_unused=True))
            if not alone:
                self.peers.mean([gradient for gradient in found if gradient is not None])
            return found

        return differentiate

    def _laid_out(self, gradient: Tensor, parameter: Tensor) -> Tensor:
        return laid_out(gradient, parameter) if self._fused else gradient

    def put(self, gradients: Gradients) -> None:
        """Give the parameters these gradients."""
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            parameter.grad = None if gradient is None else self._laid_out(gradient, parameter)

    def update(self) -> None:
        """Move the parameters. In fp16 torch's scaler reads back whether a gradient overflowed."""
        before = self.scaler.get_scale()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.skipped = self.skipped + 1 if self.scaler.get_scale() < before else 0

    def whole(self, group: Sequence[tuple[Images, Tensor]]) -> Computed:
        """Gradients and move."""
        computed = self.gradients(group)
        self.update()
        return computed


class More:
    """The steps that a method takes after the trainer's own, at its rate; see `MoreSteps`."""

    def __init__(self, stepper: Stepper, rate: float) -> None:
        self._stepper, self.rate = stepper, rate

    def gradients(self, total: Tensor) -> Gradients:
        found, scaler = self._stepper.differentiate(1)(total), self._stepper.scaler
        if not scaler.is_enabled():
            return found
        exact: Gradients = [None if gradient is None else gradient / scaler.get_scale() for gradient in found]
        finite = all(bool(gradient.isfinite().all()) for gradient in exact if gradient is not None)
        return exact if finite else [None] * len(exact)  # the scale is the trainer's to adapt

    def update(self, gradients: Gradients) -> None:
        self._stepper.put(gradients)
        self._stepper.optimizer.step()
