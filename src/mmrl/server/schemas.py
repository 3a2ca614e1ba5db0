"""What requests and answers look like: those of Hugging Face's zero-shot image classification, and what goes beyond them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from mmrl.errors import shortened
from mmrl.files import parse_json
from mmrl.server.refusals import Refused
from mmrl.server.service import Question

Texts = Annotated[list[str], Field(fail_fast=True)]  # of a long list of numbers each would be an error
Labels = Texts | str
Templates = Texts | str
LONGEST_NAME = 300  # letters: CLIP reads 77 tokens


class Parameters(BaseModel):
    """What is asked about the images."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, strict=True)

    candidate_labels: Labels | None = Field(
        default=None, description="Class names, trained or not: a list, or one text with commas. Default: those trained on."
    )
    hypothesis_template: Templates | None = Field(default=None, description="Prompt with one {} for the name, or several.")
    top_k: int | None = Field(default=None, ge=1, description="How many classes to name; default: all.")
    reject: bool = Field(default=False, description="Say whether an image is of none of the classes, at a recall of 0.95.")
    recall: float | None = Field(default=None, gt=0, lt=1, description="The same at another recall.")
    threshold: float | None = Field(default=None, description="The same below a score of one's own; needs no calibration.")
    score: Literal["energy", "mcm"] = Field(default="energy", description="What tells unknown images.")
    coverage: float | None = Field(default=None, gt=0, lt=1, description="Also name the classes that hold the right one, so probably.")
    calibrated: bool = Field(default=True, description="Whether probabilities are calibrated, where the adapter is.")
    details: bool = Field(default=False, description="Answer with an object that says more, also without a rejection or a set.")

    def question(self) -> Question:
        return Question(
            names_of(self.candidate_labels), templates_of(self.hypothesis_template), self.top_k, self.reject, self.recall, self.threshold,
            self.score, self.coverage, self.calibrated, self.details,
        )  # fmt: skip


Base64 = Annotated[str, Field(description="A base64 image file, also as a data: URL; a URL where the server fetches those.")]


class Ask(BaseModel):
    """Images in base64, and what is asked about them."""

    model_config = ConfigDict(extra="forbid", strict=True)

    inputs: Base64 | Annotated[list[Base64], Field(fail_fast=True)]
    parameters: Parameters = Field(default_factory=Parameters)


class Label(BaseModel):
    """A class name and its probability."""

    label: str
    score: float = Field(ge=0, le=1)


class KnownLabel(Label):
    trained: bool = Field(description="Whether the adapter was trained on this class.")


class Detail(BaseModel):
    """All that is said of one image."""

    labels: list[KnownLabel]
    known_score: float = Field(description="How known the image looks; higher is more.")
    unknown: bool | None = Field(default=None, description="Whether it is rejected; null where that was not asked.")
    recall_known: bool | None = Field(default=None, description="Whether the recall is known for these classes; null where none counts.")
    set: list[str] | None = Field(default=None, description="Its prediction set, likeliest first; null where no coverage was asked for.")


Answers = list[Label] | Detail | list[list[Label] | Detail]


class Problem(BaseModel):
    """What is wrong, in one line."""

    error: str


class About(BaseModel):
    """An adapter that is served."""

    name: str
    version: int = Field(description="1, and one more for each time that it was loaded again.")
    method: str
    backbone: str
    classes: list[str] = Field(description="Trained on.")
    open_vocabulary: bool = Field(description="Whether other classes can be asked for.")
    template: Templates
    calibrated: bool


class Models(BaseModel):
    models: list[About] = Field(description="The first answers where no name is given.")


def names_of(given: Labels | None) -> tuple[str, ...] | None:
    """Class names, each space within them one space; a text is never taken for the name of a file.

    Raises:
        Refused: one is longer than any prompt that CLIP reads (422).
    """
    if given is None:
        return None
    names = tuple(" ".join(name.split()) for name in (given.split(",") if isinstance(given, str) else given))
    if long := next((name for name in names if len(name) > LONGEST_NAME), None):
        raise Refused(422, f"the class name '{shortened(long, 100)}' has {len(long):,} letters; at most {LONGEST_NAME} are served.")
    return names


def templates_of(given: Templates | None) -> str | tuple[str, ...] | None:
    if given is not None and not given:
        raise Refused(422, "the prompt is empty; give one with {} for the name, or leave it out for the adapter's.")
    return given if given is None or isinstance(given, str) else tuple(given)


def listed_names(given: list[str]) -> list[str] | str | None:
    """Class names of fields of a form or an address: each a name, or one with a JSON list or with commas."""
    if len(given) != 1:
        return given or None
    text = given[0].strip()
    if not text.startswith("["):
        return text
    try:
        names = parse_json(text)
    except ValueError as error:
        raise Refused(400, f"the list of class names is not JSON: {error}.") from error
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise Refused(400, "the list of class names must hold texts.")
    return names
