"""Background work in threads. Pillow decodes and resizes without holding Python's lock, so threads scale with the cores."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

A = TypeVar("A")
B = TypeVar("B")

MOST = 8  # with more, a test pass on a GPU waits for the GPU


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def usual_workers(read: object = None) -> int:
    """A default number of threads to read images with `read`: one per core that this process may use, at most 8.

    It is 0 if `read` draws images in memory (`read.in_memory`): threads do not speed up Python code.
    """
    if getattr(read, "in_memory", False):
        return 0
    return min(MOST, cores())


def ordered(function: Callable[[A], B], tasks: Iterable[A], workers: int, ahead: int) -> Iterator[B]:
    """`function` of each task, in order; with `workers` threads, up to `ahead` results are computed in advance."""
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
