"""Batches of tensors, equal for equal (seed, epoch, position) whatever came before and however many threads help."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from copy import copy
from itertools import islice
from typing import TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mmrl.data.broken import Broken
from mmrl.data.parallel import ordered
from mmrl.data.preprocess import Planes, Preprocess
from mmrl.data.records import Dataset, Item
from mmrl.errors import UsageError

Batch = tuple[Tensor, Tensor]  # images (B, 3, H, W), labels (B,) int64
A = TypeVar("A")

AHEAD = 2  # batches prepared before they are asked for
PIXEL = 4  # bytes that Pillow keeps for an RGB pixel


class TrainBatches:
    """Shuffled, augmented training batches.

    Each image is decoded once and kept as bytes as long as all kept ones fit into `memory_gib`; the others are read
    anew each time, with the same result.

    Args:
        items: what to train on; labels are those of `dataset`.
        seed: decides order and augmentation.
        drop_last: leave out the last batch when it is not full.
        workers: threads that decode and transform ahead; 0 does it when asked.

    Raises:
        UsageError: nothing to train on, or less than one batch.
    """

    def __init__(
        self, dataset: Dataset, items: Sequence[Item], preprocess: Preprocess, batch_size: int, seed: int, drop_last: bool = True,
        *, workers: int = 0, memory_gib: float = 1.0,
    ) -> None:  # fmt: skip
        _check(dataset, items, batch_size)
        if drop_last and len(items) < batch_size:
            n = len(items)
            raise UsageError(f"batch size {batch_size} is larger than the {n} training images of '{dataset.name}'. Use at most {n}.")
        self.dataset, self.items, self.preprocess = dataset, list(items), preprocess
        self.batch_size, self.seed, self.drop_last, self.workers = batch_size, seed, drop_last, workers
        self._room = int(memory_gib * 2**30)
        self._kept: dict[str, Image.Image] = {}
        self._lock = threading.Lock()
        self._shard = (0, 1)  # which part of every batch, of how many

    def __len__(self) -> int:
        """Batches an epoch."""
        full, rest = divmod(len(self.items), self.batch_size)
        return full + (1 if rest and not self.drop_last else 0)

    def epoch(self, number: int, start: int = 0) -> Iterator[Batch]:
        """Batches `start`, `start` + 1, ... of epoch `number` (both from 0); going on at `start` gives what a whole pass would."""
        order = np.random.default_rng([_word(self.seed), number]).permutation(len(self.items)).tolist()
        rank, of = self._shard
        part = self.batch_size // of

        def sample(position: int) -> tuple[Planes, int]:
            item = self.items[order[position]]
            seed = np.random.SeedSequence([_word(self.seed), number, position]).generate_state(2, np.uint32)
            return self.preprocess.varied(self._image(item), int(seed[0]) << 32 | int(seed[1])), item.label

        end = min(len(self) * self.batch_size, len(self.items))
        taken = [p for p in range(start * self.batch_size, end) if p % self.batch_size // part == rank]
        yield from _batches(sample, taken, self.preprocess, part, self.workers)

    def shard(self, rank: int, of: int) -> TrainBatches:
        """The same batches, each with the images that process `rank` (from 0) of `of` takes; only those are decoded.

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

    def _image(self, item: Item) -> Image.Image:
        image = self._kept.get(item.key)
        if image is None:
            image = self.dataset.image(item)
            with self._lock:
                size = image.width * image.height * PIXEL
                if item.key not in self._kept and size <= self._room:
                    self._room -= size
                    self._kept[item.key] = image
        return image


def test_batches(
    dataset: Dataset, items: Sequence[Item], preprocess: Preprocess, batch_size: int, workers: int = 0,
    *, device: torch.device | str = "cpu", skipped: list[Broken] | None = None,
) -> Iterator[Batch]:  # fmt: skip
    """All `items` in order, the last batch as large as what is left.

    Args:
        workers: threads that decode and transform ahead; at most two batches more than asked for are in memory, as bytes.
        device: where the images are normalised and given out.
        skipped: takes the images that are missing or broken, which are left out; None refuses them.

    Raises:
        UsageError: no items, a batch size below 1, an image that cannot be read and is not left out, or none that can be read.
    """
    _check(dataset, items, batch_size)
    return image_batches(dataset.image, items, preprocess, batch_size, workers, device=device, skipped=skipped)


def image_batches(
    read: Callable[[Item], Image.Image], items: Iterable[Item], preprocess: Preprocess, batch_size: int, workers: int = 0,
    *, device: torch.device | str = "cpu", skipped: list[Broken] | None = None,
) -> Iterator[Batch]:  # fmt: skip
    """As `test_batches`, of pictures that `read` gives."""

    def load(item: Item) -> tuple[Planes, int] | Broken:
        try:
            return preprocess.central(read(item)), item.label
        except UsageError as error:
            if skipped is None:
                raise
            return Broken(item.key, str(error))

    return _batches(load, items, preprocess, batch_size, workers, device=device, skipped=skipped)


test_batches.__test__ = False  # type: ignore[attr-defined]  # not a test, whatever pytest makes of its name


def _check(dataset: Dataset, items: Sequence[Item], batch_size: int) -> None:
    if batch_size < 1:
        raise UsageError(f"batch size must be at least 1, not {batch_size}.")
    if not items:
        raise UsageError(f"there are no images of '{dataset.name}' to go through. Check the split and the classes asked for.")


def _word(seed: int) -> int:
    """Any integer as one that numpy's seeding takes; equal integers stay equal, different ones within 64 bits different."""
    return seed % 2**64


def _batches(
    load: Callable[[A], tuple[Planes, int] | Broken], tasks: Iterable[A], preprocess: Preprocess, batch_size: int, workers: int,
    *, device: torch.device | str = "cpu", skipped: list[Broken] | None = None,
) -> Iterator[Batch]:  # fmt: skip
    def whole() -> Iterator[tuple[Planes, int]]:
        for sample in ordered(load, tasks, workers, ahead=AHEAD * batch_size):
            if not isinstance(sample, Broken):
                yield sample
            elif skipped is not None:
                skipped.append(sample)

    samples, some = whole(), False
    while chunk := list(islice(samples, batch_size)):
        some = True
        yield preprocess.batch([planes for planes, _ in chunk], device), torch.tensor([label for _, label in chunk])
    if skipped and not some:
        raise UsageError(f"none of the {len(skipped)} images can be read; the first: {skipped[0].message}")
