"""Peak resident memory of one side's training step, and how much the plain side will need.

Each side is measured in a fresh process of its own, since an allocator keeps what it once had and one side's peak would hide the other's.
That process builds the model and the class list, then sets the kernel's high-water mark (VmHWM) back by writing 5 to /proc/self/clear_refs,
takes two steps and reads the mark. What it reads is the whole process: Python, torch, the frozen weights and what the step adds. Where the
mark cannot be set back (not Linux), it is the peak of the whole life of the process, class list and model building included.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks import common, sides
from benchmarks.sides import Work
from mmrl.clip import Clip
from mmrl.engine.memory import forget_peak, peak_resident, resident

PROCESS = 2**30  # bytes of Python and torch
OVER = 1.6  # of what autograd keeps: values in passing, and the allocator's holes (1.5 was measured)


class Peak(NamedTuple):
    """Bytes resident before the steps and the most during them; seconds of the last step, and the fast path's prompts at a time."""

    before: int
    most: int
    seconds: float
    chunk: int | None


def _measure(work: Work, side: str, threads: int, steps: int, clock: Callable[[], float]) -> Peak:
    torch.set_num_threads(threads)
    step = sides.make(work, side)
    before = resident()
    forget_peak()
    seconds = common.interleaved({side: step}, steps, clock)[side]
    return Peak(before, peak_resident(), seconds[-1], step.chunk)


def peak_of(work: Work, side: str, *, threads: int, steps: int = 2, clock: Callable[[], float] = time.perf_counter) -> Peak | None:
    """Peak of `side`, or None if its process was killed, which is what a lack of memory does."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        try:
            return pool.submit(_measure, work, side, threads, steps, clock).result()
        except BrokenProcessPool:
            return None


def plain_needs(work: Work, clip: Clip) -> int:
    """Estimated bytes of a process that takes a plain step: Python and torch, the weights, the optimiser, and what autograd keeps.

    The last is linear in the classes, so two small class lists tell it. Encoding the zero-shot prompts once before the steps keeps nothing
    and needs less. Meant to be a little too much: for ViT-S/16 and 100 classes 8.9 GiB for a peak of 8.5 (CoCoOp), 3.2 for 3.0 (CoOp).
    """
    few, more = _kept(work, clip, 2), _kept(work, clip, 6)
    weights = sum(p.untyped_storage().nbytes() for p in clip.model.parameters())
    trained = sum(4 * p.nbytes for p in sides.make_method(work, clip).parameters())  # gradients, two moments, the parameters themselves
    return int(PROCESS + weights + trained + OVER * (few + (more - few) / 4 * (work.classes - 2)))


def _kept(work: Work, clip: Clip, classes: int) -> int:
    """Bytes of everything that the plain side's forward pass saves for the backward pass, weights aside."""
    return saved_bytes(clip, sides.plain_step(work, clip, classes=classes).loss)


def saved_bytes(clip: Clip, run: Callable[[], object]) -> int:
    """Bytes that `run` keeps for the backward pass, the model's weights aside."""
    weights = {p.untyped_storage().data_ptr() for p in clip.model.parameters()}
    kept: dict[int, tuple[Tensor, int]] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            # The reference keeps the address from being used again; detached, as the graph holds this function, and would be held by it.
            kept[storage.data_ptr()] = (tensor.detach(), storage.nbytes())
        return tensor.detach()

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = run()
    del result
    return sum(size for _, size in kept.values())
