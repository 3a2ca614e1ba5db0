"""Where a training's batches come from, and batches that several trainings take together."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from mmrl.clip import AnyImages, Images
from mmrl.engine.turns import At

Batch = tuple[AnyImages, Tensor]  # images (B, 3, H, W), which are on the device already where frozen passes come with them; labels (B,)


def placed(images: AnyImages, device: torch.device, expected: Iterable[int] = ()) -> Images:
    """Images (B, 3, H, W) on `device`, with layers that will be asked for; those that keep frozen passes already are as they shall be."""
    if not isinstance(images, Images):
        return Images(images.to(device), expected=expected)
    images.expect(expected)
    return images


class Batches(Protocol):
    """Training data: `epoch(number, start)` gives the batches of epoch `number` from position `start`, always the same ones."""

    def __len__(self) -> int: ...

    def epoch(self, number: int, start: int = 0) -> Iterator[Batch]: ...


class Way(Protocol):
    """How batches come to a device while it computes."""

    def sending(self) -> AbstractContextManager[object]:
        """Where batches are made and sent."""
        ...

    def send(self, batch: Batch) -> Any:
        """`batch`, on its way."""
        ...

    def received(self, sent: Any) -> Batch:
        """What was sent, for the computation to use."""
        ...


class Pinned:
    """To a GPU, from memory that it reads by itself, on a stream beside the computation's."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._stream = device, torch.cuda.Stream(device)

    def sending(self) -> AbstractContextManager[object]:
        return torch.cuda.stream(self._stream)

    def send(self, batch: Batch) -> tuple[Batch, torch.cuda.Event]:
        images, labels = batch
        sent = self._sent(images) if isinstance(images, Tensor) else images, self._sent(labels)
        return sent, self._stream.record_event()

    def _sent(self, values: Tensor) -> Tensor:
        return values if values.is_cuda else values.pin_memory().to(self._device, non_blocking=True)

    def received(self, sent: tuple[Batch, torch.cuda.Event]) -> Batch:
        """The computation waits for this batch alone, and not for the next one, which is on its way by then."""
        (batch, arrived), now = sent, torch.cuda.current_stream(self._device)
        now.wait_event(arrived)
        for values in batch:
            if isinstance(values, Tensor):
                values.record_stream(now)  # its memory is given to no later batch before the computation is done with it
        return batch


def one_ahead(batches: Iterator[Batch], way: Way) -> Iterator[Batch]:
    """`batches`, each made and sent before the one ahead of it is given. What making one raises comes in its place."""
    before: Any = None
    while True:
        error: Exception | None = None
        sent: Any = None
        try:
            with way.sending():
                made = next(batches, None)
                sent = None if made is None else way.send(made)
        except Exception as found:
            error = found
        if before is not None:
            yield way.received(before)
        if error is not None:
            raise error
        if sent is None:
            return
        before = sent


def on_the_way(batches: Iterator[Batch], device: torch.device) -> Iterator[Batch]:
    """`batches` on a GPU, one ahead; for a processor as they are."""
    return one_ahead(batches, Pinned(device)) if device.type == "cuda" else batches


def arriving(batches: Batches, number: int, start: int, device: torch.device) -> Iterator[Batch]:
    """Epoch `number` of `batches` from position `start`, on its way to `device`; those that are made there, as they are."""
    epoch = batches.epoch(number, start)
    return epoch if getattr(batches, "placed", False) else on_the_way(epoch, device)


@runtime_checkable
class Shareable(Batches, Protocol):
    """Batches that several processes can train on together."""

    def shard(self, rank: int, of: int) -> Batches:
        """As many batches, each with the part of its images that process `rank` (from 0) of `of` takes."""
        ...


class OnePass:
    """The batches of `source`, on `device`, for several trainings in turn: each is made once, and so are the frozen passes over it.

    They are the same for whoever asks, whenever it does; but a batch is made again for one that is far behind the others.

    Args:
        keep: batches that are kept, from the latest on: as many as a training takes in one turn.
    """

    placed = True  # on the device

    def __init__(self, source: Batches, device: torch.device, keep: int = 1) -> None:
        self._source, self._device, self._keep = source, device, keep
        self._kept: dict[At, tuple[Images, Tensor]] = {}
        self._expected = set[int]()
        self._next: At | None = None  # what `_coming` gives next
        self._coming: Iterator[Batch] = iter(())

    def __len__(self) -> int:
        return len(self._source)

    def epoch(self, number: int, start: int = 0) -> Iterator[Batch]:
        for position in range(start, len(self)):
            yield self._at(number, position)

    def _at(self, number: int, position: int) -> Batch:
        at = number, position
        if at not in self._kept:
            while len(self._kept) >= self._keep:
                before, _ = self._kept.pop(next(iter(self._kept)))
                self._expected = before.asked  # the same trainings ask the next batch
            coming = self._coming if self._next == at else arriving(self._source, *at, self._device)
            self._next = None  # of an error, whoever asks next is told too
            images, labels = next(coming)
            self._kept[at] = placed(images, self._device, self._expected), labels.to(self._device)
            self._coming, self._next = coming, (number, position + 1)
        return self._kept[at]
