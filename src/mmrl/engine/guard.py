"""What steps measured, read late, and the first number in it that is not finite, by name.

A step leaves its numbers on the device, and a copy of the parameters that it began with. Every few steps all of them are read, with one
wait for the device. If a step's loss is not finite, the parameters that it began with are the last update's fault, and those of the step
before it are kept: so a step that should not have moved anything may do so, and a copy is needed in any case.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, NoReturn

import torch
from torch import Tensor

from mmrl.engine.batches import Batch, placed
from mmrl.engine.parallel import Peers
from mmrl.engine.randomness import random_state, set_random_state
from mmrl.engine.step import Computed, Stepper
from mmrl.errors import MmrlError
from mmrl.methods import Method

READ_EVERY = 8  # steps on a GPU; a processor has nothing to wait for, and reads every step before it moves the parameters
GROWTH = 1e3  # a trained tensor that grows as much has blown up
Row = dict[str, float]  # one step of the history
Tensors = dict[str, Tensor]


class NonFiniteError(MmrlError):
    """A number that is not finite came up; the parameters are the latest that a finite loss was computed with.

    `scores` tells whether those give finite logits; if not, not even the initial ones do, and there is nothing to keep.
    """

    scores = True


@dataclass(frozen=True)
class Taken:
    """A step.

    Attributes:
        group: its batches.
        row: step and epoch (from 1), lr.
        tensors, random: parameters, buffers and random numbers, as they were when it began.
        computed: what it measured; None while it is under way.
    """

    group: list[Batch]
    row: Row
    tensors: Tensors
    random: dict[str, Any]
    computed: Computed | None = None


class Guard:
    """Keeps what steps measured until it is read.

    Args:
        every: steps between readings.

    Attributes:
        rows: of the history, read and not yet told.
    """

    def __init__(self, stepper: Stepper, peers: Peers, every: int) -> None:
        self._stepper, self._method, self._peers, self._every = stepper, stepper.method, peers, every
        self._device = stepper.device
        self._ring = [{name: torch.empty_like(value) for name, value in tensors_of(self._method).items()} for _ in range(every + 1)]
        self._copies = 0
        self._unread: list[Taken] = []
        self._last: Taken | None = None
        self._gradients: Computed | None = None  # of the step whose gradients the parameters have
        self._good = self._copied()  # parameters whose loss was finite: those that an update made are not known to be
        self.rows: list[Row] = []

    def restart(self) -> None:
        """The parameters were set from outside."""
        self._good = self._copied()

    def begin(self, group: list[Batch], row: Row) -> None:
        """A step on `group` begins."""
        self._unread.append(Taken(group, row, self._copied(), random_state(self._device)))

    def measured(self, computed: Computed, *, replayed: bool = False) -> None:
        """What the step that began last measured. The gradients of one that was replayed are not there for long."""
        self._last = self._unread[-1] = replace(self._unread[-1], computed=computed)
        self._gradients = None if replayed else computed

    @property
    def due(self) -> bool:
        return len(self._unread) >= self._every

    def read(self) -> None:
        """Read what is not read yet; `rows` has it then. Raises NonFiniteError for the first step with a number that is not finite."""
        taken, self._unread = [(step, step.computed) for step in self._unread if step.computed], []
        if not taken:
            return
        numbers = torch.cat([computed.measured for _, computed in taken]).tolist()  # one wait for the device
        for step, computed in taken:
            means, (size, *numbers) = numbers[: len(computed.names)], numbers[len(computed.names) :]
            # Fused attention may hide a query that is not finite.
            if not all(map(_finite, means)) or not (_finite(size) or self._whole(step.tensors)):
                self._stop(step, self._good)
            self._good = step.tensors
            if not (self._stepper.scaled or _finite(size)):
                self._stop(step, step.tensors)
            self.rows.append({**step.row, **dict(zip(computed.names, means, strict=True))})

    def stop(self) -> NoReturn:
        """Raises NonFiniteError for the last step, whose numbers are read."""
        assert self._last is not None
        self._stop(self._last, self._good)

    def require_finite_end(self) -> None:
        """Raises NonFiniteError if the parameters that the last step left are not finite: no loss of a step after it tells."""
        left = self._copied()
        if self._last is not None and not self._whole(left):
            self._stop(replace(self._last, tensors=left), self._good)

    def _copied(self) -> Tensors:
        """Parameters and buffers, copied to the place of the oldest copy: that of a step that is read, and not the latest of these."""
        copy = self._ring[self._copies % len(self._ring)]
        self._copies += 1
        _copy(tensors_of(self._method), copy)
        return copy

    def _whole(self, tensors: Tensors) -> bool:
        """Whether all parameters are finite."""
        return all(bool(tensors[name].isfinite().all()) for name, _ in self._method.named_parameters())

    def _stop(self, step: Taken, good: Tensors) -> NoReturn:
        """Compute the step again, to find what is not finite, and go back to `good`."""
        self._unread = []
        there = step.computed is self._gradients
        _copy(step.tensors, tensors_of(self._method))
        set_random_state(step.random, self._device)
        found = self._peers.gather(self._first_bad(step, there))
        _, name = min(found)  # what goes wrong in one process makes the gradients of all bad
        self._stepper.optimizer.zero_grad()
        _copy(good, tensors_of(self._method))
        error = NonFiniteError(
            f"training stopped in epoch {step.row['epoch']}, step {step.row['step']}: {name} is not finite{_grown(step.tensors, good)}. "
            "The parameters are the latest that gave a finite loss. A lower lr often helps; with fp16 also bf16 or fp32."
        )
        error.scores = all(self._peers.gather(self._scores(step.group)))
        raise error

    def _first_bad(self, step: Taken, there: bool) -> tuple[int, str]:
        """Place and name of the first tensor that is not finite, in the order of computation."""
        place = 0
        for place, (name, tensor) in enumerate(self._computed(step, there)):
            if not bool(tensor.isfinite().all()):
                return place, name
        return place + 1, "the loss"  # it was, and is no more: the method is not deterministic

    def _computed(self, step: Taken, there: bool) -> Iterator[tuple[str, Tensor]]:
        """Images, parameters, loss terms, gradients, which are `there` or computed again."""
        seen = [(placed(images, self._device), labels.to(self._device)) for images, labels in step.group]
        for images, _ in seen:
            yield "an input image", images.pixels
        yield from ((f"parameter '{name}'", parameter) for name, parameter in self._method.named_parameters())
        for images, labels in seen:
            with torch.no_grad(), self._stepper.autocast():
                loss = self._method.loss(images, labels, self._stepper.classes)
            yield from ((f"loss term '{name}'", term) for name, term in loss.terms.items())
            yield "the total loss", loss.total
        if not there:
            set_random_state(step.random, self._device)
            self._stepper.gradients(seen, alone=True)
        yield from ((f"the gradient of '{name}'", p.grad) for name, p in self._method.named_parameters() if p.grad is not None)

    def _scores(self, group: list[Batch]) -> bool:
        """Whether the method, as it is now, gives finite logits for the batch and finite class features."""
        with torch.no_grad():
            head = self._method.head(self._stepper.classes)
            finite = (placed(images, self._device).pixels.nan_to_num(0, 0, 0) for images, _ in group)  # it may be an image that is not
            return all(bool(self._method.logits(images, head, True).isfinite().all()) for images in finite)


def tensors_of(method: Method) -> Tensors:
    """Parameters and buffers, also those that no adapter keeps."""
    return {**dict(method.named_parameters()), **dict(method.named_buffers())}


@torch.no_grad()
def _copy(source: Tensors, target: Tensors) -> None:
    """Into the memory of `target`: a kernel for all tensors of a type, where the device has one."""
    for kind in {value.dtype for value in target.values()}:
        names = [name for name, value in target.items() if value.dtype == kind]
        torch._foreach_copy_([target[name] for name in names], [source[name] for name in names])


def _grown(tensors: Tensors, good: Tensors) -> str:
    """Which trained tensor has grown most since the parameters were good, where one has grown beyond all measure."""
    sizes = {name: float(value.detach().abs().max()) for name, value in tensors.items() if value.numel()}
    ratios = {name: size / (float(good[name].abs().max()) + 1e-6) for name, size in sizes.items() if _finite(size)}
    worst = max(ratios, key=lambda name: ratios[name], default=None)
    return f"; the trained tensor '{worst}' had grown to {sizes[worst]:.3g}" if worst and ratios[worst] > GROWTH else ""


def _finite(value: float) -> bool:
    return value - value == 0
