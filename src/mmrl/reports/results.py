"""Reading a results folder, whole or in the middle of being filled. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

from mmrl.errors import MmrlError, UsageError
from mmrl.files import parse_json, read_json, read_regular, user_path
from mmrl.reports.plans import ABLATIONS, FORMAT, MARKER, OPEN_WORLD, PACKED, STUDIES, Failure, Plan
from mmrl.reports.records import LARGEST_RECORD, P, RunRecord, TestRecord, validated

ORDER = (*STUDIES, OPEN_WORLD, *ABLATIONS)
LARGEST_PACK = 2**31  # bytes


def read_part(path: Path, kind: type[P], *, what: str) -> P:
    """The `kind` in the JSON file `path`.

    Raises:
        MmrlError: it is missing, cut short, or not such a thing; the message names the file and the fix.
    """
    return checked(read_json(path, what=what, most=LARGEST_RECORD), kind, path, what=what)


def checked(content: Any, kind: type[P], path: Path, *, what: str) -> P:
    """`content` of `path` as a `kind`. Raises MmrlError where it has another schema, or is not such a thing."""
    schema = kind.model_fields["schema_name"].default
    found = content.get("schema") if isinstance(content, dict) else None
    if found != schema:
        raise MmrlError(f"{what} {path} has schema {found!r}; this mmrl reads {schema!r}. Use the mmrl that wrote it, or another folder.")
    return validated(kind, content, path, what=what)


def read_packed(folder: Path, damaged: list[str]) -> dict[str, RunRecord]:
    """Runs of the packed files of a results folder, by key; the tests of a run may lie in several files. A line that cannot be read is
    left out, and `damaged` gets a message."""
    found: dict[str, RunRecord] = {}
    for runs in packed_files(folder, damaged).values():
        for key, run in runs.items():
            found[key] = found[key].joined(run) if key in found else run
    return found


def packed_files(folder: Path, damaged: list[str]) -> dict[str, dict[str, RunRecord]]:
    """The same by study, as they lie in each file."""
    files: dict[str, dict[str, RunRecord]] = {}
    for path in sorted((folder / PACKED).glob("*.jsonl")):
        try:
            lines = read_regular(path, what="packed runs", most=LARGEST_PACK).splitlines()
        except MmrlError as error:
            damaged.append(str(error))
            continue
        found = files.setdefault(path.stem, {})
        for number, line in enumerate(lines, 1):
            try:
                record = _packed_line(line, path, f"run record in line {number} of")
                found[record.key] = record
            except MmrlError as error:
                damaged.append(str(error))
    return files


def _packed_line(line: bytes, path: Path, what: str) -> RunRecord:
    try:
        content = parse_json(line) if len(line) <= LARGEST_RECORD else None
    except ValueError as error:
        raise MmrlError(f"{what} {path} is damaged ({error})") from error
    return checked(content, RunRecord, path, what=what)


def check_format(folder: Path) -> None:
    """Raises UsageError if `folder` is no results folder, MmrlError if it is one of another version."""
    if not folder.is_dir():
        raise UsageError(f"results folder {folder} does not exist. `mmrl bench` and `mmrl ablate` make one.")
    if not (folder / MARKER).is_file():
        raise UsageError(f"{folder} is no results folder: it has no {MARKER}. Give the --out of `mmrl bench` or `mmrl ablate`.")
    content = read_json(folder / MARKER, what="results folder's marker")
    found = content.get("format") if isinstance(content, dict) else None
    if found != FORMAT:
        raise MmrlError(
            f"{folder} has results of format {found!r}; this mmrl reads {FORMAT!r}. Use the mmrl that wrote it, or another folder."
        )


class Results:
    """A results folder. What is read is kept; make a new one to see what happened since.

    Attributes:
        damaged: messages about files that cannot be read; their scores count as missing, and `mmrl bench` computes them again.

    Raises:
        UsageError: no results folder. MmrlError: one of another version.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = user_path(folder)
        check_format(self.folder)
        self.damaged: list[str] = []

    @cached_property
    def plans(self) -> dict[str, Plan]:
        """Plans by study, in the order of the paper."""
        found = {plan.study: plan for plan in self._all("plans", Plan, "plan").values()}
        return dict(sorted(found.items(), key=lambda item: (ORDER.index(item[0]) if item[0] in ORDER else len(ORDER), item[0])))

    @cached_property
    def runs(self) -> dict[str, RunRecord]:
        """By key, those packed and those that have a file of their own, which is the later one."""
        return read_packed(self.folder, self.damaged) | self._all("runs", RunRecord, "run record")

    @cached_property
    def tests(self) -> dict[str, TestRecord]:
        """Tests of all runs, by key."""
        return {test.key: test for run in self.runs.values() for test in run.tests}

    @cached_property
    def run_of(self) -> dict[str, RunRecord]:
        """The run of each test, by the test's key."""
        return {test.key: run for run in self.runs.values() for test in run.tests}

    @cached_property
    def failures(self) -> dict[str, Failure]:
        return self._all("failed", Failure, "failure")

    def _all(self, part: str, kind: type[P], what: str) -> dict[str, P]:
        return dict(self._each(part, kind, what))

    def _each(self, part: str, kind: type[P], what: str) -> Iterator[tuple[str, P]]:
        for path in sorted((self.folder / part).glob("*.json")):
            try:
                yield path.stem, read_part(path, kind, what=what)
            except MmrlError as error:
                self.damaged.append(str(error))
