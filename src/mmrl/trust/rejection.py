"""Images of none of the classes: scores that are high for what is known, thresholds, and how well they tell the two apart.

Maximum concept matching (MCM; Ming et al., "Delving into Out-of-Distribution Detection with Vision-Language Representations", NeurIPS
2022; github.com/deeplearning-wisc/MCM) is the largest softmax probability at a temperature of its own: 1 on cosines, which is 100 on
logits of 100 times a cosine. The energy score (Liu et al., "Energy-based Out-of-distribution Detection", NeurIPS 2020) is the soft
maximum of the logits. Both are higher for known images here (the code of MCM returns them negated).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike

from mmrl.errors import unknown
from mmrl.trust.arrays import Floats, counted, line, log_softmax, positive, rows, share

UNKNOWN = "unknown"
"""The answer for an image of none of the classes, where rejection was asked for."""


def mcm_scores(logits: ArrayLike, temperature: float = 1.0) -> Floats:
    """The largest of softmax(logits / temperature), (N,), in [1 / C, 1].

    Raises:
        UsageError: logits that are not (N, C) or not finite, or a temperature that is not above 0.
    """
    z = rows(logits, what="the logits") / positive(temperature, what="the temperature")
    return np.exp(log_softmax(z).max(1))


def energy_scores(logits: ArrayLike, temperature: float = 1.0) -> Floats:
    """temperature * log sum exp(logits / temperature), (N,): the negative energy, in the unit of the logits.

    Raises:
        UsageError: as `mcm_scores`.
    """
    z = rows(logits, what="the logits") / positive(temperature, what="the temperature")
    return temperature * (z.max(1) - log_softmax(z).max(1))  # the log of the sum is what was taken away


SCORES: dict[str, Callable[[ArrayLike, float], Floats]] = {  # of logits, and of what cosines were multiplied with to make them
    "energy": lambda logits, scale: energy_scores(logits),
    "mcm": mcm_scores,
}


def checked_score(name: str) -> str:
    """Raises UsageError for the name of no rejection score."""
    if name not in SCORES:
        raise unknown("rejection score", name, tuple(SCORES))
    return name


def known_scores(logits: ArrayLike, name: str, scale: float) -> Floats:
    """How known each image looks, (N,), from logits (N, C), by the score "energy" or "mcm". Raises UsageError for another."""
    return SCORES[checked_score(name)](logits, scale)


def threshold_at_recall(scores: ArrayLike, recall: float) -> float:
    """The largest of `scores` at or above which a new known image is expected to lie with probability `recall`.

    It is the k-th largest of N held-out scores with k = ceil(recall (N + 1)), as of N + 1 exchangeable images k / (N + 1) lie there on
    average; where that is more than N (below 19 images for a recall of 0.95), the smallest, with the expected recall N / (N + 1).

    Args:
        scores: (N,), of held-out images of known classes.
        recall: share of the known images that are to be kept, in (0, 1].

    Raises:
        UsageError: no scores, one that is not finite, or a recall out of range.
    """
    ordered = np.sort(line(scores, what="the scores"))[::-1]
    return float(ordered[min(counted(share(recall, what="recall"), len(ordered) + 1), len(ordered)) - 1])


def auroc(known: ArrayLike, unknown: ArrayLike) -> float:
    """The probability that a known image scores above an unknown one, ties counted half.

    Args:
        known, unknown: (N,) and (M,), scores that are higher for known images.

    Raises:
        UsageError: either is empty or not finite.
    """
    from sklearn.metrics import roc_auc_score

    a, b = line(known, what="the known scores"), line(unknown, what="the unknown scores")
    return float(roc_auc_score(np.r_[np.ones(len(a)), np.zeros(len(b))], np.r_[a, b]))


def fpr_at_recall(known: ArrayLike, unknown: ArrayLike, recall: float = 0.95) -> float:
    """The share of unknown images that are kept at the threshold that keeps `recall` of the known ones: FPR95 for 0.95.

    As in the published tables and the code of MCM: at the recall that can be had nearest to the stated one (of two as near, the higher),
    and of the thresholds that have it the lowest. It looks at the images it is measured on, so it describes scores;
    `threshold_at_recall` makes a threshold for use.

    Args:
        known, unknown: as of `auroc`.
        recall: in (0, 1].

    Raises:
        UsageError: either is empty or not finite, or a recall out of range.
    """
    a, b = line(known, what="the known scores"), line(unknown, what="the unknown scores")
    thresholds = np.unique(np.r_[a, b[b > a.min()]])  # none lower than what keeps all known images
    kept, false = ((len(x) - np.searchsorted(np.sort(x), thresholds)) / len(x) for x in (a, b))
    off = np.abs(kept - share(recall, what="recall"))
    return float(false[np.flatnonzero(off <= off.min() + 1e-9)[0]])
