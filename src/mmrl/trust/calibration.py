"""Whether a probability of 80 % is right in 80 of 100 cases, and what makes it so.

Temperature scaling divides all logits by one number, fitted on held-out images of the trained classes (Guo et al., "On Calibration of
Modern Neural Networks", ICML 2017). For classes named later there are no images to fit on: distance-aware calibration (DAC; Wang et al.,
"Open-Vocabulary Calibration for Fine-tuned CLIP", ICML 2024; github.com/ml-stat-Sustech/CLIP_Calibration) lowers the confidence of a
class by how much tuning has brought its text feature closer to those of the trained classes. Neither changes the order of the classes
of an image.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mmrl.errors import UsageError
from mmrl.trust.arrays import Floats, labels_of, line, log_softmax, positive, rows

if TYPE_CHECKING:
    from mmrl.reports.records import Bin

ECE_BINS = 15  # of equal width, as in most publications
COLDEST, HOTTEST = 1e-2, 1e2  # temperatures looked at
NEIGHBOURS = 5
SAME = 0.05  # a class nearer than this to a trained one, in Euclidean distance of unit features, counts as that one


def fit_temperature(logits: ArrayLike, labels: ArrayLike, *, smoothing: float = 0.0) -> float:
    """The temperature T in [0.01, 100] for which softmax(logits / T) has the least mean negative log likelihood of the labels.

    The loss is convex in 1 / T, so the bounded scalar search finds the minimum.

    Args:
        logits: (N, C), of held-out images; never of test images, nor of those trained on.
        labels: (N,), of the classes 0 to C - 1.
        smoothing: share of each label that is spread evenly over the classes, in [0, 1). With 0 a set of which every image is
            classified right has its minimum at the coldest temperature; 1 / (N + 1), one more image of which nothing is known, keeps
            it finite, and matters little where N is large.

    Raises:
        UsageError: shapes that do not fit, values that are not finite, or a smoothing out of range.
    """
    from scipy.optimize import minimize_scalar  # here, since it takes a while, and classifying needs none of it

    z = rows(logits, what="the logits")
    y = labels_of(labels, z)
    if not 0 <= smoothing < 1:
        raise UsageError(f"smoothing is {smoothing}; it must be at least 0 and below 1.")
    at = np.arange(len(y)), y

    def loss(log_t: float) -> float:
        p = log_softmax(z / math.exp(log_t))
        return float(-(1 - smoothing) * p[at].mean() - smoothing * p.mean())

    bounds = math.log(COLDEST), math.log(HOTTEST)
    found = minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-10, "maxiter": 500})
    best = min((*bounds, float(found.x)), key=loss)  # the search never tries its bounds themselves
    return {bounds[0]: COLDEST, bounds[1]: HOTTEST}.get(best, math.exp(best))


def distance_factors(
    base_zero_shot: ArrayLike, base_tuned: ArrayLike, zero_shot: ArrayLike, tuned: ArrayLike, *, neighbours: int = NEIGHBOURS
) -> Floats:
    """DAC's confidence of each of the current classes: exp(D_zero-shot - D_tuned), (C,).

    D is the sum of the `neighbours` smallest Euclidean distances of the class's text feature to those of the trained classes, divided by
    `neighbours` (also where there are fewer trained classes, as in the authors' code). A class within 0.05 of a trained one, by its tuned
    feature, is that one: its factor is 1.

    Args:
        base_zero_shot, base_tuned: (B, d) text features of the trained classes, of unit norm, of frozen CLIP and of the tuned model.
        zero_shot, tuned: (C, d), the same of the current classes.

    Raises:
        UsageError: shapes that do not fit, or values that are not finite.
    """
    frozen, base = rows(base_zero_shot, what="the text features"), rows(base_tuned, what="the text features")
    plain, own = rows(zero_shot, what="the text features"), rows(tuned, what="the text features")
    if frozen.shape != base.shape or plain.shape != own.shape or base.shape[1] != own.shape[1]:
        raise UsageError(f"text features of shapes {frozen.shape} and {base.shape}, {plain.shape} and {own.shape} do not go together.")
    if neighbours < 1:
        raise UsageError(f"neighbours is {neighbours}; it must be at least 1.")
    before, after = (np.sort(np.linalg.norm(a[:, None] - b[None], axis=2), axis=1) for a, b in ((plain, frozen), (own, base)))  # (C, B)
    factors = np.exp((before[:, :neighbours].sum(1) - after[:, :neighbours].sum(1)) / neighbours)
    return np.where(after[:, 0] < SAME, 1.0, factors)


def calibrated_probabilities(logits: ArrayLike, *, temperature: float = 1.0, factors: ArrayLike | None = None) -> Floats:
    """softmax(logits / temperature), (N, C), all logits of an image times the factor of its most probable class.

    Args:
        logits: (N, C).
        factors: (C,), such as `distance_factors` makes them; default: 1 for all.

    Raises:
        UsageError: shapes that do not fit, values that are not finite, or a temperature or factor that is not above 0.
    """
    z = rows(logits, what="the logits") / positive(temperature, what="the temperature")
    if factors is not None:
        each = line(factors, what="the factors")
        if each.shape != z.shape[1:] or (each <= 0).any():
            raise UsageError(f"factors have shape {each.shape}, the smallest is {each.min()}; {z.shape[1]} numbers above 0 are needed.")
        z = z * each[z.argmax(1)][:, None]
    return np.exp(log_softmax(z))


def calibration_bins(confidence: ArrayLike, correct: ArrayLike, bins: int = ECE_BINS) -> tuple[Bin, ...]:
    """Equally wide bins of top-1 confidence over (0, 1], each closed at its upper end, with mean confidence and accuracy.

    Args:
        confidence: (N,), in [0, 1].
        correct: (N,), whether the top-1 class was right.
    """
    p, right = np.asarray(confidence, np.float64), np.asarray(correct, np.float64)
    return _bins(p, right, np.clip(np.ceil(p * bins).astype(np.int64) - 1, 0, bins - 1), bins)


def adaptive_bins(confidence: ArrayLike, correct: ArrayLike, bins: int = ECE_BINS) -> tuple[Bin, ...]:
    """Bins that hold equally many images, but for ties: images of the same confidence share a bin. Arguments as `calibration_bins`.

    Where most confidences are near 1, equally wide bins have them all in one; these tell them apart.
    """
    p, right = np.asarray(confidence, np.float64), np.asarray(correct, np.float64)
    if not len(p):
        return _bins(p, right, np.zeros(0, np.int64), bins)
    ends = np.sort(p)[[math.ceil(len(p) * at / bins) - 1 for at in range(1, bins)]]  # the last of each bin, if none were equal
    return _bins(p, right, np.searchsorted(ends, p, side="left"), bins)


def _bins(p: Floats, right: Floats, place: NDArray[np.int64], bins: int) -> tuple[Bin, ...]:
    from mmrl.reports.records import Bin  # here, as records need pydantic, and a runtime without it takes probabilities from this module

    count = np.bincount(place, minlength=bins)
    mean = [np.bincount(place, weights=values, minlength=bins) / np.maximum(count, 1) for values in (p, right)]
    return tuple(Bin(count=int(n), confidence=min(float(c), 1.0), accuracy=float(a)) for n, c, a in zip(count, *mean, strict=True))


def expected_calibration_error(bins: Sequence[Bin]) -> float:
    """Mean |accuracy - confidence| over the bins, each weighted by its share of the images."""
    return sum(b.count * abs(b.accuracy - b.confidence) for b in bins) / max(1, sum(b.count for b in bins))


def adaptive_calibration_error(confidence: ArrayLike, correct: ArrayLike, bins: int = ECE_BINS) -> float:
    """The expected calibration error over bins of equally many images. Arguments as `calibration_bins`."""
    return expected_calibration_error(adaptive_bins(confidence, correct, bins))
