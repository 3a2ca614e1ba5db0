"""What a results folder holds: one JSON a cell (one score), one a training, one plan a study. Writers and readers share these.

    results.json            says that it is a results folder, and of which format
    plans/<study>.json      what was asked for: a row for each cell, with the key of its result
    cells/<key>.json        a score, whole or not there
    trainings/<key>.json    what was trained: options and their sources, loss curve, time; shared by all cells that test it
    failed/<group>.json     why a training or its cells could not be done
    locks/, work/, cache/   of running processes: claims, adapters and checkpoints, listings

A key is a hash of all that decides the result, so a changed option never meets an old one.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, Field

from mmrl.reports.records import Count, Hardware, Option, Part, Scores, Seconds, Title, Value, with_offset

FORMAT = "mmrl.results/1"
MARKER = "results.json"
STUDIES = ("base-to-novel", "few-shot", "cross-dataset", "domain-generalisation")
ABLATIONS = ("variants", "rep-dim", "layers", "tokens", "alpha", "lambda", "regulariser")
COST = "cost"
ZERO_SHOT = "zero-shot"  # the method that CLIP as it is goes by


class Environment(Part):
    """Where and with what something was computed."""

    versions: dict[str, str] = Field(description="of mmrl, Python and the packages that matter")
    commit: str | None = Field(None, description="of the source tree; null for an installed package")
    dirty: bool | None = Field(None, description="whether the source tree had changes")
    hardware: Hardware
    started: Annotated[datetime, AfterValidator(with_offset)]


class CellRecord(Part):
    """One score: a method, trained or not, tested among some classes of one data set."""

    schema_name: str = Field("mmrl.cell/1", alias="schema")
    key: str
    training: str | None = Field(None, description="key of the training; null for zero-shot")
    method: Title
    backbone: Title
    backbone_hash: str = Field(description="SHA-256 of all that decides a feature of the backbone, 16 hex digits")
    dataset: Title = Field(description="tested on")
    data: str = Field(description="fingerprint of the data set's lists")
    own_split: bool = Field(False, description="whether a split is published for the data set and another was used")
    classes: Literal["all", "base", "novel"]
    seen: bool = Field(description="whether the classes were trained on")
    options: dict[str, Any] = Field(description="of the method at test")
    template: Title | tuple[Title, ...]
    scores: Scores
    seconds: Seconds = Field(description="testing, reading the images included")
    environment: Environment
    warnings: tuple[str, ...] = Field((), fail_fast=True)


class TrainingRecord(Part):
    """One training. `history` is thinned: step, epoch, lr, loss, accuracy and the terms of the loss, every few steps."""

    schema_name: str = Field("mmrl.training/1", alias="schema")
    key: str
    method: Title
    backbone: Title
    backbone_hash: str
    dataset: Title
    data: str
    classes: Literal["all", "base"]
    shots: Count = Field(description="images a class; 0: all there are")
    seed: int
    draw_hash: str
    images: Count = Field(ge=1)
    protocol: Title = Field(description="whose published values were taken")
    options: tuple[Option, ...] = Field(fail_fast=True)
    seconds: Seconds
    trained_parameters: Count
    history: tuple[dict[str, Value], ...] = Field((), fail_fast=True)
    environment: Environment
    warnings: tuple[str, ...] = Field((), fail_fast=True)


class Slot(Part):
    """A cell's place in a study: everything a table can be made from, and the key of the result that belongs there.

    `variant` tells rows of one method apart: the ablation's value ('0.5', 'w/o L'), options given by the user, or ''.
    """

    study: Title
    method: Title
    variant: Title = ""
    backbone: Title
    trained_on: Title | None = Field(None, description="data set trained on; null for zero-shot")
    shots: Count | None = None
    seed: int | None = None
    dataset: Title = Field(description="tested on")
    classes: Literal["all", "base", "novel"]
    seen: bool
    key: str
    training: str | None = None
    setting: str = Field("", description="hash of what else a row's cells must share: backbone, data, precision, broken images left out")
    group: str = Field(description="cells done together: the key of their training, or of the zero-shot pass over the data set")

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

    schema_name: str = Field("mmrl.plan/1", alias="schema")
    study: Title
    suite: Literal["paper", "mini", "own"]
    slots: tuple[Slot, ...] = Field(fail_fast=True)
    paper_compat: bool = False
    command: str = Field("", description="as it was typed")
    notes: tuple[str, ...] = Field((), fail_fast=True)


class Failure(Part):
    """Why a group of cells is not there. 'cancelled': the user stopped it."""

    schema_name: str = Field("mmrl.failure/1", alias="schema")
    group: str
    kind: Literal["failed", "cancelled"]
    what: str = Field(description="which training or test, for people")
    error: str
    traceback: str = ""
    environment: Environment
