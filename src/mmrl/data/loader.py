"""Batches of tensors, equal for equal (seed, epoch, position) whatever came before and however many threads help."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mmrl.data.preprocess import Preprocess
from mmrl.data.records import Dataset, Item
from mmrl.errors import UsageError

Batch = tuple[Tensor, Tensor]  # images (B, 3, H, W), labels (B,) int64
A = TypeVar("A")
B = TypeVar("B")

AHEAD = 2  # batches prepared before they are asked for


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

    def __len__(self) -> int:
        """Batches an epoch."""
        full, rest = divmod(len(self.items), self.batch_size)
        return full + (1 if rest and not self.drop_last else 0)

    def epoch(self, number: int, start: int = 0) -> Iterator[Batch]:
        """Batches `start`, `start` + 1, ... of epoch `number` (both from 0); going on at `start` gives what a whole pass would."""
        order = np.random.default_rng([_word(self.seed), number]).permutation(len(self.items)).tolist()

        def sample(position: int) -> tuple[Tensor, int]:
            item = self.items[order[position]]
            seed = np.random.SeedSequence([_word(self.seed), number, position]).generate_state(2, np.uint32)
            return self.preprocess.train(self._image(item), int(seed[0]) << 32 | int(seed[1])), item.label

        end = min(len(self) * self.batch_size, len(self.items))
        yield from _batches(sample, range(start * self.batch_size, end), self.batch_size, self.workers)

    def _image(self, item: Item) -> Image.Image:
        image = self._kept.get(item.key)
        if image is None:
            image = self.dataset.image(item)
            with self._lock:
                size = image.width * image.height * 3
                if item.key not in self._kept and size <= self._room:
                    self._room -= size
                    self._kept[item.key] = image
        return image


def test_batches(dataset: Dataset, items: Sequence[Item], preprocess: Preprocess, batch_size: int, workers: int = 0) -> Iterator[Batch]:
    """All `items` in order, the last batch as large as what is left.

    Args:
        workers: threads that decode and transform ahead; at most two batches more than asked for are in memory.

    Raises:
        UsageError: no items, or a batch size below 1.
    """
    _check(dataset, items, batch_size)
    return _batches(lambda item: (preprocess.test(dataset.image(item)), item.label), items, batch_size, workers)


test_batches.__test__ = False  # type: ignore[attr-defined]  # not a test, whatever pytest makes of its name


def _check(dataset: Dataset, items: Sequence[Item], batch_size: int) -> None:
    if batch_size < 1:
        raise UsageError(f"batch size must be at least 1, not {batch_size}.")
    if not items:
        raise UsageError(f"there are no images of '{dataset.name}' to go through. Check the split and the classes asked for.")


def _word(seed: int) -> int:
    """Any integer as one that numpy's seeding takes; equal integers stay equal, different ones within 64 bits different."""
    return seed % 2**64


def _batches(load: Callable[[A], tuple[Tensor, int]], tasks: Iterable[A], batch_size: int, workers: int) -> Iterator[Batch]:
    samples = _ordered(load, tasks, workers, ahead=AHEAD * batch_size)
    while chunk := list(islice(samples, batch_size)):
        yield torch.stack([image for image, _ in chunk]), torch.tensor([label for _, label in chunk])


def _ordered(function: Callable[[A], B], tasks: Iterable[A], workers: int, ahead: int) -> Iterator[B]:
    """`function` of each task, in order; with `workers`, up to `ahead` of them are computed before they are taken."""
    if workers <= 0:
        yield from map(function, tasks)
        return
    waiting: deque[Future[B]] = deque()
    pool = ThreadPoolExecutor(workers, thread_name_prefix="mmrl-data")
    try:
        for task in tasks:
            waiting.append(pool.submit(function, task))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:  # also when the caller stops early
        pool.shutdown(wait=True, cancel_futures=True)
