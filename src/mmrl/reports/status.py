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
from mmrl.reports.plans import Failure, Plan, Slot
from mmrl.reports.results import Results

LARGEST_LOCK = 2**16  # bytes
IN_LOCKS = ("pid", "host", "since")
STATES = ("done", "running", "failed", "cancelled", "to do")


@dataclass(frozen=True)
class StatusReport:
    """What `mmrl status` shows. Scores that are not applicable are not counted.

    Attributes:
        studies: number of scores by state, for each study.
        total: the same over all studies, a score that several share counted once.
        running: what each live process wrote about itself ('run', 'pid', 'host', 'since').
        failures: of runs not done because of an error or because they were stopped.
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
        failures = [failure.model_dump(mode="json", include={"run", "kind", "what", "error"}) for failure in self.failures]
        return asdict(self) | {"failures": failures}


def held_locks(folder: Path) -> dict[str, dict[str, Any]]:
    """Keys of the runs whose lock a live process holds, and what it wrote into the lock."""
    return {path.stem: _content(path) for path in sorted((folder / "locks").glob("*.lock")) if _held(path)}


def holders(locks: Mapping[str, Mapping[str, Any]]) -> int:
    """How many processes hold the locks: one may compute several runs together."""
    return len({(lock.get("host"), lock.get("pid")) for lock in locks.values()})


def _held(path: Path) -> bool:
    """Whether a process holds the file's lock. Tries a shared lock, which keeps no other reader out, and releases it at once."""
    try:
        import fcntl
    except ImportError:  # Windows, where runs take no such locks
        return False
    try:
        if not path.is_file():  # opening a pipe would block
            return False
        with path.open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
            fcntl.flock(file, fcntl.LOCK_UN)
    except OSError:  # removed meanwhile
        pass
    return False


def _content(path: Path) -> dict[str, Any]:
    try:
        found = parse_json(read_regular(path, what="lock", most=LARGEST_LOCK))
    except (MmrlError, ValueError):  # being written
        found = None
    written = {key: found.get(key) for key in IN_LOCKS} if isinstance(found, dict) else {}
    return {"run": path.stem} | {key: value for key, value in written.items() if isinstance(value, (str, int))}


def slot_states(results: Results, plan: Plan, locks: Iterable[str]) -> Iterator[tuple[Slot, str]]:
    """Each applicable slot of the plan with its state. A result counts, whatever failed before it."""
    held = set(locks)
    for slot in plan.slots:
        if not slot.applicable:
            continue
        if slot.key in results.tests:
            yield slot, "done"
        elif slot.run in held:
            yield slot, "running"
        elif slot.run in results.failures:
            yield slot, results.failures[slot.run].kind
        else:
            yield slot, "to do"


def status(folder: Path | str) -> StatusReport:
    """Of the results folder as it is now.

    Raises:
        UsageError, MmrlError: as `Results`.
    """
    results = Results(folder)
    runs = {slot.run for plan in results.plans.values() for slot in plan.slots}
    locks = {run: written for run, written in held_locks(results.folder).items() if run in runs}
    studies: dict[str, Counter[str]] = {}
    by_key: dict[str, tuple[Slot, str]] = {}
    for study, plan in results.plans.items():
        states = list(slot_states(results, plan, locks))
        studies[study] = Counter(state for _, state in states)
        by_key |= {slot.key: (slot, state) for slot, state in states}
    not_done = {slot.run for slot, state in by_key.values() if state in ("failed", "cancelled")}
    return StatusReport(
        {study: _all_states(counts) for study, counts in studies.items()},
        _all_states(Counter(state for _, state in by_key.values())),
        tuple(locks.values()),
        tuple(failure for run, failure in results.failures.items() if run in not_done),
        tuple(_damaged(results)),
        _seconds_left(results, by_key.values(), max(1, holders(locks))),
    )


def _all_states(counts: Mapping[str, int]) -> dict[str, int]:
    return {state: counts.get(state, 0) for state in STATES}


def _damaged(results: Results) -> list[str]:
    """After every kind of file has been looked at."""
    for part in (results.plans, results.runs, results.failures):
        assert part is not None
    return results.damaged


def _seconds_left(results: Results, slots: Iterable[tuple[Slot, str]], workers: int) -> float | None:
    """Each run that is running or to do takes as long as the most similar ones that are done; `workers` of them run at a time."""
    runs: dict[str, list[tuple[Slot, str]]] = defaultdict(list)
    for slot, state in slots:
        runs[slot.run].append((slot, state))
    known: dict[tuple[object, ...], list[float]] = defaultdict(list)
    ahead = []
    for key, members in runs.items():
        likeness = _likeness(members[0][0])
        states = {state for _, state in members}
        if states == {"done"}:
            run = results.runs.get(key)
            trained = run.training.seconds if run and run.training else 0.0
            took = trained + sum(results.tests[each.key].seconds for each, _ in members)
            for kind in likeness:
                known[kind].append(took)
        elif states & {"running", "to do"}:
            ahead.append(likeness)
    if not ahead or not known:
        return None
    return sum(statistics.fmean(next(known[kind] for kind in likeness if kind in known)) for likeness in ahead) / workers


def _likeness(slot: Slot) -> tuple[tuple[object, ...], ...]:
    """Keys of runs that may take as long, the most similar first."""
    return (slot.method, slot.shots, slot.trained_on or slot.dataset), (slot.method,), ()


def duration(seconds: float) -> str:
    """In the two largest units: '2 h 05 min', '3 min 20 s', '12 s'."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s" if minutes else f"{rest} s"
