"""Groups on this machine: one process, or several that share the folder. Processes on other machines may join in the same folder."""

from __future__ import annotations

import multiprocessing
import os
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Literal

import torch

from mmrl.clip import Clip, load_clip
from mmrl.engine.grid.binding import Bench, Context, Group
from mmrl.engine.grid.store import ResultsFolder
from mmrl.engine.grid.work import run_group
from mmrl.engine.run_record import environment
from mmrl.errors import MmrlError
from mmrl.reports.cells import CellRecord, Failure

WAIT = 1.0  # seconds between looks at groups that another process holds
Say = Callable[[str], None]


@dataclass
class Outcome:
    """What became of the groups: keys by what happened."""

    done: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)


def missing_cells(group: Group, store: ResultsFolder) -> set[str]:
    """Keys of the group's cells that have no (whole) result."""
    return {key for _, key in group.cells if not store.has("cells", key)}


def run_here(
    groups: Sequence[Group], bench: Bench, store: ResultsFolder, *, jobs: int = 1, device: str = "cpu", clip: Clip, say: Say
) -> Outcome:
    """Compute what is missing. A group that fails is noted, and the others go on.

    Args:
        jobs: processes; with CUDA they share the devices out.
        clip: the backbone, for one process.
    """
    todo = [group for group in groups if missing_cells(group, store)]
    began = datetime.now(timezone.utc)
    if todo and jobs > 1:
        _spawn(todo, bench, store, min(jobs, len(todo)), device, began)
    elif todo:
        work_through(todo, Context(bench, clip), store, began, say)
    outcome = Outcome()
    for group in groups:
        lacks = missing_cells(group, store)
        failed = lacks and _failed_since(group, store, began)
        (outcome.failed if failed else outcome.left if lacks else outcome.done).append(group.key)
    return outcome


def work_through(groups: Sequence[Group], context: Context, store: ResultsFolder, began: datetime, say: Say) -> None:
    """Compute every group that no other process holds; look again at those that one did, until all are done or failed.

    Args:
        began: failures noted after this are not tried again.
    """
    waiting = list(groups)
    while waiting:
        held_elsewhere = []
        for group in waiting:
            if not missing_cells(group, store) or _failed_since(group, store, began):
                continue
            claim = store.claim(group.key)
            if claim is None:
                held_elsewhere.append(group)
                continue
            try:
                _attempt(group, context, store, say)
            finally:
                store.release(group.key, claim)
        if len(held_elsewhere) == len(waiting):
            time.sleep(WAIT)
        waiting = held_elsewhere


def _attempt(group: Group, context: Context, store: ResultsFolder, say: Say) -> None:
    began = time.monotonic()
    missing = missing_cells(group, store)
    if not missing:  # done by another process between the look and the claim
        return
    tops: list[str] = []

    def save(kind: str, key: str, record: object) -> None:
        store.write(kind, key, record)  # type: ignore[arg-type]
        if isinstance(record, CellRecord):
            tops.append(f"{record.dataset} {record.classes} {record.scores.top1:.1%}")

    try:
        run_group(group, context, store.work(group.key) if group.training else None, save, missing=missing)
    except KeyboardInterrupt:
        note_failure(group, store, "cancelled", "stopped by the user", "", context.clip.device)
        raise
    except Exception as error:  # one group must not end the others
        trace = "" if isinstance(error, MmrlError) else traceback.format_exc()
        note_failure(group, store, "failed", str(error) or type(error).__name__, trace, context.clip.device)
        say(f"failed: {group.label}: {error}")
        return
    store.forget("failed", group.key)
    say(f"{group.label}: {', '.join(tops)} ({time.monotonic() - began:.0f} s)")


def note_failure(
    group: Group, store: ResultsFolder, kind: Literal["failed", "cancelled"], error: str, trace: str, device: torch.device
) -> None:
    where = environment(device, datetime.now(timezone.utc))
    failure = Failure(
        schema="mmrl.failure/1", group=group.key, kind=kind, what=group.label, error=error, traceback=trace, environment=where
    )
    store.write("failed", group.key, failure)


def _failed_since(group: Group, store: ResultsFolder, began: datetime) -> bool:
    failure = store.read("failed", group.key)
    return isinstance(failure, Failure) and failure.kind == "failed" and failure.environment.started >= began


def _spawn(groups: Sequence[Group], bench: Bench, store: ResultsFolder, jobs: int, device: str, began: datetime) -> None:
    context = multiprocessing.get_context("spawn")  # a fork would share CUDA and thread pools
    devices = [device]
    if device == "cuda":
        devices = [f"cuda:{index}" for index in range(max(1, torch.cuda.device_count()))]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = max(1, cores // jobs)
    arguments = [(groups, bench, store.folder, devices[i % len(devices)], threads, began) for i in range(jobs)]
    processes = [context.Process(target=_worker, args=each, name=f"mmrl-{i}") for i, each in enumerate(arguments)]
    for process in processes:
        process.start()
    try:
        for process in processes:
            process.join()
    except KeyboardInterrupt:
        for process in processes:  # each got the same signal; they note what they leave
            process.join()
        raise


def _worker(groups: Sequence[Group], bench: Bench, folder: str, device: str, threads: int, began: datetime) -> None:
    torch.set_num_threads(threads)
    try:
        work_through(groups, Context(bench, load_clip(bench.backbone, device=device)), ResultsFolder(folder), began, print_line)
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    except MmrlError as error:
        print_line(f"error: {error}")
        raise SystemExit(error.exit_code) from None


def print_line(text: str) -> None:
    print(text, flush=True)
