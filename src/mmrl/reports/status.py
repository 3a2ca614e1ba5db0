"""How far a results folder is: what is done, running, failed and to do, and how long the rest may take."""

from __future__ import annotations

import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mmrl.errors import MmrlError
from mmrl.files import parse_json, read_regular
from mmrl.reports.cells import Failure, Plan, Slot
from mmrl.reports.results import Results

LARGEST_LOCK = 2**16  # bytes
TOLD = ("pid", "host", "since")
STATES = ("done", "running", "failed", "cancelled", "to do")


@dataclass(frozen=True)
class StatusReport:
    """What `mmrl status` tells.

    Attributes:
        studies: number of cells by state, for each study.
        total: the same over all studies, a cell that several share counted once.
        running: what each live process says of itself ('group', 'pid', 'host', 'since').
        failures: groups not done because of an error or because they were stopped.
        damaged: messages about files that cannot be read.
        seconds_left: estimate; None where nothing is left to do, or nothing is done yet to judge by.
    """

    studies: Mapping[str, Mapping[str, int]]
    total: Mapping[str, int]
    running: tuple[Mapping[str, Any], ...]
    failures: tuple[Failure, ...]
    damaged: tuple[str, ...]
    seconds_left: float | None

    @property
    def failed(self) -> bool:
        """Whether anything went wrong (a run that was stopped has not)."""
        return bool(self.total["failed"] or self.damaged)

    def as_json(self) -> dict[str, Any]:
        """For programs; without tracebacks."""
        told = [failure.model_dump(mode="json", include={"group", "kind", "what", "error"}) for failure in self.failures]
        return asdict(self) | {"failures": told}


def held_locks(folder: Path) -> dict[str, dict[str, Any]]:
    """Groups whose lock a live process holds, and what it wrote into it."""
    return {path.stem: _content(path) for path in sorted((folder / "locks").glob("*.lock")) if _held(path)}


def _held(path: Path) -> bool:
    """Whether a process holds the file's lock. It is asked for as a reader, who keeps no other reader out, and given back at once."""
    try:
        import fcntl
    except ImportError:  # Windows, where runs take no such locks
        return False
    try:
        if not path.is_file():  # a pipe would be waited for
            return False
        with path.open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
            fcntl.flock(file, fcntl.LOCK_UN)
    except OSError:  # it went away meanwhile
        pass
    return False


def _content(path: Path) -> dict[str, Any]:
    try:
        found = parse_json(read_regular(path, what="lock", most=LARGEST_LOCK))
    except (MmrlError, ValueError):  # being written
        found = None
    told = {key: found.get(key) for key in TOLD} if isinstance(found, dict) else {}
    return {"group": path.stem} | {key: value for key, value in told.items() if isinstance(value, (str, int))}


def slot_states(results: Results, plan: Plan, locks: Iterable[str]) -> Iterator[tuple[Slot, str]]:
    """Each slot of the plan with its state. A result counts, whatever failed before it."""
    held = set(locks)
    for slot in plan.slots:
        if slot.key in results.cells:
            yield slot, "done"
        elif slot.group in held:
            yield slot, "running"
        elif slot.group in results.failures:
            yield slot, results.failures[slot.group].kind
        else:
            yield slot, "to do"


def status(folder: Path | str) -> StatusReport:
    """Of the results folder as it is now.

    Raises:
        UsageError, MmrlError: as `Results`.
    """
    results = Results(folder)
    groups = {slot.group for plan in results.plans.values() for slot in plan.slots}
    locks = {group: told for group, told in held_locks(results.folder).items() if group in groups}
    studies: dict[str, Counter[str]] = {}
    by_key: dict[str, tuple[Slot, str]] = {}
    for study, plan in results.plans.items():
        states = list(slot_states(results, plan, locks))
        studies[study] = Counter(state for _, state in states)
        by_key |= {slot.key: (slot, state) for slot, state in states}
    open_groups = {slot.group for slot, state in by_key.values() if state in ("failed", "cancelled")}
    return StatusReport(
        {study: _all_states(counts) for study, counts in studies.items()},
        _all_states(Counter(state for _, state in by_key.values())),
        tuple(locks.values()),
        tuple(failure for group, failure in results.failures.items() if group in open_groups),
        tuple(_damaged(results)),
        _seconds_left(results, by_key.values(), max(1, len(locks))),
    )


def _all_states(counts: Mapping[str, int]) -> dict[str, int]:
    return {state: counts.get(state, 0) for state in STATES}


def _damaged(results: Results) -> list[str]:
    """After every kind of file has been looked at."""
    for part in (results.plans, results.cells, results.trainings, results.failures):
        assert part is not None
    return results.damaged


def _seconds_left(results: Results, slots: Iterable[tuple[Slot, str]], workers: int) -> float | None:
    """Each group that is running or to do takes as long as the likest ones that are done; `workers` of them go at a time."""
    groups: dict[str, list[tuple[Slot, str]]] = defaultdict(list)
    for slot, state in slots:
        groups[slot.group].append((slot, state))
    known: dict[tuple[object, ...], list[float]] = defaultdict(list)
    ahead = []
    for members in groups.values():
        slot = members[0][0]
        likeness = _likeness(slot)
        states = {state for _, state in members}
        if states == {"done"}:
            training = results.trainings.get(slot.training or "")
            took = (training.seconds if training else 0.0) + sum(results.cells[each.key].seconds for each, _ in members)
            for kind in likeness:
                known[kind].append(took)
        elif states & {"running", "to do"}:
            ahead.append(likeness)
    if not ahead or not known:
        return None
    return sum(statistics.fmean(next(known[kind] for kind in likeness if kind in known)) for likeness in ahead) / workers


def _likeness(slot: Slot) -> tuple[tuple[object, ...], ...]:
    """Keys of groups that may take as long, the likest first."""
    return (slot.method, slot.shots, slot.trained_on or slot.dataset), (slot.method,), ()


def duration(seconds: float) -> str:
    """In the two largest units: '2 h 05 min', '3 min 20 s', '12 s'."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s" if minutes else f"{rest} s"
