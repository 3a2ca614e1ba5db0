"""A try at one job, wherever it is computed: what it gives is written, and how it ended is noted."""

from __future__ import annotations

import shutil
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path

import torch

from mmrl.data import BrokenImageWarning
from mmrl.engine.adapter import CONFIG
from mmrl.engine.checkpoint import STATE
from mmrl.engine.context import Context
from mmrl.engine.fit import Place
from mmrl.engine.grid.store import ResultsFolder
from mmrl.engine.jobs import Job
from mmrl.engine.record import environment
from mmrl.engine.run import Save, running
from mmrl.engine.shared import Shared
from mmrl.engine.turns import Turns
from mmrl.errors import DamagedError, MmrlError, first_line
from mmrl.reports.plans import Failure
from mmrl.reports.records import RunRecord

WAIT = 1.0  # seconds between looks at jobs that another process holds
Say = Callable[[str], None]


@dataclass
class Outcome:
    """What became of the jobs: keys by what happened."""

    done: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)


def missing_tests(job: Job, store: ResultsFolder) -> set[str]:
    """Keys of the job's tests that have no (whole) score, or of all where the training is not described."""
    record, keys = store.run(job.key), {key for _, key in job.tests}
    if record is None or (job.training and record.training is None):
        return keys
    return keys - {test.key for test in record.tests}


def computing(
    job: Job, context: Context, work: Path | None, before: RunRecord | None, save: Save, shared: Shared | None = None
) -> Turns[None]:
    """Run `job`, going on where it was interrupted in the folder `work`; where that is damaged, from the start.

    Raises:
        as `running`.
    """
    bench = context.bench
    place = Place(
        work, resume=True, progress=False, workers=bench.workers, skip_broken=bench.skip_broken, processes=bench.processes,
        images_disk_gib=bench.cache_gib,
    )  # fmt: skip
    if work is not None and (work / CONFIG).exists() and not (work / STATE).exists():  # half deleted: nothing to go on from
        shutil.rmtree(work)
    try:
        yield from running(job, context, place, before=before, save=save, shared=shared)
    except DamagedError:
        if work is None:
            raise
        shutil.rmtree(work)
        yield from running(job, context, place, before=before, save=save, shared=shared)


@contextmanager
def recorded_alone() -> Iterator[None]:
    """What records keep is not said besides."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", BrokenImageWarning)
        yield


def failed_since(job: Job, store: ResultsFolder, began: datetime) -> bool:
    failure = store.read("failed", job.key)
    return isinstance(failure, Failure) and failure.kind == "failed" and failure.environment.started >= began


def outcome_of(jobs: Sequence[Job], store: ResultsFolder, began: datetime) -> Outcome:
    """What became of the jobs since `began`."""
    outcome = Outcome()
    for job in jobs:
        lacks = missing_tests(job, store)
        failed = lacks and failed_since(job, store, began)
        (outcome.failed if failed else outcome.left if lacks else outcome.done).append(job.key)
    return outcome


def failure_of(job: Job, error: BaseException, device: torch.device) -> Failure:
    """The note on what ended the job; its traceback is there unless the message says all."""
    stopped = isinstance(error, KeyboardInterrupt)
    clear = stopped or isinstance(error, MmrlError)
    return Failure(
        schema="mmrl.failure/2",
        run=job.key,
        kind="cancelled" if stopped else "failed",
        what=job.label,
        error="stopped by the user" if stopped else str(error) if clear else first_line(error),
        traceback="" if clear else "".join(traceback.format_exception(error)),
        environment=environment(device, datetime.now(timezone.utc)),
    )


class Attempt:
    """One try at `job`, which this process has claimed."""

    def __init__(self, job: Job, store: ResultsFolder, say: Say) -> None:
        self.job, self.store, self._say = job, store, say
        self._tops: dict[str, str] = {}
        self._began = time.monotonic()

    def save(self, record: RunRecord) -> None:
        self.store.add_run(record)
        asked = {key for _, key in self.job.tests}
        self._tops |= {test.key: f"{test.dataset} {test.classes} {test.scores.top1:.1%}" for test in record.tests if test.key in asked}

    def succeeded(self) -> None:
        self.store.forget("failed", self.job.key)
        self._say(f"{self.job.label}: {', '.join(self._tops.values())} ({time.monotonic() - self._began:.0f} s)")

    def ended(self, failure: Failure) -> None:
        """Note why it did not succeed; what was saved is kept."""
        self.store.write("failed", self.job.key, failure)
        if failure.kind == "failed":
            self._say(f"failed: {self.job.label}: {failure.error}")
