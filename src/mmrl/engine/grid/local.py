"""Jobs on this machine: one process, or several that share the folder. Processes on other machines may join in the same folder."""

from __future__ import annotations

import multiprocessing
import os
import time
import warnings
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timezone

import torch

from mmrl.clip import load_clip
from mmrl.engine.context import Bench, Context
from mmrl.engine.grid.attempt import WAIT, Attempt, Outcome, Say, compute, failed_since, failure_of, missing_tests, outcome_of
from mmrl.engine.grid.store import ResultsFolder
from mmrl.engine.jobs import Job
from mmrl.errors import MmrlError, Notice

RETRIES = 1  # of a job whose process was killed while this command ran: that may have been the process's own end
KILLED = (
    "its process was killed, twice, which is what a lack of memory does; use fewer --jobs, or --set memory_gib=4. It is tried again then."
)


def run_here(
    jobs: Sequence[Job], context: Context, store: ResultsFolder, *, processes: int = 1, device: str = "cpu", say: Say
) -> Outcome:
    """Compute what is missing. A job that fails is noted, and the others go on.

    Args:
        context: of this process; others make their own on `device`.
        processes: with CUDA they share the devices out.
    """
    todo = [job for job in jobs if missing_tests(job, store)]
    began = datetime.now(timezone.utc)
    if todo and processes > 1:
        _spawn(todo, context.bench, store, processes, device, began)
    elif todo:
        work_through(todo, context, store, began, say)
    return outcome_of(jobs, store, began)


def work_through(jobs: Sequence[Job], context: Context, store: ResultsFolder, began: datetime, say: Say) -> None:
    """Compute every job that no other process holds; look again at those that one did, until all are done or failed.

    Args:
        began: failures noted after this are not tried again; a job whose process was killed after this is, once.
    """
    waiting = list(jobs)
    while waiting:
        held_elsewhere = []
        for job in waiting:
            if not missing_tests(job, store) or failed_since(job, store, began):
                continue
            claim = store.claim(job.key)
            if claim is None:
                held_elsewhere.append(job)
                continue
            attempt = Attempt(job, store, say)
            try:
                if not missing_tests(job, store):  # done by another process between the look and the claim
                    continue
                if len([death for death in store.died.get(job.key, ()) if death > began]) > RETRIES:  # it takes processes along
                    raise MmrlError(KILLED)
                compute(job, context, store.work(job.key) if job.training else None, store.run(job.key), attempt.save)
                attempt.succeeded()
            except KeyboardInterrupt as error:
                attempt.ended(failure_of(job, error, context.clip.device))
                raise
            except Exception as error:  # one job must not end the others
                attempt.ended(failure_of(job, error, context.clip.device))
            finally:
                store.release(job.key, claim)
        if len(held_elsewhere) == len(waiting):
            time.sleep(WAIT)
        waiting = held_elsewhere


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _spawn(jobs: Sequence[Job], bench: Bench, store: ResultsFolder, count: int, device: str, began: datetime) -> None:
    context = multiprocessing.get_context("spawn")  # a fork would share CUDA and thread pools
    devices = [device]
    if device == "cuda":
        devices = [f"cuda:{index}" for index in range(max(1, torch.cuda.device_count()))]
    threads = max(1, cores() // count)  # by the command alone, however much is left to do: other threads round otherwise
    count = min(count, len(jobs))
    bench = replace(bench, processes=-(-count // len(devices)))
    arguments = [(jobs, bench, store.folder, devices[i % len(devices)], threads, began) for i in range(count)]
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


def _worker(jobs: Sequence[Job], bench: Bench, folder: str, device: str, threads: int, began: datetime) -> None:
    torch.set_num_threads(threads)
    warnings.simplefilter("ignore", Notice)  # the command said it
    try:
        work_through(jobs, Context(bench, load_clip(bench.backbone, device=device)), ResultsFolder(folder), began, print_line)
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    except MmrlError as error:
        print_line(f"error: {error}")
        raise SystemExit(error.exit_code) from None


def print_line(text: str) -> None:
    print(text, flush=True)
