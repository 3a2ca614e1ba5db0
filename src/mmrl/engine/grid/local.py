"""Jobs on this machine: one process, or several that share the folder. Processes on other machines may join in the same folder."""

from __future__ import annotations

import multiprocessing
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import datetime, timezone

import torch

from mmrl.clip import load_clip
from mmrl.data.parallel import cores
from mmrl.engine.context import Bench, Context
from mmrl.engine.grid.attempt import (
    WAIT,
    Attempt,
    Outcome,
    Say,
    computing,
    failed_since,
    failure_of,
    missing_tests,
    outcome_of,
    recorded_alone,
)
from mmrl.engine.grid.store import ResultsFolder
from mmrl.engine.jobs import Job
from mmrl.engine.memory import RowRoom
from mmrl.engine.shared import Shared
from mmrl.engine.turns import Turns, take_turns
from mmrl.errors import MmrlError, Notice
from mmrl.reports.status import held_locks, holders

RETRIES = 1  # of a job whose process was killed while this command ran: that may have been the process's own end
KILLED = (
    "its process was killed, twice, which is what a lack of memory does; use fewer --jobs, --alone or --set memory_gib=4. "
    "It is tried again then."
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


def work_through(jobs: Sequence[Job], context: Context, store: ResultsFolder, began: datetime, say: Say, *, processes: int = 1) -> None:
    """Compute every job that no other process holds; look again at those that one did, until all are done or failed.

    Jobs that train on the same images do so together: as many as the bench allows, but no more than a fair part of what is ahead.

    Args:
        began: failures noted after this are not tried again; a job whose process was killed after this is, once.
        processes: how many work through the jobs, this one among them; others on the folder are counted besides.
    """
    waiting = list(jobs)
    while waiting:
        look = _Look(waiting, context, store, began, say)
        with recorded_alone():
            while look.ahead:
                fair = -(-len(look.ahead) // max(processes, 1 + holders(held_locks(store.folder))))
                with Shared() as shared:
                    take_turns(look.rows(min(fair, context.bench.together), shared), context.clip.device)
        if len(look.held) == len(waiting):
            time.sleep(WAIT)
        waiting = look.held


class _Look:
    """One look at the jobs that wait, in their order: those `ahead` were not looked at yet, those `held` are another process's."""

    def __init__(self, jobs: Sequence[Job], context: Context, store: ResultsFolder, began: datetime, say: Say) -> None:
        self.ahead, self.held = {job.key: job for job in jobs}, list[Job]()
        self._context, self._store, self._began, self._say = context, store, began, say

    def rows(self, most: int, shared: Shared) -> Iterator[Turns[None]]:
        """The first job that is free, and those of the same images: `most` in all, as long as memory allows. Each is claimed when it is
        asked for.

        What was in a process that was killed shares with fewer, should it have been for lack of memory; with none at its last try.
        """
        first, begun, room = None, 0, RowRoom(self._context.clip.device, self._context.bench.processes)
        for job in list(self.ahead.values()):
            if first and (begun >= most or job.images != first.images):
                continue
            deaths = self._store.deaths(job.key)
            alone = not job.images or any(death > self._began for death in deaths)
            if first and alone:
                continue
            del self.ahead[job.key]
            if not missing_tests(job, self._store) or failed_since(job, self._store, self._began):
                continue
            claim = self._store.claim(job.key)
            if claim is None:
                self.held.append(job)
                continue
            if first is None:
                first, most = job, 1 if alone else max(1, most >> len(deaths))
            begun += 1
            yield self._attempt(job, claim, shared)
            if not room.for_one_more(begun):
                most = begun

    def _attempt(self, job: Job, claim: int, shared: Shared) -> Turns[None]:
        store, attempt = self._store, Attempt(job, self._store, self._say)
        try:
            if not missing_tests(job, store):  # done by another process between the look and the claim
                return
            if len([death for death in store.died.get(job.key, ()) if death > self._began]) > RETRIES:  # it takes processes along
                raise MmrlError(KILLED)
            work = store.work(job.key) if job.training else None
            yield from computing(job, self._context, work, store.run(job.key), attempt.save, shared)
            attempt.succeeded()
        except KeyboardInterrupt as error:
            attempt.ended(failure_of(job, error, self._context.clip.device))
            raise
        except Exception as error:  # one job must not end the others
            attempt.ended(failure_of(job, error, self._context.clip.device))
        finally:
            store.release(job.key, claim)


def _spawn(jobs: Sequence[Job], bench: Bench, store: ResultsFolder, count: int, device: str, began: datetime) -> None:
    context = multiprocessing.get_context("spawn")  # a fork would share CUDA and thread pools
    devices = [device]
    if device == "cuda":
        devices = [f"cuda:{index}" for index in range(max(1, torch.cuda.device_count()))]
    threads = max(1, cores() // count)  # by the command alone, however much is left to do: other threads round otherwise
    count = min(count, len(jobs))
    bench = replace(bench, processes=-(-count // len(devices)))
    arguments = [(jobs, bench, store.folder, devices[i % len(devices)], threads, began, count) for i in range(count)]
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


def _worker(jobs: Sequence[Job], bench: Bench, folder: str, device: str, threads: int, began: datetime, count: int) -> None:
    torch.set_num_threads(threads)
    warnings.simplefilter("ignore", Notice)  # the command said it
    try:
        context = Context(bench, load_clip(bench.backbone, device=device))
        work_through(jobs, context, ResultsFolder(folder), began, print_line, processes=count)
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    except MmrlError as error:
        print_line(f"error: {error}")
        raise SystemExit(error.exit_code) from None


def print_line(text: str) -> None:
    print(text, flush=True)
