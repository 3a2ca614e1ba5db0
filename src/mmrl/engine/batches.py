"""Where a training's batches come from, and batches that several trainings take together."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from mmrl.clip import AnyImages, Images
from mmrl.engine.turns import At

Batch = tuple[AnyImages, Tensor]  # images (B, 3, H, W), which are on the device already where frozen passes come with them; labels (B,)


def placed(images: AnyImages, device: torch.device, expected: Iterable[int] = ()) -> Images:
    """Images (B, 3, H, W) on `device`, with layers that will be asked for; those that keep frozen passes already are as they shall be."""
    return images if isinstance(images, Images) else Images(images.to(device), expected=expected)


class Batches(Protocol):
    """Training data: `epoch(number, start)` gives the batches of epoch `number` from position `start`, always the same ones."""

    def __len__(self) -> int: ...

    def epoch(self, number: int, start: int = 0) -> Iterator[Batch]: ...


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
            coming = self._coming if self._next == at else self._source.epoch(*at)
            self._next = None  # of an error, whoever asks next is told too
            images, labels = next(coming)
            self._kept[at] = placed(images, self._device, self._expected), labels.to(self._device)
            self._coming, self._next = coming, (number, position + 1)
        return self._kept[at]
