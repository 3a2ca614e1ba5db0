"""The run record: one JSON file that says what was run, on what, with which values, and what came out.

Accuracies, confidences and calibration errors are fractions (0 to 1), durations seconds, times ISO 8601 with an offset. Fields may
be added within a schema version: a reader ignores those it does not know, and what it does know must be valid.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    field_serializer,
    field_validator,
    model_serializer,
    model_validator,
)

from mmrl.errors import MmrlError, UsageError
from mmrl.files import read_json, write_json
from mmrl.templates import Template

SCHEMA = "mmrl.run/2"
RECORD_NAME = "run.json"
LARGEST_RECORD = 2**25  # bytes; ten thousand classes take some 2 MB
LARGEST = 10_000  # classes of a confusion matrix without names: more are a damaged file, and would fill the memory
MOST = 2**53  # of anything counted: what a float holds exactly, as tables and charts calculate with it
DENSE_UP_TO = 50  # classes up to which a confusion matrix is written whole; a larger one has mostly zeros

Fraction = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0, le=MOST)]
Seconds = Annotated[float, Field(ge=0, le=1e10)]
Value = Annotated[float, Field(ge=-1e39, le=1e39)]  # of float32, so that sums and scales of a few are finite
Title = Annotated[str, Field(max_length=4096)]  # a name, or a path


def harmonic_mean(base: float, novel: float) -> float:
    """2 b n / (b + n), the paper's HM, in the unit of its arguments; 0 where either is 0."""
    if base < 0 or novel < 0:
        raise UsageError(f"accuracies must not be negative: base {base}, novel {novel}")
    return 0.0 if base == 0 or novel == 0 else 2 * base * novel / (base + novel)


def with_offset(time: datetime) -> datetime:
    if time.tzinfo is None:
        raise ValueError("has no offset from UTC")
    return time


def plain(value: Any) -> Any:
    if isinstance(value, (list, dict)):
        raise ValueError("is no text or number")
    return value


Hardware = dict[str, Annotated[Any, AfterValidator(plain)]]


class Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", populate_by_name=True, allow_inf_nan=False)


P = TypeVar("P", bound=Part)


class Bin(Part):
    """One of the equally wide confidence bins of a reliability diagram; the means are 0 in an empty bin."""

    count: Count
    confidence: Fraction
    accuracy: Fraction


class Scores(Part):
    """How one classifier did on one list of images over one list of classes."""

    top1: Fraction
    top5: Fraction | None = None
    macro: Fraction | None = Field(None, description="mean over classes of the class's accuracy")
    ece: Fraction | None = Field(None, description="expected calibration error over 15 bins")
    count: Count = Field(ge=1, description="number of images")
    class_names: tuple[Title, ...] = Field((), fail_fast=True)
    per_class: tuple[Fraction | None, ...] = Field((), fail_fast=True, description="accuracy of each class; null for one without images")
    confusion: tuple[Annotated[tuple[Count, ...], Field(fail_fast=True)], ...] = Field(
        (), fail_fast=True, description="images by true class (row) and predicted class (column)"
    )
    bins: tuple[Bin, ...] = Field((), fail_fast=True)

    @field_validator("confusion", mode="wrap")
    @classmethod
    def _dense(cls, value: Any, read: ValidatorFunctionWrapHandler, info: ValidationInfo) -> Any:
        """The whole matrix from {size, counts: [[row, column, images], ...]}, as which a large one is written."""
        if not isinstance(value, dict):
            return read(value)
        try:
            size, counts = value["size"], value["counts"]
            most = len(info.data.get("class_names", ())) or LARGEST
            if not 0 <= size <= most:
                raise ValueError(f"its size is {size}; at most {most} is possible")
            rows: dict[int, list[int]] = {}
            empty = (0,) * size  # one for all, as a file of a few bytes may say that there are thousands
            for row, column, images in counts:
                if not 0 <= row < size or not 0 <= column < size:
                    raise IndexError(f"{row}, {column} is no place in it")
                if type(images) is not int or not 0 <= images <= MOST:
                    raise TypeError(f"{images!r:.40} is no number of images")
                rows.setdefault(row, [*empty])[column] = images
        except (KeyError, IndexError, TypeError) as error:
            raise ValueError(f"it is no matrix ({error!r})") from error
        return tuple(tuple(rows[row]) if row in rows else empty for row in range(size))

    @field_serializer("confusion")
    def _sparse(self, rows: tuple[tuple[int, ...], ...]) -> Any:
        if len(rows) <= DENSE_UP_TO:
            return rows
        counts = [[i, j, images] for i, row in enumerate(rows) for j, images in enumerate(row) if images]
        return {"size": len(rows), "counts": counts}

    @model_validator(mode="after")
    def _sizes_agree(self) -> Scores:
        n = len(self.class_names)
        for name in ("per_class", "confusion"):
            size = len(getattr(self, name))
            if size and n and size != n:
                raise ValueError(f"{name} has {size} entries for {n} class names")
        if any(len(row) != len(self.confusion) for row in self.confusion):
            raise ValueError("confusion is not square")
        return self


class RuleScores(Part):
    """How one rule that puts trained and new classes into one list did.

    Attributes:
        base, novel: accuracy of images of trained and of new classes, among all.
        auc: OpenworldAUC.
        bias: what is subtracted from the logits of trained classes.
    """

    rule: Title
    base: Fraction
    novel: Fraction
    auc: Fraction | None = None
    ece: Fraction | None = None
    bias: Value | None = None


Listed = Literal["trained", "new", "mixed"]  # images and classes: trained among trained, new among new, all among all


class ListCalibration(Part):
    """Calibration errors on one list, before and after calibration on validation images of trained classes."""

    classes: Listed
    after: Literal["nothing", "temperature", "dac"] = Field(description="dac: temperature, and distance-aware calibration of new classes")
    ece: Fraction
    adaptive_ece: Fraction
    bins: tuple[Bin, ...] = Field((), fail_fast=True)


class Rejection(Part):
    """How well a score among the trained classes tells their images from those of one other source."""

    unknown: Title = Field(description="data set of the others; the tested one's own name for images of its new classes")
    count: Count = Field(ge=1, description="number of these images")
    score: Literal["mcm", "energy"]
    auroc: Fraction
    fpr95: Fraction
    kept: Fraction | None = Field(None, description="share of test images of trained classes at or above the threshold")
    rejected: Fraction | None = Field(None, description="share of the others below it")


class Coverage(Part):
    """Conformal prediction sets on one list: how many hold the image's class, and how many classes they have."""

    classes: Listed
    coverage: Fraction
    size: Annotated[float, Field(ge=0, le=1e9)]


class OpenWorldRecord(Part):
    """Trained and new classes in one list, and what scores are worth there. Fitted values are of validation images of trained classes."""

    validation: Count = Field(description="validation images of trained classes")
    validation_new: Count = Field(description="those of new classes, which nothing is fitted on")
    base: Fraction = Field(description="accuracy of trained classes' images among these classes, as in base-to-novel")
    novel: Fraction = Field(description="the same of new classes")
    shipped: Title = Field(description="the rule of the test's scores")
    temperature: Value | None = None
    class_temperature: Value | None = Field(None, description="of the class token alone, where a method has two classifiers")
    rules: tuple[RuleScores, ...] = Field((), fail_fast=True, description="on test images")
    held_out: tuple[RuleScores, ...] = Field((), fail_fast=True, description="on validation images, fitted values cross-fitted")
    calibration: tuple[ListCalibration, ...] = Field((), fail_fast=True)
    rejection: tuple[Rejection, ...] = Field((), fail_fast=True)
    coverage: tuple[Coverage, ...] = Field((), fail_fast=True)


class Metrics(Part):
    """Scores by the classes tested: base and novel halves, or all. `hm` follows from base and novel."""

    base: Scores | None = None
    novel: Scores | None = None
    all: Scores | None = None
    hm: Fraction | None = None

    @model_validator(mode="after")
    def _hm_follows(self) -> Metrics:
        if self.base is None or self.novel is None:
            if self.hm is not None:
                raise ValueError("hm without base and novel")
            return self
        expected = harmonic_mean(self.base.top1, self.novel.top1)
        if self.hm is None:
            object.__setattr__(self, "hm", expected)  # frozen for everyone else
        elif abs(self.hm - expected) > 1e-6:
            raise ValueError(f"hm is {self.hm}, but base and novel give {expected:.6f}")
        return self


class Option(Part):
    """One value of the run and where it came from, as `mmrl.recipes.Setting`."""

    section: Title
    key: Title
    value: Any
    source: str


class Environment(Part):
    """Where and with what something was computed."""

    versions: dict[str, str] = Field(description="of mmrl, Python and the packages that matter")
    commit: str | None = Field(None, description="of the source tree; null for an installed package")
    dirty: bool | None = Field(None, description="whether the source tree had changes")
    hardware: Hardware
    started: Annotated[datetime, AfterValidator(with_offset)]


class TrainingRecord(Part):
    """What was trained, and how. `history` is thinned: step, epoch, lr, loss, accuracy and the terms of the loss, every few steps."""

    dataset: Title
    data: str = Field("", description="fingerprint of the data set's lists")
    classes: Literal["all", "base"]
    shots: Count = Field(description="images a class; 0: all there are")
    seed: int
    draw_hash: str
    images: Count = Field(ge=1)
    protocol: Title = Field("base-to-novel", description="whose published values were taken")
    template: Template
    options: tuple[Option, ...] = Field((), fail_fast=True)
    seconds: Seconds = Field(description="training alone, by steps or in closed form")
    trained_parameters: Count = Field(description="number of trained values")
    history: tuple[dict[str, Value], ...] = Field((), fail_fast=True)
    environment: Environment
    warnings: tuple[str, ...] = Field((), fail_fast=True, description="such as images left out")


class TestRecord(Part):
    """One test of a run: its scores among some classes of one data set."""

    __test__: ClassVar[bool] = False  # not a test of ours, whatever pytest makes of its name

    key: str = Field("", description="hash of all that decides the scores; empty for a test that belongs to no plan")
    dataset: Title
    data: str = Field("", description="fingerprint of the data set's lists")
    own_split: bool = Field(False, description="whether a split is published for the data set and another was used")
    classes: Literal["all", "base", "novel"]
    seen: bool | tuple[bool, ...] = Field(description="whether the classes were trained on; one answer for each where they differ")
    classifier: str = Field("", description="why these scores and no others, where a rule decided it")
    split: Literal["train", "val", "test"] = "test"
    options: dict[str, Any] = Field({}, description="of the method at test")
    template: Template
    scores: Scores
    zero_shot: Scores | None = Field(None, description="of zero-shot CLIP on the same images, where it was asked for")
    open_world: OpenWorldRecord | None = None  # of an open-world test, whose `scores` are those of the shipped rule
    seconds: Seconds = Field(description="testing, reading the images included")
    environment: Environment
    warnings: tuple[str, ...] = Field((), fail_fast=True, description="such as scores below zero-shot, or images left out")

    @model_serializer(mode="wrap")
    def _only_there(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without the block of open-world tests in records of others."""
        plain: dict[str, Any] = write(self)
        if self.open_world is None:
            del plain["open_world"]
        return plain


class RunRecord(Part):
    """One run: a method, trained once on one draw of one data set (or zero-shot CLIP as it is), and its tests."""

    schema_name: str = Field(SCHEMA, alias="schema")
    key: str = Field("", description="hash of all that decides the training; of a zero-shot run, of what it is tested on")
    method: Title
    title: Title = Field("", description="the method's name in tables")
    backbone: Title
    backbone_hash: str = Field(description="SHA-256 of all that decides a feature of the backbone, 16 hex digits")
    training: TrainingRecord | None = Field(None, description="null for zero-shot CLIP")
    tests: tuple[TestRecord, ...] = Field((), fail_fast=True)

    @property
    def trained(self) -> TrainingRecord:
        """The training of a run that has one."""
        assert self.training is not None
        return self.training

    @property
    def metrics(self) -> Metrics:
        """Scores on the data set trained on, by the classes tested."""
        return self._on_own(lambda test: test.scores)

    @property
    def zero_shot(self) -> Metrics:
        """The same of zero-shot CLIP; empty where it was not asked for."""
        return self._on_own(lambda test: test.zero_shot)

    def _on_own(self, of: Callable[[TestRecord], Scores | None]) -> Metrics:
        own = [test for test in self.tests if self.training is None or test.dataset == self.training.dataset]
        return Metrics.model_validate({test.classes: of(test) for test in own})

    @property
    def warnings(self) -> tuple[str, ...]:
        """Of the training and of all tests."""
        found = [] if self.training is None else [*self.training.warnings]
        return tuple(dict.fromkeys([*found, *(text for test in self.tests for text in test.warnings)]))

    def joined(self, other: RunRecord) -> RunRecord:
        """This record with the tests of `other` that it lacks."""
        keys = {test.key for test in self.tests}
        return self.model_copy(update={"tests": (*self.tests, *(test for test in other.tests if test.key not in keys))})

    def write(self, path: Path) -> None:
        """Write it as JSON; `path` is replaced as a whole or not at all."""
        write_json(path, self.model_dump(mode="json", by_alias=True))


def read_record(path: Path) -> RunRecord:
    """The run record in the file `path`, or in the run's folder `path`.

    Raises:
        MmrlError: there is no such file, it is cut or damaged, or it is JSON of another kind or of a later schema.
    """
    path = path / RECORD_NAME if path.is_dir() else path
    content = read_json(path, what="run record", most=LARGEST_RECORD)
    schema = content.get("schema") if isinstance(content, dict) else None
    if schema != SCHEMA:
        family = SCHEMA.partition("/")[0]
        if isinstance(schema, str) and schema.startswith(f"{family}/"):
            raise MmrlError(f"{path} has the schema '{schema}', this version of mmrl reads '{SCHEMA}'. Use the version that wrote it.")
        raise MmrlError(f"{path} is not a run record of mmrl: its \"schema\" should be '{SCHEMA}'.")
    return validated(RunRecord, content, path, what="run record")


def validated(kind: type[P], content: Any, path: Path, *, what: str) -> P:
    """`content` of the file `path` as a `kind`. Raises MmrlError that names what is wrong in it."""
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        problems = f"{error.error_count():,} places in it are wrong"
        if error.error_count() <= 1000:  # all are made before the first can be had
            problems = "; ".join(f"{'.'.join(map(str, e['loc'])) or what}: {e['msg']}" for e in error.errors()[:5])
        raise MmrlError(f"{what} is damaged: {path} ({problems})") from error
