"""Scores from logits and labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mmrl.errors import MmrlError, UsageError
from mmrl.reports.records import Scores, harmonic_mean
from mmrl.trust.calibration import calibration_bins, expected_calibration_error

__all__ = ["Answers", "Scores", "Tally", "harmonic_mean", "score"]


class Answers(NamedTuple):
    """What a classifier answered for N images, in their order: true and predicted class as positions in the class list, and the
    probabilities of the predicted and the true one; all (N,)."""

    labels: NDArray[np.int64]
    predicted: NDArray[np.int64]
    confidence: NDArray[np.float64]
    of_true: NDArray[np.float64]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Answers) and all(np.array_equal(mine, theirs) for mine, theirs in zip(self, other))

    def __ne__(self, other: object) -> bool:
        return not self == other


class Tally:
    """Collects batches of logits; keeps a few numbers an image, not the logits.

    Args:
        names: of the C classes, in the order of the logits.
        temperature: what logits are divided by for the probabilities of `answers`; those that `scores` tells of are as they are.
    """

    def __init__(self, names: Sequence[str], temperature: float | None = None) -> None:
        self.names, self.temperature = tuple(names), temperature
        self._labels: list[NDArray[np.int64]] = []
        self._predicted: list[NDArray[np.int64]] = []
        self._confidence: list[NDArray[np.float64]] = []
        self._answered: list[tuple[NDArray[np.float64], NDArray[np.float64]]] = []  # probabilities of the predicted and the true class
        self._rank: list[NDArray[np.int64]] = []

    def add(self, logits: ArrayLike, labels: ArrayLike) -> None:
        """Logits (B, C) and labels (B,).

        Raises:
            UsageError: shapes that do not fit, or a label that is no class.
            MmrlError: a logit that is not finite.
        """
        x, y = np.asarray(logits, np.float64), np.asarray(labels, np.int64)
        wanted = len(y), len(self.names)
        if x.shape != wanted:
            raise UsageError(f"logits have shape {x.shape}; {wanted[0]} labels and {wanted[1]} classes need {wanted}.")
        if len(y) and (y.min() < 0 or y.max() >= len(self.names)):
            raise UsageError(f"labels go from {y.min()} to {y.max()}, but there are {len(self.names)} classes, counted from 0.")
        if not np.isfinite(x).all():
            image, label = np.argwhere(~np.isfinite(x))[0]
            where = f"the logit of class '{self.names[label]}' for image {self._seen() + image}"
            raise MmrlError(f"{where} is not finite: the weights or the image are damaged, or the precision is too low.")
        own = np.take_along_axis(x, y[:, None], axis=1)  # (B, 1)
        ahead = (x > own) | ((x == own) & (np.arange(x.shape[1]) < y[:, None]))  # among equal logits the first class wins
        self._labels.append(y)
        self._predicted.append(x.argmax(1))
        found = _top_and_true(x, own)
        self._confidence.append(found[0])
        self._answered.append(found if self.temperature is None else _top_and_true(x / self.temperature, own / self.temperature))
        self._rank.append(ahead.sum(1))

    def _seen(self) -> int:
        return sum(len(part) for part in self._labels)

    def answers(self) -> Answers:
        """What was added so far, an image each. Raises UsageError if that is nothing."""
        self._require_some()
        parts = (self._labels, self._predicted, *zip(*self._answered))
        return Answers(*(np.concatenate(part) for part in parts))  # type: ignore[arg-type]  # numpy's stubs lose the number of arrays

    def _require_some(self) -> None:
        if not self._seen():
            raise UsageError("there is nothing to evaluate: the list of images is empty.")

    def scores(self) -> Scores:
        """What was added so far. Raises UsageError if that is nothing."""
        self._require_some()
        labels, predicted = np.concatenate(self._labels), np.concatenate(self._predicted)
        confidence, rank = np.concatenate(self._confidence), np.concatenate(self._rank)
        size = len(self.names)
        confusion = np.bincount(labels * size + predicted, minlength=size * size).reshape(size, size)
        counts = confusion.sum(1)
        per_class = [float(hit / count) if count else None for hit, count in zip(confusion.diagonal(), counts, strict=True)]
        bins = calibration_bins(confidence, predicted == labels)
        return Scores(
            top1=float((rank < 1).mean()),
            top5=float((rank < 5).mean()),
            macro=float(np.mean([value for value in per_class if value is not None])),
            ece=expected_calibration_error(bins),
            count=len(labels),
            class_names=self.names,
            per_class=tuple(per_class),
            confusion=tuple(tuple(int(v) for v in row) for row in confusion),
            bins=bins,
        )


def _top_and_true(x: NDArray[np.float64], own: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Softmax of logits (B, C) at their maximum, and at the true class, whose logits are `own` (B, 1); both (B,)."""
    highest = x.max(1, keepdims=True)
    confidence = 1 / np.exp(x - highest).sum(1)
    return confidence, np.exp(own - highest)[:, 0] * confidence


def score(logits: ArrayLike, labels: ArrayLike, names: Sequence[str]) -> Scores:
    """Scores of logits (N, C) against labels (N,); classes without images do not count in the macro average."""
    tally = Tally(names)
    tally.add(logits, labels)
    return tally.scores()
