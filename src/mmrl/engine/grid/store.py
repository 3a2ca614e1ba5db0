"""Writing a results folder; `mmrl.reports.results` reads it and `mmrl.reports.plans` says what is in it."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal

from mmrl.errors import MmrlError, UsageError
from mmrl.files import json_text, lock, parse_json, sweep, unlock, user_path, write_json, write_text
from mmrl.reports.cost import COST_FILE, CostRow, CostTable
from mmrl.reports.plans import FORMAT, MARKER, PACKED, Failure, Plan, Slot
from mmrl.reports.records import Part, RunRecord, TestRecord, with_offset
from mmrl.reports.results import Results, check_format, packed_files, read_packed, read_part
from mmrl.reports.status import held_locks
from mmrl.version import __version__

CACHE = "cache"
FEATURES = "features"
MOST_DEATHS = 10  # remembered of a group
LOCK_BYTES = 4096  # that are read of a claim
Kind = Literal["runs", "failed", "plans"]
PARTS: dict[Kind, tuple[type[Part], str]] = {
    "runs": (RunRecord, "run record"),
    "failed": (Failure, "failure"),
    "plans": (Plan, "plan"),
}


class ResultsFolder:
    """The results folder `folder`, made where there is none.

    Raises:
        UsageError: it is a file, or a folder of something else.
        MmrlError: it has results of another version, or cannot be written.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = user_path(folder)
        self._packed_at, self._packed_runs = 0, dict[str, RunRecord]()
        self.died: dict[str, tuple[datetime, ...]] = {}  # by group: when claims were made that ended with their processes
        if self.folder.exists() and not self.folder.is_dir():
            raise UsageError(f"{self.folder} is a file; results need a folder.")
        if not (self.folder / MARKER).exists():
            inside = self.folder.iterdir() if self.folder.exists() else ()
            strange = sorted(path.name for path in inside if path.name[0] != "." and path.name not in (CACHE, FEATURES))
            if strange:
                raise UsageError(f"{self.folder} holds other things ({', '.join(strange[:3])}); give a new folder, or one with results.")
            write_json(self.folder / MARKER, {"format": FORMAT, "mmrl": __version__})
        check_format(self.folder)
        for place in (self.folder, *(self.folder / kind for kind in PARTS), self.folder / PACKED, self.cache, self.folder / FEATURES):
            sweep(place)

    def path(self, kind: Kind, key: str) -> Path:
        return self.folder / kind / f"{key}.json"

    def work(self, key: str) -> Path:
        """Folder of the run `key`: adapter, draw, checkpoints."""
        return self.folder / "work" / key

    @property
    def cache(self) -> Path:
        return self.folder / CACHE

    def read(self, kind: Kind, key: str) -> Part | None:
        """What was written, or None where nothing was, or it is damaged."""
        kind_of, what = PARTS[kind]
        try:
            return read_part(self.path(kind, key), kind_of, what=what)
        except MmrlError:
            return None

    def run(self, key: str) -> RunRecord | None:
        """The record of a run as far as it has come, or None where there is no whole one."""
        found = self.read("runs", key) if self.path("runs", key).exists() else self._packed().get(key)
        return found if isinstance(found, RunRecord) else None

    def _packed(self) -> dict[str, RunRecord]:
        """What is packed, read again where another process has packed since."""
        place = self.folder / PACKED
        changed = place.stat().st_mtime_ns if place.is_dir() else 0
        if changed != self._packed_at:
            self._packed_runs, self._packed_at = read_packed(self.folder, []), changed
        return self._packed_runs

    def pack(self) -> dict[str, int]:
        """Move all runs from files of their own into one file a study, a line each; returns how many runs each file holds.

        A run is in the file of the first study that asks for it. What is packed already stays where it is: tests that a packed run gained
        are in the file of the study that asks for them, so that one more study leaves the others' files as they are. New files are written
        before old ones go, so a kill loses nothing.

        Raises:
            MmrlError: a run is being computed, a file is damaged, or the folder cannot be written.
        """
        results = Results(self.folder)
        if held := held_locks(self.folder):
            raise MmrlError(f"{len(held)} runs of {self.folder} are being computed; pack it when they have ended.")
        runs, packed = results.runs, packed_files(self.folder, [])
        slots = [(slot, plan.study) for plan in reversed(results.plans.values()) for slot in plan.slots]
        studies, asked = {slot.run: study for slot, study in slots}, {slot.key: study for slot, study in slots}
        if results.damaged:
            raise MmrlError(f"{self.folder} is not packed, for what is damaged would be lost: {results.damaged[0]}")
        files: dict[str, list[str]] = {}
        for key in sorted(runs):
            for file, run in _places(runs[key], packed, studies.get(key, "other"), asked):
                files.setdefault(file, []).append(json_text(run.model_dump(mode="json", by_alias=True), compact=True))
        place = self.folder / PACKED
        for study, lines in files.items():
            write_text(place / f"{study}.jsonl", "".join(lines))
        for path in place.glob("*.jsonl"):
            if path.stem not in files:
                path.unlink()
        for key in runs:
            self.forget("runs", key)
        return {study: len(lines) for study, lines in files.items()}

    def add_run(self, record: RunRecord) -> None:
        """Write a run's record, with the tests that were there before; the caller has claimed the run."""
        before = self.run(record.key)
        self.write("runs", record.key, record.joined(before) if before else record)

    def write(self, kind: Kind, key: str, content: Part) -> None:
        plain = content.model_dump(mode="json", by_alias=True)
        write_json(self.path(kind, key), plain, compact=kind == "runs")

    def forget(self, kind: Kind, key: str) -> None:
        self.path(kind, key).unlink(missing_ok=True)

    def add_plan(self, plan: Plan) -> Plan:
        """Write `plan`, joined with what was asked for before.

        A slot whose result is now another points to the new one. Slots of a row that is now computed in another setting (precision,
        data, ...) leave the plan, whatever their seed, so that no mean is over both.

        Raises:
            MmrlError: the plan that is there is damaged, or of another version; it is left as it is.
        """
        path = self.path("plans", plan.study)
        with self._held("plans"):
            if path.exists():
                before = read_part(path, Plan, what="plan")
                places, settings = {slot.place for slot in plan.slots}, {slot.row: slot.setting for slot in plan.slots}
                kept: Sequence[Slot] = [
                    slot for slot in before.slots if slot.place not in places and settings.get(slot.row, slot.setting) == slot.setting
                ]
                suite = plan.suite if before.suite == plan.suite else "own"
                notes = tuple(dict.fromkeys((*before.notes, *plan.notes)))
                commands = "\n".join(dict.fromkeys([*before.command.splitlines(), *plan.command.splitlines()]))
                compat = plan.paper_compat or before.paper_compat
                update = {"slots": (*kept, *plan.slots), "suite": suite, "notes": notes, "command": commands, "paper_compat": compat}
                plan = plan.model_copy(update=update)
            self.write("plans", plan.study, plan)
        return plan

    def add_costs(self, *rows: CostRow) -> CostTable:
        """Write `rows` into the table of costs, in place of those measured before for the same.

        Raises:
            MmrlError: the table that is there is damaged; it is left as it is.
        """
        path = self.folder / COST_FILE
        with self._held("cost"):
            before = read_part(path, CostTable, what="cost table") if path.exists() else CostTable(schema="mmrl.cost/1")
            table = before.joined(*rows)
            write_json(path, table.model_dump(mode="json", by_alias=True))
        return table

    @contextmanager
    def _held(self, name: str) -> Iterator[None]:
        import time

        while True:
            held = self.claim(name)
            if held is not None:
                break
            time.sleep(0.05)
        try:
            yield
        finally:
            self.release(name, held)

    def claim(self, group: str) -> int | None:
        """A lock on the group, or None where another process has it. It is given back when this process ends, however it ends.

        A claim that was never released is the last thing a killed process did: `died` then has the time it was made, and those of claims
        before it that ended so.
        """
        path = self.folder / "locks" / f"{group}.lock"
        held: int | None = None
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            held = lock(path)
            self.died[group] = _deaths(os.pread(held, LOCK_BYTES, 0))
            told: dict[str, Any] = {"pid": os.getpid(), "host": socket.gethostname(), "since": _written(datetime.now(timezone.utc))}
            told["died"] = [_written(death) for death in self.died[group]]
            os.ftruncate(held, 0)
            os.pwrite(held, json.dumps(told).encode(), 0)
        except BlockingIOError:
            return None
        except OSError as error:
            if held is not None:
                unlock(path, held)
            raise MmrlError(f"cannot write into {self.folder}: {error.strerror or error}. Free some space or choose another.") from error
        return held

    def deaths(self, group: str) -> tuple[datetime, ...]:
        """As `died`, of a group that nobody holds."""
        try:
            return _deaths((self.folder / "locks" / f"{group}.lock").read_bytes()[:LOCK_BYTES])
        except OSError:
            return ()

    def release(self, group: str, held: int) -> None:
        unlock(self.folder / "locks" / f"{group}.lock", held)


def _deaths(left: bytes) -> tuple[datetime, ...]:
    """When the claims were made that ended with their processes, of what the last one wrote."""
    try:
        told = parse_json(left)
        return tuple(with_offset(datetime.fromisoformat(time)) for time in [*told["died"], told["since"]])[-MOST_DEATHS:]
    except (ValueError, KeyError, TypeError):  # nothing was left, half of it, or something else
        return ()


def _written(time: datetime) -> str:
    return time.isoformat(timespec="milliseconds")


def _places(
    run: RunRecord, packed: Mapping[str, Mapping[str, RunRecord]], first: str, asked: Mapping[str, str]
) -> list[tuple[str, RunRecord]]:
    """The packed files that `run` belongs into, each with the tests that are its. A line of which nothing changed stays as it is, also
    where it tells of the training in other words than another file's.

    Args:
        packed: what each file has.
        first: study of a run that is in none.
        asked: study of each test.
    """
    lines = {file: runs[run.key] for file, runs in packed.items() if run.key in runs}
    homes = {test.key: file for file, line in lines.items() for test in line.tests}
    same = bool(lines) and next(iter(lines.values())).model_copy(update={"tests": run.tests}) == run  # what the files say of it together
    tests: dict[str, list[TestRecord]] = {}
    for test in run.tests:
        tests.setdefault(homes.get(test.key) or (asked.get(test.key, first) if homes else first), []).append(test)
    made = {file: run.model_copy(update={"tests": tuple(mine)}) for file, mine in (tests or {first: []}).items()}
    stays = {file: line for file, line in lines.items() if same and file in made and made[file].tests == line.tests}
    return list((made | stays).items())
