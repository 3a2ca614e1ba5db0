"""What a classifier keeps of the images it was calibrated on, so that any recall or coverage can be asked for later: numbers alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from numpy.typing import ArrayLike
from pydantic import BaseModel, ConfigDict, Field, model_validator

from mmrl.errors import UsageError, unknown
from mmrl.names import name_key
from mmrl.templates import Template
from mmrl.trust.arrays import Floats, labels_of, rows
from mmrl.trust.calibration import COLDEST, HOTTEST, calibrated_probabilities, fit_temperature
from mmrl.trust.conformal import METHODS, conformal_quantile, conformal_scores
from mmrl.trust.rejection import SCORES, checked_score, threshold_at_recall

MOST = 10_000  # images
FEW = 20  # images; with fewer, a recall of 0.95 cannot be had

Source = Literal["validation", "not drawn", "held out", "given"]
Numbers = Annotated[tuple[float, ...], Field(min_length=1, max_length=MOST, fail_fast=True)]


class Trust(BaseModel):
    """Calibration of a classifier among a list of classes. `fit` makes one."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    format: Literal[1] = 1
    classes: tuple[str, ...] = Field(min_length=1, fail_fast=True, description="among which the images were classified")
    template: Template = Field(description="prompt, or several, of the classes then")
    source: Source = Field(description="which images: of the validation part, not drawn to train, held out from the test, or given later")
    keys: tuple[str, ...] = Field((), max_length=MOST, fail_fast=True, description="of images held out from the test, which do not test")
    accuracy: float = Field(ge=0, le=1, description="top-1, on these images")
    temperature: float = Field(ge=COLDEST, le=HOTTEST, description="that logits are divided by")
    scores: dict[str, Numbers] = Field(description="of each image, sorted, by the name of the score")
    nonconformity: dict[str, Numbers] = Field(description="of each image, sorted, by the method of prediction sets")

    @model_validator(mode="after")
    def _whole(self) -> Trust:
        if set(self.scores) != set(SCORES) or set(self.nonconformity) != set(METHODS):
            raise ValueError(f"needs the scores {', '.join(SCORES)} and the prediction sets {', '.join(METHODS)}")
        if len({len(each) for each in (*self.scores.values(), *self.nonconformity.values())}) > 1:
            raise ValueError("has lists of different lengths")
        return self

    @classmethod
    def fit(
        cls, logits: ArrayLike, labels: ArrayLike, *, classes: Sequence[str], template: Template, scale: float, source: Source = "given",
        keys: Sequence[str] = (),
    ) -> Trust:  # fmt: skip
        """Fit all of it to held-out images.

        Args:
            logits: (N, C), of at most `MOST` images that were neither trained nor will be tested on.
            labels: (N,).
            classes: names, C.
            source, keys: which images these are.
            scale: what the classifier multiplies cosines with: the temperature of MCM, which is 1 on cosines.

        Raises:
            UsageError: shapes that do not fit, values that are not finite, or too many images.
        """
        z = rows(logits, what="the logits")
        y = labels_of(labels, z)
        if len(z) > MOST or z.shape[1] != len(classes):
            raise UsageError(f"logits have shape {z.shape}; at most {MOST} images and {len(classes)} classes are expected.")
        temperature = fit_temperature(z, y, smoothing=1 / (len(z) + 1))
        p = calibrated_probabilities(z)  # not at that temperature: coverage is guaranteed where the images serve the quantile alone
        return cls(
            classes=tuple(classes),
            template=template,
            source=source,
            keys=tuple(keys),
            accuracy=float((z.argmax(1) == y).mean()),
            temperature=temperature,
            scores={name: _sorted(score(z, scale)) for name, score in SCORES.items()},
            nonconformity={method: _sorted(conformal_scores(p, y, method)) for method in METHODS},
        )

    @property
    def images(self) -> int:
        """How many images it was fitted to."""
        return len(next(iter(self.scores.values())))

    def holds_for(self, names: Sequence[str], template: Template) -> bool:
        """Whether it was fitted among these classes, in any order, and with this prompt; recall and coverage are known for those alone."""
        return set(map(name_key, names)) == set(map(name_key, self.classes)) and _listed(template) == _listed(self.template)

    def threshold(self, score: str, recall: float) -> float:
        """As `threshold_at_recall`, of the score "mcm" or "energy"."""
        return threshold_at_recall(self.scores[checked_score(score)], recall)

    def quantile(self, method: str, coverage: float) -> float:
        """As `conformal_quantile`, of the prediction sets "lac" or "aps"."""
        if method not in METHODS:
            raise unknown("kind of prediction sets", method, METHODS)
        return conformal_quantile(self.nonconformity[method], coverage)


def _sorted(values: Floats) -> tuple[float, ...]:
    return tuple(sorted(float(value) for value in values))


def _listed(template: Any) -> list[str]:
    return [template] if isinstance(template, str) else list(template)
