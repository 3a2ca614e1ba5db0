"""What follows from logits and a calibration: probabilities, who is rejected, sets of classes. With torch or without."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np

from mmrl.errors import Notice, UsageError
from mmrl.names import listed, name_key
from mmrl.templates import Template
from mmrl.trust.arrays import Floats
from mmrl.trust.calibration import calibrated_probabilities
from mmrl.trust.conformal import prediction_sets
from mmrl.trust.rejection import UNKNOWN, checked_score, known_scores

RECALL = 0.95
SCORE = "energy"  # it tells images of other data sets apart better than "mcm" on the mini sets (docs/trust.md)
REMEDY = (
    "Calibrate it on labelled images that it was not trained on, and that it will not be measured on: clf.calibrate(DATA) in Python, "
    "`mmrl calibrate ADAPTER DATA` on the command line."
)


class Prediction(NamedTuple):
    """One class with its probability in [0, 1]; `trained` is whether the classifier was trained on it."""

    name: str
    probability: float
    trained: bool


class Listed(Protocol):
    """A list of classes, with their prompt, or several."""

    @property
    def names(self) -> tuple[str, ...]: ...
    @property
    def template(self) -> Template: ...


class Thresholds(Protocol):
    """A calibration (`mmrl.trust.state.Trust`)."""

    @property
    def classes(self) -> tuple[str, ...]: ...
    @property
    def template(self) -> Template: ...
    def holds_for(self, names: Sequence[str], template: Template, /) -> bool: ...
    def threshold(self, score: str, recall: float, /) -> float: ...
    def quantile(self, method: str, coverage: float, /) -> float: ...


class Rejecting(NamedTuple):
    """Images whose `score` is below `threshold` are rejected."""

    score: str
    threshold: float

    def best(self, logits: Floats, scale: float) -> list[int]:
        """Position of the likeliest class of each image, of logits (B, C); C for one that is rejected."""
        rejected = scored(logits, self.score, scale) < self.threshold
        return np.where(rejected, logits.shape[1], logits.argmax(1)).tolist()


def rejection(
    trust: Thresholds | None, listed_as: Listed, *, reject: bool, recall: float | None, threshold: float | None, score: str
) -> Rejecting | None:
    """The rule that a call asks for; None where it asks for none.

    Warns:
        Notice: the recall is known for another list of classes alone.

    Raises:
        UsageError: no calibration to take a threshold from, an unknown score, recall and threshold together, or a class that has the name
            of the answer itself.
    """
    checked_score(score)
    if not reject and recall is None and threshold is None:
        return None
    if own := [name for name in listed_as.names if name_key(name) == UNKNOWN]:
        said = f"'{own[0]}' is one of the classes, and also the answer for an image of none of them"
        raise UsageError(f"{said}. Rename the class, such as '{own[0]} thing', or take scores of your own: known_scores.")
    if threshold is not None:
        if recall is not None:
            raise UsageError(f"recall is {recall} and threshold is {threshold}; give one: a recall stands for the threshold that has it.")
        if not np.isfinite(threshold):
            raise UsageError(f"threshold is {threshold}; it must be a number, of the size of the scores that known_scores gives.")
        return Rejecting(score, float(threshold))
    if trust is None:
        raise UsageError(f"there is no threshold to reject by, as this classifier is not calibrated. {REMEDY} Or give a threshold.")
    if not trust.holds_for(listed_as.names, listed_as.template):
        other = not trust.holds_for(listed_as.names, trust.template)
        how = f"among other classes ({listed(trust.classes)})" if other else "with another prompt"
        said = f"the threshold was fitted {how}"
        fix = "Calibrate with this list of classes, or give a threshold"
        warnings.warn(f"{said}, so how many images of these classes it keeps is not known. {fix}.", Notice, stacklevel=3)
    return Rejecting(score, trust.threshold(score, RECALL if recall is None else recall))


def probabilities(logits: Floats, temperature: float, factors: Floats | None) -> Floats:
    """Calibrated (B, C) of logits (B, C); NaN for an image that has NaN."""
    out, there = np.full(logits.shape, np.nan), np.isfinite(logits).all(1)
    if there.any():
        out[there] = calibrated_probabilities(logits[there], temperature=temperature, factors=factors)
    return out


def scored(logits: Floats, score: str, scale: float) -> Floats:
    """How known each image looks (B,), of logits (B, C); NaN for an image that has NaN."""
    out, there = np.full(len(logits), np.nan), np.isfinite(logits).all(1)
    if there.any():
        out[there] = known_scores(logits[there], checked_score(score), scale)
    return out


def sets(logits: Floats, trust: Thresholds | None, listed_as: Listed, coverage: float, method: str) -> list[list[str]]:
    """Prediction sets of images with logits (B, C), likeliest class first; empty for an image that has NaN.

    Raises:
        UsageError: no calibration, or one among other classes or with another prompt, as coverage is known for its own alone.
    """
    if trust is None:
        raise UsageError(f"there is no coverage to state, as this classifier is not calibrated. {REMEDY}")
    if not trust.holds_for(listed_as.names, listed_as.template):
        raise UsageError(
            f"coverage is known among the {len(trust.classes)} classes that were calibrated ({listed(trust.classes)}), with their prompt, "
            f"and not among these {len(listed_as.names)}. Leave the list out, or calibrate with labelled images of these classes."
        )
    quantile, there = trust.quantile(method, coverage), np.isfinite(logits).all(1)
    inside = np.zeros(logits.shape, bool)
    if there.any():
        inside[there] = prediction_sets(calibrated_probabilities(logits[there]), quantile, method)
    order = np.argsort(-logits, axis=1, kind="stable")
    return [[listed_as.names[at] for at in places if own[at]] for places, own in zip(order, inside)]
