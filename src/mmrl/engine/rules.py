"""Rules that put the scores of trained and of new classes into one list, and what is fitted for them on held-out images.

Arrays alone: `fused` (N, C) are the logits of the classifier for trained classes, here of all C; `single` (N, C) those of the class token
alone. A method with one classifier has its own logits in place of both.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mmrl.trust import fit_temperature, threshold_at_recall

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]

ONE = "one classifier"
FROZEN = "frozen CLIP's mass"  # frozen CLIP tells trained from new, and each half's own classifier the classes of the half
MASS, FUSED, CLASS, BESIDE = "class-token mass", "fused everywhere", "class token everywhere", "fused beside class token"
COOLED = ", own temperatures"  # each classifier's logits divided by a temperature of its own
STACKED = ", bias"  # calibrated stacking (Chao et al., ECCV 2016): a number is subtracted from the logits of trained classes
RECALL = 0.95  # share of the held-out images of trained classes that the bias leaves to these
FOLDS = 4  # of held-out images, where what is fitted on them is judged by them


class Passed(NamedTuple):
    """Logits of the same images.

    Attributes:
        own: over all classes (N, C), as the method ships them.
        fused, single: those of its two classifiers; None where it has one.
        frozen: those of frozen CLIP, and
        trained, new: of the method among the trained classes alone, and among the new ones; None for frozen CLIP itself.
    """

    own: Floats
    fused: Floats | None = None
    single: Floats | None = None
    frozen: Floats | None = None
    trained: Floats | None = None
    new: Floats | None = None

    def at(self, places: NDArray[np.intp] | Mask) -> Passed:
        """Of some of the images."""
        return Passed(*(None if each is None else each[places] for each in self))  # type: ignore[arg-type]  # own is never None


class Fitted(NamedTuple):
    """Values of held-out images of trained classes: temperatures of both classifiers, and the bias of every rule."""

    temperature: float
    class_temperature: float | None
    bias: Mapping[str, float]


def log_mass(logits: Floats) -> Floats:
    """log sum exp over the classes, (N, 1)."""
    top = logits.max(1, keepdims=True)
    return top + np.log(np.exp(logits - top).sum(1, keepdims=True))


def by_mass(fused: Floats, single: Floats, trained: Mask) -> Floats:
    """Class-token logits (N, C), with those of trained classes exchanged for fused ones that have, together, the same probability."""
    out = single.copy()
    out[:, trained] = fused[:, trained] + log_mass(single[:, trained]) - log_mass(fused[:, trained])
    return out


def by_frozen_mass(frozen: Floats, of_trained: Floats, of_new: Floats, trained: Mask) -> Floats:
    """Logits (N, C) whose halves have, together, the probability that `frozen` (N, C) gives them, divided as the halves' own logits say."""
    out = np.empty_like(frozen)
    for half, logits in ((trained, of_trained), (~trained, of_new)):
        out[:, half] = logits + log_mass(frozen[:, half]) - log_mass(logits)
    return out


def plain_rules(passed: Passed, trained: Mask) -> dict[str, Floats]:
    """Logits (N, C) of every rule without a fitted value, by its name."""
    fused, single = passed.fused, passed.single
    if fused is None or single is None:
        out = {ONE: passed.own}
    else:
        beside = np.where(trained, fused, single)
        out = {MASS: by_mass(fused, single, trained), FUSED: fused, CLASS: single, BESIDE: beside}
    if passed.frozen is not None and passed.trained is not None and passed.new is not None:
        out[FROZEN] = by_frozen_mass(passed.frozen, passed.trained, passed.new, trained)
    return out


def fitted_rules(passed: Passed, trained: Mask, fitted: Fitted) -> dict[str, Floats]:
    """Logits (N, C) of every rule with fitted values, by its name."""
    out = {}
    if passed.fused is not None and passed.single is not None and fitted.class_temperature is not None:
        fused, single = passed.fused / fitted.temperature, passed.single / fitted.class_temperature
        out = {MASS + COOLED: by_mass(fused, single, trained), BESIDE + COOLED: np.where(trained, fused, single)}
    plain = plain_rules(passed, trained)
    return out | {name + STACKED: plain[name] - bias * trained for name, bias in fitted.bias.items()}


def fit_on(passed: Passed, labels: NDArray[np.int64], trained: Mask) -> Fitted:
    """What the rules need, of held-out images of trained classes, with labels (N,) among all classes; no image of a new class is used.

    The temperatures are fitted among the trained classes, an image of which nothing is known added, so that they are finite where every
    image is right. A rule's bias is the largest at which a share `RECALL` of such images is expected to stay with the trained classes.
    """
    place = np.cumsum(trained) - 1
    among = [(passed.own if each is None else each)[:, trained] for each in (passed.fused, passed.single)]
    smoothing = 1 / (len(labels) + 1)
    first, second = (fit_temperature(each, place[labels], smoothing=smoothing) for each in among)
    bias = {}
    for name, logits in plain_rules(passed, trained).items():
        ahead = logits[:, trained].max(1) - logits[:, ~trained].max(1)
        bias[name] = threshold_at_recall(ahead, RECALL) - 1e-9  # an image at the threshold stays
    return Fitted(first, None if passed.single is None else second, bias)


def cross_fitted(passed: Passed, labels: NDArray[np.int64], trained: Mask) -> dict[str, Floats]:
    """As `plain_rules` and `fitted_rules`, of the held-out images themselves: what an image is scored with is fitted on the other folds."""
    folds = np.arange(len(labels)) % FOLDS
    out = plain_rules(passed, trained)
    for fold in np.unique(folds) if len(labels) > FOLDS else ():
        here, rest = folds == fold, folds != fold
        found = fitted_rules(passed.at(here), trained, fit_on(passed.at(rest), labels[rest], trained))
        for name, logits in found.items():
            out.setdefault(name, np.zeros_like(passed.own))[here] = logits
    return out
