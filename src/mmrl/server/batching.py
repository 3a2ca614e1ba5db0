"""Micro-batches: images that wait pass the image tower together, whatever classes each is asked about."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from mmrl.classifier.judging import Head, Judged
from mmrl.data.central import Planes
from mmrl.errors import MmrlError
from mmrl.server.adapters import Served
from mmrl.server.logs import say
from mmrl.server.metrics import Meters
from mmrl.server.settings import Limits
from mmrl.trust.answers import SCORE, Rejecting


class Wanted(NamedTuple):
    """What is to be said of the scores."""

    top: int
    rule: Rejecting | None = None
    score: str = SCORE
    coverage: float | None = None
    calibrated: bool = True


@dataclass(eq=False)
class Work:
    """Images of one request, prepared, not more than a batch, and the class list that they are asked about."""

    served: Served
    head: Head
    planes: Sequence[Planes]
    wanted: Wanted
    answer: asyncio.Future[list[Judged]]
    found: list[Judged] | Exception | None = field(default=None)


class Batcher:
    """A thread that takes what waits, up to `limits.batch` images of one adapter, and answers it.

    Args:
        coming: how many images are on their way; a batch that is not full waits for them a moment.
    """

    def __init__(self, limits: Limits, metrics: Meters, coming: Callable[[], int]) -> None:
        self._limits, self._metrics, self._coming = limits, metrics, coming
        self._waiting: deque[Work] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="batches", daemon=True)
        self.images = 0  # that wait

    def start(self) -> None:
        self._thread.start()

    async def judge(self, served: Served, head: Head, planes: Sequence[Planes], wanted: Wanted) -> list[Judged]:
        """What is answered for each image.

        Raises:
            UsageError: there is no calibration for what is wanted.
            MmrlError: the scores are not finite.
        """
        size, loop = self._limits.batch, asyncio.get_running_loop()
        parts = [planes[at : at + size] for at in range(0, len(planes), size)]
        works = [Work(served, head, part, wanted, loop.create_future()) for part in parts]
        with self._changed:
            self._waiting.extend(works)
            self.images += len(planes)
            self._changed.notify()
        return [each for answer in await asyncio.gather(*(work.answer for work in works)) for each in answer]

    def close(self) -> None:
        """Answer what waits, and stop."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        while batch := self._next():
            began = time.perf_counter()
            self._compute(batch)
            count = sum(len(work.planes) for work in batch)
            self._metrics.batch.observe(count)
            self._metrics.batch_seconds.observe(time.perf_counter() - began)
            self._metrics.images.labels(batch[0].served.name).inc(count)
            batch[0].answer.get_loop().call_soon_threadsafe(_deliver, batch)

    def _next(self) -> list[Work]:
        """The next batch; empty in the end."""
        with self._changed:
            batch: list[Work] = []
            while not batch and (self._waiting or not self._closed):
                while not self._waiting and not self._closed:
                    self._changed.wait()
                until = time.monotonic() + self._limits.wait
                while self._waiting and self.images < self._limits.batch and self._coming() > 0 and not self._closed:
                    left = until - time.monotonic()
                    if left <= 0 or not self._changed.wait(left):
                        break
                batch = self._take()
            return batch

    def _take(self) -> list[Work]:
        """The oldest, and those of the same adapter that fit beside it."""
        batch, count, left = list[Work](), 0, deque[Work]()
        while self._waiting:
            work = self._waiting.popleft()
            if work.answer.cancelled():  # whoever asked has gone, or was told that it takes too long
                self.images -= len(work.planes)
            elif batch and (work.served is not batch[0].served or count + len(work.planes) > self._limits.batch):
                left.append(work)
            else:
                batch.append(work)
                count += len(work.planes)
        self._waiting = left
        self.images -= count
        return batch

    def _compute(self, batch: Sequence[Work]) -> None:
        try:
            _judge(batch)
        except Exception as error:
            if len(batch) == 1:
                batch[0].found = error
                if not isinstance(error, MmrlError):
                    say(logging.ERROR, "a batch failed", trace=True, adapter=batch[0].served.name)
                return
            for work in batch:  # one of them: the others are answered all the same
                self._compute([work])


def _judge(batch: Sequence[Work]) -> None:
    """Fill in what is found for each: all images pass the tower together, and are then scored against their class lists."""
    classifier = batch[0].served.classifier
    planes = [each for work in batch for each in work.planes]
    pixels = classifier.preprocess.batch(planes, classifier.device)
    groups: dict[tuple[int, Wanted], list[Work]] = {}
    places: dict[int, range] = {}
    start = 0
    for work in batch:
        groups.setdefault((id(work.head), work.wanted), []).append(work)
        places[id(work)] = range(start, start := start + len(work.planes))
    asked = [(works[0].head, [at for work in works for at in places[id(work)]]) for works in groups.values()]
    scores = classifier.score_pixels(pixels, asked)
    for ((_, wanted), works), (head, _), logits in zip(groups.items(), asked, scores):
        try:
            judged = iter(classifier.judged(logits, head, **wanted._asdict()))
        except MmrlError as error:  # no calibration for what these ask
            for work in works:
                work.found = error
            continue
        for work in works:
            work.found = [next(judged) for _ in work.planes]


def _deliver(batch: Sequence[Work]) -> None:
    for work in batch:
        if work.answer.done():
            continue
        if isinstance(work.found, list):
            work.answer.set_result(work.found)
        else:
            work.answer.set_exception(work.found or MmrlError("the batch ended without an answer"))
