"""A try at one group, wherever it is computed: what it gives is written, and how it ended is noted."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone

import torch

from mmrl.engine.grid.binding import Group
from mmrl.engine.grid.store import Kind, ResultsFolder
from mmrl.engine.run_record import environment
from mmrl.errors import MmrlError
from mmrl.reports.cells import CellRecord, Failure
from mmrl.reports.records import Part

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


def missing_keys(group: Group, store: ResultsFolder) -> set[str]:
    """Keys of the group's cells, and of its training, that have no whole record."""
    trained = group.training is None or store.has("trainings", group.key)
    return missing_cells(group, store) | (set() if trained else {group.key})


def failed_since(group: Group, store: ResultsFolder, began: datetime) -> bool:
    failure = store.read("failed", group.key)
    return isinstance(failure, Failure) and failure.kind == "failed" and failure.environment.started >= began


def outcome_of(groups: Sequence[Group], store: ResultsFolder, began: datetime) -> Outcome:
    """What became of the groups since `began`."""
    outcome = Outcome()
    for group in groups:
        lacks = missing_cells(group, store)
        failed = lacks and failed_since(group, store, began)
        (outcome.failed if failed else outcome.left if lacks else outcome.done).append(group.key)
    return outcome


def failure_of(group: Group, error: BaseException, device: torch.device) -> Failure:
    """The note on what ended the group; its traceback is there unless the message says all."""
    stopped = isinstance(error, KeyboardInterrupt)
    clear = stopped or isinstance(error, MmrlError)
    return Failure(
        schema="mmrl.failure/1",
        group=group.key,
        kind="cancelled" if stopped else "failed",
        what=group.label,
        error="stopped by the user" if stopped else str(error) or type(error).__name__,
        traceback="" if clear else "".join(traceback.format_exception(error)),
        environment=environment(device, datetime.now(timezone.utc)),
    )


class Attempt:
    """One try at `group`, which this process has claimed."""

    def __init__(self, group: Group, store: ResultsFolder, say: Say) -> None:
        self.group, self.store, self._say = group, store, say
        self._tops: list[str] = []
        self._began = time.monotonic()

    def save(self, kind: Kind, key: str, record: Part) -> None:
        self.store.write(kind, key, record)
        if isinstance(record, CellRecord):
            self._tops.append(f"{record.dataset} {record.classes} {record.scores.top1:.1%}")

    def succeeded(self) -> None:
        self.store.forget("failed", self.group.key)
        self._say(f"{self.group.label}: {', '.join(self._tops)} ({time.monotonic() - self._began:.0f} s)")

    def ended(self, failure: Failure) -> None:
        """Note why it did not succeed; what was saved is kept."""
        self.store.write("failed", self.group.key, failure)
        if failure.kind == "failed":
            self._say(f"failed: {self.group.label}: {failure.error}")
