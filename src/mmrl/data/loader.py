"""Batches of tensors. They depend on (seed, epoch, position) alone, not on earlier batches or the number of worker threads."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from copy import copy
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mmrl.data.broken import Broken
from mmrl.data.central import Planes
from mmrl.data.decoded import Decoded, Pixels, plain
from mmrl.data.images import REMEDY
from mmrl.data.parallel import ordered
from mmrl.data.preprocess import Cut, Preprocess
from mmrl.data.records import Dataset, Item
from mmrl.errors import UsageError

Batch = tuple[Tensor, Tensor]  # images (B, 3, H, W), labels (B,) int64


class KeptPlanes(Protocol):
    """Decoded and resized images, by position among the items of a pass. Both methods must be thread-safe."""

    def get(self, position: int) -> Planes | None: ...

    def put(self, position: int, planes: Planes) -> None: ...


A = TypeVar("A")
S = TypeVar("S")  # an image, and what a batch needs to know of it

AHEAD = 2  # batches prepared in advance


class TrainBatches:
    """Shuffled, augmented training batches.

    Args:
        items: the training images; labels are those of `dataset`.
        seed: of the order and the augmentation.
        drop_last: drop the last batch of an epoch if it is incomplete.
        workers: threads that decode and transform in the background; 0 does it in the calling thread.
        memory_gib, disk_gib: decoded images are kept in memory up to this size, and beyond it in a temporary file in `folder`; further
            ones are decoded in every epoch. The result is the same.
        fast: crop, resize and flip whole batches on `device`, where they are returned; the same crops and flips, with numbers that
            are Pillow's but for rounding.

    Raises:
        UsageError: no training images, or with `drop_last` fewer than one batch.
    """

    def __init__(
        self, dataset: Dataset, items: Sequence[Item], preprocess: Preprocess, batch_size: int, seed: int, drop_last: bool = True,
        *, workers: int = 0, memory_gib: float = 1.0, disk_gib: float = 0.0, folder: Path | None = None, fast: bool = False,
        device: torch.device | str = "cpu",
    ) -> None:  # fmt: skip
        _check(dataset, items, batch_size)
        if drop_last and len(items) < batch_size:
            n = len(items)
            raise UsageError(f"batch size {batch_size} is larger than the {n} training images of '{dataset.name}'. Use at most {n}.")
        self.dataset, self.items, self.preprocess = dataset, list(items), preprocess
        self.batch_size, self.seed, self.drop_last, self.workers = batch_size, seed, drop_last, workers
        self._decoded, self._fast, self._device = Decoded(dataset, memory_gib, disk_gib, folder), fast, device
        self._shard = (0, 1)  # which part of every batch, of how many

    def __len__(self) -> int:
        """Number of batches per epoch."""
        full, rest = divmod(len(self.items), self.batch_size)
        return full + (1 if rest and not self.drop_last else 0)

    @property
    def count(self) -> int:
        """Images, those included that an epoch drops."""
        return len(self.items)

    @property
    def size(self) -> int:
        """Images of a full batch that this process takes."""
        return self.batch_size // self._shard[1]

    def epoch(self, number: int, start: int = 0) -> Iterator[Batch]:
        """Batches `start`, `start` + 1, ... of epoch `number` (both from 0), the same as in a pass from the beginning."""
        yield from self._shown(number, self._taken(start), self.size)

    def again(self, number: int, view: int, start: int = 0) -> Iterator[tuple[list[int], Tensor]]:
        """What `epoch` shows, told by where epoch `view` shows it: the images' positions in that epoch, and labels (B,), by batch.

        Raises:
            UsageError: one of the images, or of those beside them in epoch `view`, cannot be read; each is tried once.
        """
        order, before = self._order(number), self._order(view)
        position = {item: at for at, item in enumerate(before)}
        taken = iter(self._taken(start))
        while shown := [order[at] for at in islice(taken, self.size)]:
            positions = [position[item] for item in shown]
            for batch in dict.fromkeys(at // self.size for at in positions):
                for item in before[batch * self.size : (batch + 1) * self.size]:
                    self._decoded.try_once(self.items[item])
            yield positions, torch.tensor([self.items[item].label for item in shown])

    def at(self, view: int, positions: Sequence[int]) -> Tensor:
        """Images (B, 3, H, W) at some positions of epoch `view`, augmented as there; also those that it drops with its last batch."""
        ((images, _),) = self._shown(view, positions, len(positions))
        return images

    def _order(self, number: int) -> list[int]:
        """Which item is at each position of epoch `number`."""
        order: list[int] = np.random.default_rng([_word(self.seed), number]).permutation(len(self.items)).tolist()
        return order

    def _shown(self, number: int, positions: Sequence[int], size: int) -> Iterator[Batch]:
        """Batches of `size` images at some positions of epoch `number`."""
        order, preprocess, decoded = self._order(number), self.preprocess, self._decoded

        def sample(position: int) -> tuple[Planes, int]:
            item = self.items[order[position]]
            return preprocess.varied(decoded.image(item), _seed_of(self.seed, number, position)), item.label

        def crop(position: int) -> tuple[tuple[Pixels, Cut], int]:
            item = self.items[order[position]]
            pixels = decoded.pixels(item)
            cut = preprocess.cut(pixels.shape[0], pixels.shape[1], _seed_of(self.seed, number, position))
            return (plain(pixels[cut.top : cut.top + cut.height, cut.left : cut.left + cut.width]), cut), item.label

        def together(crops: Sequence[tuple[Pixels, Cut]]) -> Tensor:
            return preprocess.fast_batch([pixels for pixels, _ in crops], [cut for _, cut in crops], self._device)

        if self._fast:
            return _batches(crop, positions, together, size, self.workers)
        return _batches(sample, positions, preprocess.batch, size, self.workers)

    def _taken(self, start: int) -> list[int]:
        """Positions that this process takes of an epoch, from batch `start` on."""
        (rank, _), end = self._shard, min(len(self) * self.batch_size, len(self.items))
        return [p for p in range(start * self.batch_size, end) if p % self.batch_size // self.size == rank]

    def shard(self, rank: int, of: int) -> TrainBatches:
        """The same batches, each cut to the images of process `rank` (from 0) out of `of`; only those are decoded.

        Raises:
            UsageError: `of` processes cannot take equal parts of every batch.
        """
        size, least = self.batch_size, -(-self.batch_size // of) * of
        if size % of:
            raise UsageError(f"batch_size is {size}, which {of} processes cannot share equally; give a multiple of {of}, such as {least}.")
        if of > 1 and not self.drop_last:
            raise UsageError(f"{of} processes cannot share an incomplete last batch equally; leave it out with drop_last=True.")
        part = copy(self)
        part._shard = (rank, of)
        return part


def view_batches(
    dataset: Dataset, items: Sequence[Item], preprocess: Preprocess, batch_size: int, seed: int, views: int, workers: int = 0,
    *, device: torch.device | str = "cpu", memory_gib: float = 1.0,
) -> Iterator[Batch]:  # fmt: skip
    """Augmented views of all `items`: one pass in order for each view, no image dropped. For features of a training set.

    The augmentation of an image depends on `seed`, the view and the image's position in `items` alone. No batch spans two views, so
    the last batch of each may be smaller.

    Args:
        views: number of passes, each with other crops and flips.
        workers: threads that decode and transform in the background; 0 does it in the calling thread.
        device: where the images are normalised and returned.
        memory_gib: decoded images are cached up to this size; further ones are decoded in every view, with the same result.

    Raises:
        UsageError: no items, a batch size or a number of views below 1, or an image that cannot be read.
    """
    _check(dataset, items, batch_size)
    if views < 1:
        raise UsageError(f"views is {views}; it must be at least 1.")
    decoded = Decoded(dataset, memory_gib)

    def one_pass(view: int) -> Iterator[Batch]:
        def sample(position: int) -> tuple[Planes, int]:
            return preprocess.varied(decoded.image(items[position]), _seed_of(seed, view, position)), items[position].label

        return _batches(sample, range(len(items)), partial(preprocess.batch, device=device), batch_size, workers)

    return (batch for view in range(views) for batch in one_pass(view))


def test_batches(
    dataset: Dataset, items: Sequence[Item], preprocess: Preprocess, batch_size: int, workers: int = 0,
    *, device: torch.device | str = "cpu", skipped: list[Broken] | None = None, kept: KeptPlanes | None = None,
) -> Iterator[Batch]:  # fmt: skip
    """All `items` in order, with the central crop; the last batch may be smaller.

    Args:
        workers: threads that decode and transform in the background, at most two batches ahead; 0 does it in the calling thread.
        device: where the images are normalised and returned.
        skipped: missing or broken images are left out and appended to this list; with None they raise an error.
        kept: where decoded images are looked for, and put.

    Raises:
        UsageError: no items, a batch size below 1, an image that cannot be read and is not left out, or none that can be read.
    """
    _check(dataset, items, batch_size)
    return image_batches(dataset.image, items, preprocess, batch_size, workers, device=device, skipped=skipped, kept=kept)


def image_batches(
    read: Callable[[Item], Image.Image], items: Iterable[Item], preprocess: Preprocess, batch_size: int, workers: int = 0,
    *, device: torch.device | str = "cpu", skipped: list[Broken] | None = None, kept: KeptPlanes | None = None,
) -> Iterator[Batch]:  # fmt: skip
    """As `test_batches`, with the images that `read` returns."""

    def load(task: tuple[int, Item]) -> tuple[Planes, int] | Broken:
        position, item = task
        planes = kept.get(position) if kept else None
        if planes is not None:
            return planes, item.label
        try:
            planes = preprocess.central(read(item))
        except UsageError as error:
            if skipped is None:
                raise
            return Broken(item.key, str(error))
        if kept:
            kept.put(position, planes)
        return planes, item.label

    return _batches(load, enumerate(items), partial(preprocess.batch, device=device), batch_size, workers, skipped=skipped)


test_batches.__test__ = False  # type: ignore[attr-defined]  # pytest would collect it by its name


def _check(dataset: Dataset, items: Sequence[Item], batch_size: int) -> None:
    if batch_size < 1:
        raise UsageError(f"batch size must be at least 1, not {batch_size}.")
    if not items:
        raise UsageError(f"there are no images of '{dataset.name}' to load. Check the split and the classes.")


def _word(seed: int) -> int:
    """`seed` modulo 2**64, as numpy's generators take no negative one."""
    return seed % 2**64


def _seed_of(seed: int, epoch: int, position: int) -> int:
    """The 64-bit seed of one augmentation."""
    high, low = np.random.SeedSequence([_word(seed), epoch, position]).generate_state(2, np.uint32)
    return int(high) << 32 | int(low)


def _batches(
    load: Callable[[A], tuple[S, int] | Broken], tasks: Iterable[A], together: Callable[[Sequence[S]], Tensor], batch_size: int,
    workers: int, *, skipped: list[Broken] | None = None,
) -> Iterator[Batch]:  # fmt: skip
    def whole() -> Iterator[tuple[S, int]]:
        for sample in ordered(load, tasks, workers, ahead=AHEAD * batch_size):
            if not isinstance(sample, Broken):
                yield sample
            elif skipped is not None:
                skipped.append(sample)

    samples, some = whole(), False
    while chunk := list(islice(samples, batch_size)):
        some = True
        yield together([image for image, _ in chunk]), torch.tensor([label for _, label in chunk])
    if skipped and not some:
        first = skipped[0].message.replace(REMEDY, "Give one that can be read.")  # left out, it would leave nothing
        said = first if len(skipped) == 1 else f"none of the {len(skipped)} images can be read; the first: {first}"
        raise UsageError(said)
