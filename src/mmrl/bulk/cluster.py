"""Predictions on a Ray cluster: each worker loads the classifier once and judges parts of the list; this process writes.

A part is some blocks of 64 images. Parts come back in any order and are given out in theirs; no more are under way than workers need, so
memory does not grow. A part whose worker died is judged by another. Every machine needs the same mmrl, and the images at the same paths;
the classifier is sent to it, the backbone only where it has no name to be loaded by.
"""

from __future__ import annotations

import os
import socket
from collections import Counter, deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch

from mmrl.bulk.answers import Answer, AskedOfEach
from mmrl.bulk.listed import ListedImage
from mmrl.bulk.stream import BLOCK, BlockJudge, blocks
from mmrl.engine.grid.cluster import RETRIES, check_fraction, connected, places
from mmrl.engine.grid.remote import CPUS
from mmrl.errors import MmrlError, UsageError, first_line
from mmrl.plugins import VARIABLE

if TYPE_CHECKING:
    from mmrl.classifier.predictor import Classifier

PART = 4  # blocks
QUEUED = 2  # parts of a worker: one that it judges, one that waits
OPEN = 4  # parts for each worker that may be under way, or wait for one before them


class PartWorker:
    """Judges parts of a list in a process that may be on another machine.

    Args:
        device: where it computes.
        folder: the driver's working directory, for relative paths; used where it exists.
        workers: threads that decode.
    """

    def __init__(self, classifier: Classifier, asked: AskedOfEach, device: str, folder: str, workers: int) -> None:
        with suppress(OSError):
            os.chdir(folder)
        torch.set_num_threads(CPUS)
        self.judge, self.workers = BlockJudge(classifier.to(device), asked), workers

    def answers(self, images: Sequence[ListedImage], start: int) -> tuple[str, list[Answer]]:
        """Answers of the images from place `start` of the list on, and the name of this machine."""
        return socket.gethostname(), [each for block in blocks(self.judge, images, start=start, workers=self.workers) for each in block]


@dataclass
class _Part:
    """Images of the list from place `start` on."""

    start: int
    images: list[ListedImage]


def ray_blocks(
    judge: BlockJudge, listed: Iterable[ListedImage], address: str | None, gpu_fraction: float, *, start: int = 0,
    workers: int | None = None,
) -> Generator[list[Answer], None, None]:  # fmt: skip
    """Answers of all images, by part, in order.

    Raises:
        UsageError: Ray is not installed, or the cluster has no such GPUs.
        MmrlError: no cluster answers, workers cannot start, or one part has ended its worker several times.
    """
    check_fraction(gpu_fraction)
    with connected(address):
        crew = _PartCrew(judge, gpu_fraction, 1 if workers is None else workers)
        try:
            yield from crew.answers(_parts(iter(listed), start))
        finally:
            crew.end()


def _parts(listed: Iterator[ListedImage], start: int) -> Iterator[_Part]:
    """The list in parts; all but the first begin with a block."""
    while images := list(islice(listed, PART * BLOCK - start % BLOCK)):
        yield _Part(start, images)
        start += len(images)


class _PartCrew:
    """Workers, one for each place in the cluster, and the parts that they judge."""

    def __init__(self, judge: BlockJudge, gpu_fraction: float, workers: int) -> None:
        import ray

        self._fraction = gpu_fraction
        added = {name: os.environ[name] for name in (VARIABLE,) if os.environ.get(name)}
        more = {"runtime_env": {"env_vars": added}} if added else {}
        self._actor: Any = ray.remote(PartWorker).options(num_cpus=CPUS, num_gpus=gpu_fraction, **more)
        classifier = ray.put(judge.classifier)  # sent to each machine once
        self._contract = (classifier, judge.asked, "cuda" if gpu_fraction else "cpu", os.getcwd(), workers)
        self._starting: dict[Any, Any] = {}  # by the reference that says when a worker is ready
        self._queued: dict[Any, int] = {}  # by worker that is ready: parts it has
        self._running: dict[Any, tuple[Any, _Part]] = {}  # by the reference to its answers
        self._deaths: Counter[int] = Counter()
        self._stillborn = 0

    def answers(self, parts: Iterator[_Part]) -> Iterator[list[Answer]]:
        """Answers by part, in order."""
        import ray

        order, waiting, done = deque[int](), deque[_Part](), dict[int, list[Answer]]()  # what was taken; to judge; to give out
        while True:
            most = places(self._fraction)
            for part in islice(parts, max(0, OPEN * most - len(order))):
                order.append(part.start)
                waiting.append(part)
            self._hand_out(waiting, most)
            pending = [*self._starting, *self._running]
            if not order or not pending:
                return
            for reference in ray.wait(pending, num_returns=1)[0]:
                if reference in self._starting:
                    self._welcome(reference)
                else:
                    worker, part = self._running.pop(reference)
                    found = self._collected(reference, worker, part)
                    if found is None:
                        waiting.appendleft(part)
                    else:
                        done[part.start] = found
            while order and order[0] in done:
                yield done.pop(order.popleft())

    def _hand_out(self, waiting: deque[_Part], most: int) -> None:
        """Start workers as there are parts and places for them, and give parts to those that are ready."""
        wanted = min(most, len(waiting) + len(self._running))
        for _ in range(wanted - len(self._starting) - len(self._queued)):
            worker = self._actor.remote(*self._contract)
            self._starting[worker.__ray_ready__.remote()] = worker
        while waiting and self._queued:
            worker = min(self._queued, key=self._queued.__getitem__)
            if self._queued[worker] >= QUEUED:
                return
            part = waiting.popleft()
            self._running[worker.answers.remote(part.images, part.start)] = worker, part
            self._queued[worker] += 1

    def _welcome(self, reference: Any) -> None:
        import ray

        worker = self._starting.pop(reference)
        try:
            ray.get(reference)
        except ray.exceptions.RayError as error:
            self._stillborn += 1
            if self._stillborn > RETRIES:
                raise MmrlError(f"workers cannot start. Is the same mmrl on every machine? {_last_line(error)}") from error
        else:
            self._queued[worker] = 0

    def _collected(self, reference: Any, worker: Any, part: _Part) -> list[Answer] | None:
        """What a worker found; None if it died, and another shall try."""
        import ray

        try:
            machine, found = ray.get(reference)
        except ray.exceptions.RayTaskError as error:
            cause = error.cause
            raise MmrlError(str(cause) if isinstance(cause, MmrlError) else f"a worker failed: {_last_line(error)}") from error
        except ray.exceptions.RayError as error:
            self._buried(worker, part, error)
            return None
        if worker in self._queued:  # else it died since, with another part
            self._queued[worker] -= 1
        _require_files(machine, found)
        return found  # type: ignore[no-any-return]

    def _buried(self, worker: Any, part: _Part, error: Exception) -> None:
        import ray

        self._deaths[part.start] += 1
        if self._deaths[part.start] > RETRIES:
            span = f"images {part.start + 1:,} to {part.start + len(part.images):,}"
            raise MmrlError(
                f"the worker that judged {span} died {RETRIES + 1} times, as when memory runs out. {_last_line(error)} What is written "
                "stays: --resume goes on."
            ) from error
        if self._queued.pop(worker, None) is not None:  # else it is known of another part that it had
            with suppress(Exception):
                ray.kill(worker)  # it may be alive behind a lost connection

    def end(self) -> None:
        import ray

        for worker in (*self._starting.values(), *self._queued):
            with suppress(Exception):
                ray.kill(worker)


def _require_files(machine: str, found: Sequence[Answer]) -> None:
    """Raises UsageError if a machine lacks a file that this one has."""
    if machine == socket.gethostname():
        return
    for each in found:
        if each.error.startswith("no such image") and os.path.exists(each.image):
            raise UsageError(f"{machine} has no file {each.image}, and this machine has. Every machine needs the images at the same paths.")


def _last_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else first_line(error)
