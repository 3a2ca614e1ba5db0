"""Jobs on a Ray cluster.

This process, the driver, claims jobs, hands them to workers and writes what they send back: the results folder need not be shared.
Every machine needs the same mmrl, and the data sets and backbone files at the same paths; nothing but the jobs is sent to it.
"""

from __future__ import annotations

import logging
import os
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from mmrl.data.parallel import cores
from mmrl.engine.context import Bench
from mmrl.engine.grid.attempt import WAIT, Attempt, Outcome, Say, failed_since, failure_of, missing_tests, outcome_of
from mmrl.engine.grid.remote import CPUS, Result, Worker, pack, unpack
from mmrl.engine.grid.store import ResultsFolder
from mmrl.engine.jobs import Job
from mmrl.errors import MmrlError, UsageError
from mmrl.plugins import VARIABLE

RETRIES = 3  # of a job whose worker process died
PATIENCE = 15.0  # seconds for a cluster to answer
QUIET: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
HERE = torch.device("cpu")  # of the driver
PROBE = "import ray, sys; ray.init(address=sys.argv[1], log_to_driver=False); ray.shutdown()"


def run_on_ray(
    jobs: Sequence[Job], bench: Bench, store: ResultsFolder, *, address: str | None = None, gpu_fraction: float = 0.0, say: Say
) -> Outcome:
    """Compute what is missing on a Ray cluster. A job that fails is noted, and the others go on.

    A process that is connected to Ray already stays so, and `address` is not used.

    Args:
        address: 'auto' for the cluster that this machine belongs to, or its HOST:PORT; None starts one here, and ends it.
        gpu_fraction: GPUs for each run, at most 1; 0 computes on the CPU.

    Raises:
        UsageError: Ray is not installed, or the cluster has no such GPUs.
        MmrlError: no cluster answers at `address`, or workers cannot start.
    """
    check_fraction(gpu_fraction)
    began = datetime.now(timezone.utc)
    todo = [job for job in jobs if missing_tests(job, store)]
    if todo:
        with connected(address):
            _Crew(bench, store, round(gpu_fraction, 4), began, say).work_through(todo)
    return outcome_of(jobs, store, began)


def check_fraction(gpu_fraction: float) -> None:
    """Raises UsageError where a worker cannot have that many GPUs."""
    if not (gpu_fraction == 0 or 0.01 <= gpu_fraction <= 1):
        raise UsageError(f"--gpu-fraction {gpu_fraction:g}: a run uses one GPU or a part of it. Give 0.01 to 1, or 0 for the CPU.")


@contextmanager
def connected(address: str | None) -> Iterator[None]:
    """Ray, for a while. Raises UsageError where it is not installed, MmrlError where it cannot be reached or started."""
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")  # under `uv run`, Ray would send the working directory to all machines
    try:
        import ray
    except ImportError as error:
        raise UsageError("--engine ray needs Ray: pip install 'mmrl[ray]'.") from error
    if ray.is_initialized():
        yield
        return
    if address is not None:
        _check_answers(address)
    try:
        if address is None:
            ray.init(address="local", num_cpus=cores(), include_dashboard=False, **QUIET)
        else:
            ray.init(address=address, **QUIET)
    except Exception as error:
        raise MmrlError(f"Ray cannot be {'started here' if address is None else f'reached at {address}'}: {error}") from error
    try:
        yield
    finally:
        ray.shutdown()


def _check_answers(address: str) -> None:
    """Connect in another process first: where nothing answers, Ray tries for minutes and then ends the process."""
    host, _, port = address.rpartition(":")
    if address != "auto" and ("/" in host or not host or not port.isdecimal()):
        raise UsageError(f"--address '{address}': give 'auto', or HOST:PORT of the cluster that this machine belongs to.")
    try:
        if address != "auto":
            socket.create_connection((host.strip("[]"), int(port)), timeout=PATIENCE).close()
        done = subprocess.run([sys.executable, "-c", PROBE, address], capture_output=True, timeout=PATIENCE, check=False)
        reached, said = done.returncode == 0, done.stderr
    except subprocess.TimeoutExpired as error:
        reached, said = False, error.stderr or b""
    except (OSError, OverflowError):  # refused, no such host, no such port
        reached, said = False, b""
    if reached:
        return
    if b"AuthToken" in said or b"AuthenticationError" in said:
        raise MmrlError(f"the Ray cluster at {address} wants its authentication token. Install it here and set RAY_AUTH_MODE=token.")
    raise MmrlError(
        f"no Ray cluster answers at {address}. Start one with `ray start --head` and give HOST:PORT as it prints them, or 'auto' on "
        "one of its machines; without --address, one is started here for the time of this command."
    )


def places(gpu_fraction: float) -> int:
    """Workers that the cluster, as it is now, has room for. Raises UsageError if there is none, however long one waits."""
    import ray

    count = 0
    for node in ray.nodes():
        has = node["Resources"] if node["Alive"] else {}
        by_cpu = int(has.get("CPU", 0)) // CPUS
        by_gpu = int(has.get("GPU", 0)) * int(1 / gpu_fraction + 1e-6) if gpu_fraction else by_cpu
        count += min(by_cpu, by_gpu)
    if not count:
        lacks = f"no GPU, and --gpu-fraction is {gpu_fraction:g}; give 0 to compute on CPUs" if gpu_fraction else "no CPU"
        raise UsageError(f"no machine of the Ray cluster has what a run needs: {lacks}, or add a machine to the cluster.")
    return count


@dataclass
class _Run:
    """A job at work: by whom, and the claim on it."""

    worker: Any
    attempt: Attempt
    claim: int


class _Crew:
    """Workers, one for each place in the cluster, and the jobs that they compute.

    A worker is a Ray actor: it keeps its GPU for as long as it lives, as the backbone in it must. Those that the cluster has no room for
    yet are given nothing.
    """

    def __init__(self, bench: Bench, store: ResultsFolder, gpu_fraction: float, began: datetime, say: Say) -> None:
        import ray

        self.store, self.began, self.say = store, began, say
        self._gpu_fraction = gpu_fraction
        root = bench.root or os.environ.get("DATA")  # the workers' environment may be another
        sent = replace(bench, root=Path(root) if root else None)
        node = ray.get_runtime_context().get_node_id()
        added = {name: os.environ[name] for name in (VARIABLE,) if os.environ.get(name)}
        more = {"runtime_env": {"env_vars": added}} if added else {}
        self._actor: Any = ray.remote(Worker).options(num_cpus=CPUS, num_gpus=gpu_fraction, **more)
        self._contract = (sent, "cuda" if gpu_fraction else "cpu", node, os.getcwd())
        self._starting: dict[Any, Any] = {}  # by the reference that says when it is ready
        self._free: list[Any] = []
        self._running: dict[Any, _Run] = {}  # by the reference to its result
        self._deaths: Counter[str] = Counter()
        self._stillborn = 0

    def work_through(self, jobs: Sequence[Job]) -> None:
        """Have every job computed that no other process holds, and look again at those that one did, until all are done or failed."""
        import ray

        self.say(f"Ray: up to {self._places()} runs at a time")
        waiting = list(jobs)
        try:
            while waiting or self._running:
                waiting = self._hand_out(waiting)
                pending = [*self._starting, *self._running]
                if waiting and not pending:  # all of them are held elsewhere
                    time.sleep(WAIT)
                for reference in ray.wait(pending, timeout=WAIT)[0] if pending else ():
                    if reference in self._starting:
                        self._welcome(reference)
                    else:
                        waiting += self._collect(reference)
        except KeyboardInterrupt as error:
            for run in self._running.values():
                run.attempt.ended(failure_of(run.attempt.job, error, HERE))
            raise
        finally:
            for run in self._running.values():
                ray.kill(run.worker)
                self.store.release(run.attempt.job.key, run.claim)
            for worker in (*self._starting.values(), *self._free):
                ray.kill(worker)

    def _places(self) -> int:
        return places(self._gpu_fraction)

    def _hand_out(self, waiting: list[Job]) -> list[Job]:
        """Give jobs to free workers. Returns those that still wait."""
        wanted = min(self._places(), len(waiting) + len(self._running))
        for _ in range(wanted - len(self._starting) - len(self._free) - len(self._running)):
            worker = self._actor.remote(*self._contract)
            self._starting[worker.__ray_ready__.remote()] = worker
        still: list[Job] = []
        for place, job in enumerate(waiting):
            if not self._free:
                return [*still, *waiting[place:]]
            if missing_tests(job, self.store) and not failed_since(job, self.store, self.began):
                claim = self.store.claim(job.key)
                if claim is None:  # another process computes it
                    still.append(job)
                else:
                    self._start(job, claim)
        return still

    def _start(self, job: Job, claim: int) -> None:
        import ray

        if not missing_tests(job, self.store):  # done by another process between the look and the claim
            self.store.release(job.key, claim)
            return
        home = self.store.work(job.key).absolute()
        kept = [ray.put(pack(home))] if home.is_dir() and len(ray.nodes()) > 1 else []
        worker = self._free.pop()
        reference = worker.compute.remote(job, self.store.run(job.key), home, kept)
        self._running[reference] = _Run(worker, Attempt(job, self.store, self.say), claim)

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
            self._free.append(worker)

    def _collect(self, reference: Any) -> list[Job]:
        """Write what a worker sends. Returns the job if it must be computed again."""
        run = self._running[reference]
        result = self._answer(reference, run)
        del self._running[reference]  # not before: what is in there is taken care of when the user stops us
        try:
            if result is None:
                return [run.attempt.job]
            self._write(run.attempt, result)
            return []
        finally:
            self.store.release(run.attempt.job.key, run.claim)

    def _answer(self, reference: Any, run: _Run) -> Result | None:
        """What a worker sends, or None if it died and another shall try."""
        import ray

        job = run.attempt.job
        try:
            result: Result = ray.get(reference)
        except ray.exceptions.RayTaskError as error:  # it cannot be sent
            result = Result(failure=failure_of(job, error, HERE))
        except ray.exceptions.RayError as error:
            ray.kill(run.worker)  # it may be alive behind a lost connection
            self._deaths[job.key] += 1
            if self._deaths[job.key] <= RETRIES:
                self.say(f"{job.label}: its worker process died; once more")
                return None
            dead = MmrlError(f"its worker process died {RETRIES + 1} times, as when memory runs out. {_last_line(error)}")
            return Result(failure=failure_of(job, dead, HERE))
        self._free.append(run.worker)
        return result

    def _write(self, attempt: Attempt, result: Result) -> None:
        if result.files:
            unpack(result.files, self.store.work(attempt.job.key))
        if result.record:
            attempt.save(result.record)
        if result.failure is None:
            attempt.succeeded()
        else:  # by this machine's clock, which `began` was read from
            here = result.failure.environment.model_copy(update={"started": datetime.now(timezone.utc)})
            attempt.ended(result.failure.model_copy(update={"environment": here}))


def _last_line(error: BaseException) -> str:
    return next((line.strip() for line in reversed(str(error).splitlines()) if line.strip()), type(error).__name__)
