"""What a results folder holds besides its runs: one plan a study. Writers and readers share these.

    results.json            says that it is a results folder, and of which format
    plans/<study>.json      what was asked for: a slot for each score, with its key
    runs/<key>.json         a run: what was trained (options and their sources, loss curve, time), and every test of it
    packed/<study>.jsonl    runs of a finished study, a line each, as `mmrl pack` makes them of the files in runs/
    failed/<run>.json       why a run could not be done, or not all of its tests
    locks/, work/, cache/   of running processes: claims, adapters and checkpoints, listings

A key is a hash of all that decides the result, so a changed option never meets an old one.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field

from mmrl.reports.records import Count, Environment, Part, Title

FORMAT = "mmrl.results/2"
MARKER = "results.json"
PACKED = "packed"
STUDIES = ("base-to-novel", "few-shot", "cross-dataset", "domain-generalisation")
OPEN_WORLD = "open-world"  # the trainings of base-to-novel, tested on mixed lists
ABLATIONS = ("variants", "rep-dim", "layers", "tokens", "alpha", "lambda", "regulariser")
SWEEP = "vary-"  # begins the name of a study of the user's own options, as `mmrl.protocols.sweeps` plans it; the options follow
COST = "cost"
ZERO_SHOT = "zero-shot"  # name of the method that is CLIP as it is


def swept(study: str) -> tuple[str, ...]:
    """The options that a study varies, if it is such a one."""
    return tuple(study.removeprefix(SWEEP).split("-")) if study.startswith(SWEEP) else ()


def is_ablation(study: str) -> bool:
    """Whether its rows are variants of a method."""
    return study in ABLATIONS or bool(swept(study))


class Slot(Part):
    """A score's place in a study: everything a table needs to know of it, and its key.

    `variant` distinguishes rows of one method: the ablation's value ('0.5', 'w/o L'), options given by the user, or ''.
    """

    study: Title
    method: Title
    title: Title = Field("", description="the method's name in tables")
    published: Title = Field("", description="the name of the method's rows in the paper's tables")
    variant: Title = ""
    backbone: Title
    trained_on: Title | None = Field(None, description="data set trained on; null for zero-shot")
    shots: Count | None = None
    seed: int | None = None
    dataset: Title = Field(description="tested on")
    classes: Literal["all", "base", "novel"]
    seen: bool
    applicable: bool = Field(True, description="whether the method can be tested there: one with a closed vocabulary knows no new classes")
    key: str = Field(description="of the score; of one that is not applicable, what it would be")
    run: str = Field(description="key of the run, whose scores are done together")
    setting: str = Field("", description="hash of what else a row's scores must share: backbone, data, precision, broken images left out")

    ROW: ClassVar = ("study", "method", "variant", "backbone", "trained_on", "shots", "dataset")

    @property
    def place(self) -> tuple[Any, ...]:
        """What two slots must not share."""
        return (*self.row, self.seed, self.classes)

    @property
    def row(self) -> tuple[Any, ...]:
        """Its row of a table, on one data set."""
        return tuple(getattr(self, name) for name in self.ROW)


class Plan(Part):
    """All slots of one study. `suite` is 'paper' (the 15 data sets), 'mini', or 'own'; `notes` go under its tables."""

    schema_name: str = Field("mmrl.plan/2", alias="schema")
    study: Title
    suite: Literal["paper", "mini", "own"]
    slots: tuple[Slot, ...] = Field(fail_fast=True)
    paper_compat: bool = False
    command: str = Field("", description="as it was typed")
    notes: tuple[str, ...] = Field((), fail_fast=True)


class Failure(Part):
    """Why a run is not there, or not all of its tests. 'cancelled': the user stopped it."""

    schema_name: str = Field("mmrl.failure/2", alias="schema")
    run: str
    kind: Literal["failed", "cancelled"]
    what: str = Field(description="which training or test, for people")
    error: str
    traceback: str = ""
    environment: Environment
