"""The results folders of one report, with names that tell them apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from mmrl.errors import MmrlError, UsageError
from mmrl.reports.measures import StudyScores
from mmrl.reports.plans import STUDIES
from mmrl.reports.results import Results


@dataclass(frozen=True)
class Folder:
    """One of them.

    Attributes:
        label: its name among the others; '' where it is alone.
        mark: the same as the beginning of files' and elements' names.
    """

    results: Results
    label: str = ""
    mark: str = ""

    @cached_property
    def studies(self) -> Mapping[str, StudyScores]:
        return {study: StudyScores(self.results, plan) for study, plan in self.results.plans.items()}

    @property
    def main(self) -> StudyScores | None:
        """The study whose classifiers are examined: base-to-novel, else the first that was planned."""
        return next((self.studies[study] for study in (*STUDIES, *self.studies) if study in self.studies), None)

    def named(self, text: str) -> str:
        """`text`, with the folder that it is of where there are several."""
        return f"{self.label}: {text}" if self.label else text

    def file(self, name: str) -> str:
        """`name` of a file or an element, told apart from that of another folder."""
        return f"{self.mark}-{name}" if self.mark else name


def file_name(name: str) -> str:
    """`name` without what a file's name, or an element's, should not have."""
    return "".join(letter if letter.isalnum() or letter in "-_" else "-" for letter in name)


def open_folders(paths: Sequence[Path | str]) -> list[Folder]:
    """Results folders in which something is done.

    Raises:
        UsageError: no results folder, or one twice. MmrlError: one of another version, or nothing in it is done.
    """
    opened = [Results(path) for path in paths]
    for results in opened:
        if not results.tests:
            damaged = f" {len(results.damaged)} damaged files: {results.damaged[0]}" if results.damaged else ""
            raise MmrlError(f"nothing is done yet in {results.folder}: it has no scores. `mmrl status` shows how far it is.{damaged}")
    if len(opened) == 1:
        return [Folder(opened[0])]
    places = [results.folder.resolve() for results in opened]
    twice = next((place for at, place in enumerate(places) if place in places[:at]), None)
    if twice is not None:
        raise UsageError(f"results folder {twice} is given twice; give each folder once.")
    labels = _told_apart(places)
    marks = list(map(file_name, labels))
    marks = [mark if marks.count(mark) == 1 else f"{mark}-{at}" for at, mark in enumerate(marks, 1)]
    return [Folder(results, label, mark) for results, label, mark in zip(opened, labels, marks, strict=True)]


def _told_apart(places: Sequence[Path]) -> list[str]:
    """The last part of each path, and as many before it as tell all apart."""
    longest = max(len(place.parts) for place in places)
    tried = (["/".join(place.parts[-count:]) for place in places] for count in range(1, longest + 1))
    return next(names for names in tried if len(set(names)) == len(names))
