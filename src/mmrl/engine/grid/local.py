"""Groups on this machine: one process, or several that share the folder. Processes on other machines may join in the same folder."""

from __future__ import annotations

import multiprocessing
import os
import time
import warnings
from collections.abc import Sequence
from datetime import datetime, timezone

import torch

from mmrl.clip import Clip, load_clip
from mmrl.engine.grid.attempt import WAIT, Attempt, Outcome, Say, failed_since, failure_of, missing_cells, missing_keys, outcome_of
from mmrl.engine.grid.binding import Bench, Context, Group
from mmrl.engine.grid.store import ResultsFolder
from mmrl.engine.grid.work import run_group
from mmrl.errors import MmrlError, Notice

RETRIES = 1  # of a group whose process was killed while this command ran: that may have been the process's own end
KILLED = (
    "its process was killed, twice, which is what a lack of memory does; use fewer --jobs, or --set memory_gib=4. It is tried again then."
)


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
        _spawn(todo, bench, store, jobs, device, began)
    elif todo:
        work_through(todo, Context(bench, clip), store, began, say)
    return outcome_of(groups, store, began)


def work_through(groups: Sequence[Group], context: Context, store: ResultsFolder, began: datetime, say: Say) -> None:
    """Compute every group that no other process holds; look again at those that one did, until all are done or failed.

    Args:
        began: failures noted after this are not tried again; a group whose process was killed after this is, once.
    """
    waiting = list(groups)
    while waiting:
        held_elsewhere = []
        for group in waiting:
            if not missing_cells(group, store) or failed_since(group, store, began):
                continue
            claim = store.claim(group.key)
            if claim is None:
                held_elsewhere.append(group)
                continue
            try:
                if len([death for death in store.died.get(group.key, ()) if death > began]) > RETRIES:  # it takes processes along
                    Attempt(group, store, say).ended(failure_of(group, MmrlError(KILLED), context.clip.device))
                else:
                    _attempt(group, context, store, say)
            finally:
                store.release(group.key, claim)
        if len(held_elsewhere) == len(waiting):
            time.sleep(WAIT)
        waiting = held_elsewhere


def _attempt(group: Group, context: Context, store: ResultsFolder, say: Say) -> None:
    if not missing_cells(group, store):  # done by another process between the look and the claim
        return
    attempt = Attempt(group, store, say)
    try:
        run_group(group, context, store.work(group.key) if group.training else None, attempt.save, missing=missing_keys(group, store))
    except KeyboardInterrupt as error:
        attempt.ended(failure_of(group, error, context.clip.device))
        raise
    except Exception as error:  # one group must not end the others
        attempt.ended(failure_of(group, error, context.clip.device))
    else:
        attempt.succeeded()


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _spawn(groups: Sequence[Group], bench: Bench, store: ResultsFolder, jobs: int, device: str, began: datetime) -> None:
    context = multiprocessing.get_context("spawn")  # a fork would share CUDA and thread pools
    devices = [device]
    if device == "cuda":
        devices = [f"cuda:{index}" for index in range(max(1, torch.cuda.device_count()))]
    threads = max(1, cores() // jobs)  # by the command alone, however much is left to do: other threads round otherwise
    count = min(jobs, len(groups))
    arguments = [(groups, bench, store.folder, devices[i % len(devices)], threads, began) for i in range(count)]
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
    warnings.simplefilter("ignore", Notice)  # the command said it
    try:
        work_through(groups, Context(bench, load_clip(bench.backbone, device=device)), ResultsFolder(folder), began, print_line)
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    except MmrlError as error:
        print_line(f"error: {error}")
        raise SystemExit(error.exit_code) from None


def print_line(text: str) -> None:
    print(text, flush=True)
