"""Trained (base) and new (novel) classes in one list, as they are in use.

The paper's protocol scores base images among base classes and novel ones among novel classes. Here every image competes among all:
base-to-all and novel-to-all accuracy, their harmonic mean, and OpenworldAUC (Hua et al., "OpenworldAUC: Towards Unified Evaluation and
Optimization for Open-world Prompt Tuning", ICML 2025, arXiv 2505.05180): the joint probability, over pairs of a base image b and a novel
image n, that b is classified right among the base classes, n right among the novel classes, and the detection score r ranks them,
r(b) > r(n). It is the area under novel hits over base misses, and does not depend on how many images of each kind there are.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mmrl.errors import UsageError, unknown
from mmrl.trust.arrays import Floats, labels_of, line, log_softmax, rows
from mmrl.trust.rejection import auroc

DETECTIONS = ("max", "sum")


class OpenWorld(NamedTuple):
    """All in [0, 1].

    Attributes:
        base_to_all, novel_to_all: accuracy of base and of novel images among all classes.
        harmonic_mean: of these two.
        base, novel: accuracy among the classes of the own part alone, as in the paper's protocol.
        auroc: of the detection score, base above novel.
        openworld_auc: at most base * novel.
    """

    base_to_all: float
    novel_to_all: float
    harmonic_mean: float
    base: float
    novel: float
    auroc: float
    openworld_auc: float


def base_scores(logits: ArrayLike, base: ArrayLike, detection: str = "max") -> Floats:
    """The detection score r, (N,): how much an image looks like one of a base class, by softmax(logits) over all classes.

    Args:
        logits: (N, C).
        base: (C,), boolean: which classes are base classes.
        detection: "max", the largest probability of a base class, or "sum", that of all together.

    Raises:
        UsageError: shapes that do not fit, no base or no novel class, or an unknown detection.
    """
    z = rows(logits, what="the logits")
    mask = _mask(base, z.shape[1])
    if detection not in DETECTIONS:
        raise unknown("detection score", detection, DETECTIONS)
    p = np.exp(log_softmax(z))[:, mask]
    return p.max(1) if detection == "max" else p.sum(1)


def openworld_auc(base_scores: ArrayLike, base_correct: ArrayLike, novel_scores: ArrayLike, novel_correct: ArrayLike) -> float:
    """The share of pairs of a base and a novel image that are both classified right and strictly ranked by their scores.

    One sort and a binary search an image: O(n log n).

    Args:
        base_scores: (B,), detection scores of base images; `base_correct` (B,): whether each is right among the base classes.
        novel_scores: (N,), those of novel images; `novel_correct` (N,): whether each is right among the novel classes.

    Raises:
        UsageError: either part is empty, scores that are not finite, or lengths that differ.
    """
    b, n = line(base_scores, what="the base scores"), line(novel_scores, what="the novel scores")
    right_b, right_n = np.asarray(base_correct, bool), np.asarray(novel_correct, bool)
    if right_b.shape != b.shape or right_n.shape != n.shape:
        raise UsageError(f"{b.shape} and {n.shape} scores, but {right_b.shape} and {right_n.shape} answers whether the class is right.")
    below = np.searchsorted(np.sort(n[right_n]), b[right_b], side="left")  # novel images strictly below each base image
    return float(below.sum()) / (len(b) * len(n))


def open_world(logits: ArrayLike, labels: ArrayLike, base: ArrayLike, *, detection: str = "max") -> OpenWorld:
    """All measures of images of both kinds, scored among all classes.

    Args:
        logits: (N, C), one scale for all classes.
        labels: (N,), of the C classes.
        base: (C,), boolean: which classes are base classes. An image is a base image if its class is.
        detection: as of `base_scores`.

    Raises:
        UsageError: shapes that do not fit, or no images or classes of one of the kinds.
    """
    from mmrl.reports.records import harmonic_mean  # here, as in calibration.py

    z = rows(logits, what="the logits")
    y = labels_of(labels, z)
    mask = _mask(base, z.shape[1])
    known = mask[y]  # (N,)
    if known.all() or not known.any():
        raise UsageError(f"all {len(y)} images are of {'base' if known.all() else 'novel'} classes; images of both kinds are needed.")
    right = z.argmax(1) == y
    within = np.where(mask[None] == known[:, None], z, -np.inf).argmax(1) == y  # among the classes of the own part
    r = base_scores(z, mask, detection)
    both = float(right[known].mean()), float(right[~known].mean())
    return OpenWorld(
        *both, harmonic_mean(*both), float(within[known].mean()), float(within[~known].mean()), auroc(r[known], r[~known]),
        openworld_auc(r[known], within[known], r[~known], within[~known]),
    )  # fmt: skip


def _mask(base: ArrayLike, classes: int) -> NDArray[np.bool_]:
    mask = np.asarray(base)
    if mask.shape != (classes,) or mask.dtype != bool:
        raise UsageError(f"base has shape {mask.shape} and type {mask.dtype}; {classes} classes need one True or False each.")
    if mask.all() or not mask.any():
        raise UsageError(f"all {classes} classes are {'base' if mask.all() else 'novel'} ones; both kinds are needed.")
    return mask
