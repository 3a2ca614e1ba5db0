"""Work done ahead by threads: Pillow decodes and resizes without Python's lock, so they scale with the cores."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

A = TypeVar("A")
B = TypeVar("B")

MOST = 8  # beyond this, one test pass on a GPU waits for the GPU


def usual_workers(read: object = None) -> int:
    """A sensible number of threads for images that `read` gives: one a core this process may use, at most 8.

    Where pictures are drawn in memory (`read.in_memory`), none: that is Python's work, which threads only hinder.
    """
    if getattr(read, "in_memory", False):
        return 0
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(MOST, cores)


def ordered(function: Callable[[A], B], tasks: Iterable[A], workers: int, ahead: int) -> Iterator[B]:
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
