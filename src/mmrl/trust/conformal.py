"""Sets of classes that hold the right one with a stated probability: split conformal prediction.

If held-out images and new ones are exchangeable, and the images were used for nothing else, the set of a new image holds its class with
at least the stated probability, whatever the classifier (Vovk et al., "Algorithmic Learning in a Random World", 2005): on average over
images and draws of held-out images, not class by class.

"lac" (least ambiguous sets; Sadinle et al., JASA 2019) takes the classes whose probability is high enough: the smallest sets on average.
"aps" (adaptive prediction sets; Romano et al., NeurIPS 2020, without its randomisation, so coverage errs upwards) takes the likeliest
classes until enough probability is together: larger sets for harder images.

The whole of it is one order statistic with the correction for finite samples. Libraries that have it (crepes, MAPIE) bring pandas or
wrap scikit-learn estimators; neither is worth it for these lines.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mmrl.errors import UsageError, unknown
from mmrl.trust.arrays import Floats, counted, labels_of, line, rows

METHODS = ("lac", "aps")


def conformal_scores(probabilities: ArrayLike, labels: ArrayLike, method: str = "lac") -> Floats:
    """How little each held-out image conforms with its own class, (N,), in [0, 1]. `conformal_quantile` takes these.

    Args:
        probabilities: (N, C), calibrated or not, but made as those that `prediction_sets` will be given.
        labels: (N,).
        method: "lac" or "aps".

    Raises:
        UsageError: shapes that do not fit, values that are not finite, or an unknown method.
    """
    p = rows(probabilities, what="the probabilities")
    y = labels_of(labels, p)
    return np.take_along_axis(_nonconformity(p, method), y[:, None], axis=1)[:, 0]


def conformal_quantile(scores: ArrayLike, coverage: float) -> float:
    """The ceil(coverage (N + 1))-th smallest of N scores; infinity, which puts every class into the set, where N is too small for it.

    Raises:
        UsageError: no scores, one that is not finite, or a coverage that is not above 0 and below 1.
    """
    ordered = np.sort(line(scores, what="the scores"))
    if not 0 < coverage < 1:
        raise UsageError(f"coverage is {coverage}; it is a probability above 0 and below 1, such as 0.9.")
    k = counted(coverage, len(ordered) + 1)
    return float(ordered[k - 1]) if k <= len(ordered) else math.inf


def prediction_sets(probabilities: ArrayLike, quantile: float, method: str = "lac") -> NDArray[np.bool_]:
    """Which classes are in the set of each image, (N, C). The likeliest class always is: a set is never empty.

    Args:
        probabilities: (N, C).
        quantile: of `conformal_quantile`, by the same method.

    Raises:
        UsageError: as `conformal_scores`, or the quantile is not a number.
    """
    p = rows(probabilities, what="the probabilities")
    if math.isnan(quantile):
        raise UsageError("the quantile is not a number.")
    inside = _nonconformity(p, method) <= quantile
    inside[np.arange(len(p)), p.argmax(1)] = True
    return inside


def _nonconformity(p: Floats, method: str) -> Floats:
    """(N, C): of each class, 1 - its probability; or the probability of all classes that are as likely as it, or likelier."""
    if method not in METHODS:
        raise unknown("kind of prediction sets", method, METHODS)
    if method == "lac":
        return 1 - p
    order = np.argsort(-p, axis=1, kind="stable")
    ranked = np.take_along_axis(p, order, axis=1)
    sums = np.cumsum(ranked, axis=1)
    last = np.empty_like(order)  # the last place of those that are equal
    last[:, -1] = p.shape[1] - 1
    for at in range(p.shape[1] - 2, -1, -1):
        last[:, at] = np.where(ranked[:, at] == ranked[:, at + 1], last[:, at + 1], at)
    out = np.empty_like(p)
    np.put_along_axis(out, order, np.take_along_axis(sums, last, axis=1), axis=1)
    return out
