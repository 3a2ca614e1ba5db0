"""Calibration, rejection, prediction sets and mixed lists, against plain forms and against what they promise."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.optimize import approx_fprime
from scipy.special import logsumexp, softmax

from mmrl import trust
from mmrl.errors import UsageError
from mmrl.trust.arrays import counted


def drawn(n: int = 400, classes: int = 6, temperature: float = 1.0, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Logits (n, classes), and labels drawn from softmax(logits / temperature): calibrated at that temperature."""
    random = np.random.default_rng(seed)
    logits = random.normal(size=(n, classes)) * 4
    p = softmax(logits / temperature, axis=1)
    return logits, (p.cumsum(1) > random.random((n, 1))).argmax(1)


@pytest.mark.parametrize("temperature", [0.4, 1.0, 3.5])
def test_the_temperature_that_labels_were_drawn_with_is_found(temperature: float) -> None:
    logits, labels = drawn(20_000, temperature=temperature)
    assert trust.fit_temperature(logits, labels) == pytest.approx(temperature, rel=0.03)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_temperature_is_a_minimum_and_scales_with_the_logits(smoothing: float) -> None:
    logits, labels = drawn()

    def loss(t: float) -> float:
        p = logits / t - logsumexp(logits / t, axis=1, keepdims=True)
        return float(-(1 - smoothing) * p[np.arange(len(p)), labels].mean() - smoothing * p.mean())

    t = trust.fit_temperature(logits, labels, smoothing=smoothing)
    assert abs(approx_fprime([t], lambda x: loss(x[0]), 1e-7)[0]) < 1e-5
    assert all(loss(t) < loss(t * factor) for factor in (0.5, 0.99, 1.01, 2))
    assert trust.fit_temperature(logits * 7, labels, smoothing=smoothing) == pytest.approx(7 * t, rel=1e-6)


def test_smoothing_keeps_the_temperature_of_a_faultless_set_finite() -> None:
    logits = np.eye(3) * 5
    assert trust.fit_temperature(logits, [0, 1, 2]) == 0.01
    smooth = trust.fit_temperature(logits, [0, 1, 2], smoothing=1 / 4)
    right = softmax(logits / smooth, axis=1)[0, 0]
    assert right == pytest.approx(3 / 4 + 1 / 12, abs=1e-4)  # what is left of the label, where the minimum lies


def test_calibration_never_changes_the_order_of_the_classes() -> None:
    logits, labels = drawn(temperature=2.0)
    factors = np.linspace(0.3, 1.7, 6)
    p = trust.calibrated_probabilities(logits, temperature=trust.fit_temperature(logits, labels), factors=factors)
    assert (p.argsort(1) == logits.argsort(1)).all()
    assert p.sum(1) == pytest.approx(np.ones(len(p)), abs=1e-12)
    own = factors[logits.argmax(1)][:, None]
    np.testing.assert_allclose(trust.calibrated_probabilities(logits, factors=factors), softmax(logits * own, axis=1), rtol=1e-12)


def test_bins_of_equal_width_and_of_equal_count() -> None:
    bins = trust.calibration_bins([1.0, 1 / 15, 1e-9], [True, False, False])
    assert [b.count for b in bins] == [2, *[0] * 13, 1]
    assert trust.expected_calibration_error(bins) == pytest.approx(2 / 3 * (1 / 15 + 1e-9) / 2)
    confidence = np.linspace(0.9, 0.99, 30)
    assert [b.count for b in trust.calibration_bins(confidence, np.ones(30), 10)] == [*[0] * 8, 1, 29]
    assert [b.count for b in trust.adaptive_bins(confidence, np.ones(30), 10)] == [3] * 10
    assert [b.count for b in trust.adaptive_bins(confidence[:7], np.ones(7), 3)] == [3, 2, 2]
    assert [b.count for b in trust.adaptive_bins([], [], 3)] == [0, 0, 0] and trust.adaptive_calibration_error([], []) == 0


def test_adaptive_bins_do_not_depend_on_the_order_of_images() -> None:
    confidence, correct = np.array([0.5] * 8 + [0.9] * 4), np.array([1, 0] * 6)
    turned = np.random.default_rng(0).permutation(12)
    bins = trust.adaptive_bins(confidence, correct, 4)
    assert bins == trust.adaptive_bins(confidence[turned], correct[turned], 4)
    assert [b.count for b in bins if b.count] == [8, 4]
    assert trust.adaptive_calibration_error(confidence, correct, 4) == pytest.approx(4 / 12 * 0.4)


def test_scores_are_those_of_their_formulas() -> None:
    logits, _ = drawn(50)
    for t in (0.5, 1.0, 100.0):
        np.testing.assert_allclose(trust.mcm_scores(logits, t), softmax(logits / t, axis=1).max(1), rtol=1e-13)
        np.testing.assert_allclose(trust.energy_scores(logits, t), t * logsumexp(logits / t, axis=1), rtol=1e-12)
    assert trust.energy_scores(logits * 1e3).max() < 1e5  # no overflow


def test_a_threshold_keeps_the_stated_share_of_new_images() -> None:
    assert trust.threshold_at_recall([3.0, 1.0, 2.0], 1.0) == 1.0
    assert trust.threshold_at_recall(range(100), 0.95) == 4  # the 96th of 101: 95.05 % in expectation
    assert trust.threshold_at_recall(range(10), 0.95) == 0
    random = np.random.default_rng(0)
    kept = [(random.normal(size=50) >= trust.threshold_at_recall(random.normal(size=39), 0.9)).mean() for _ in range(2000)]
    assert np.mean(kept) == pytest.approx(36 / 40, abs=0.005)


def test_counts_are_not_off_by_rounding() -> None:
    assert [counted(0.07, 100), counted(0.29, 100), counted(0.95, 20), counted(0.951, 20)] == [7, 29, 19, 20]


@pytest.mark.parametrize("step", [None, 0.5])  # with ties, too
def test_auroc_and_fpr_are_what_they_say(step: float | None) -> None:
    random = np.random.default_rng(1)
    known, unknown = random.normal(1, 1, 60), random.normal(0, 1, 45)
    if step:
        known, unknown = np.round(known / step) * step, np.round(unknown / step) * step
    pairs = known[:, None] - unknown[None]
    assert trust.auroc(known, unknown) == pytest.approx(((pairs > 0) + 0.5 * (pairs == 0)).mean(), abs=1e-12)
    for recall in (0.5, 0.95, 1.0):
        near = min(abs((known >= t).mean() - recall) for t in known)
        lowest = min(t for t in [*known, *unknown] if t >= known.min() and abs((known >= t).mean() - recall) <= near + 1e-9)
        assert trust.fpr_at_recall(known, unknown, recall) == (unknown >= lowest).mean()


@pytest.mark.parametrize("method", ["lac", "aps"])
@pytest.mark.parametrize(("held_out", "coverage"), [(39, 0.9), (19, 0.8)])
def test_sets_hold_the_class_as_often_as_stated(method: str, held_out: int, coverage: float) -> None:
    logits, labels = drawn(40_000, temperature=2.5)  # of a classifier that is far too sure
    p = softmax(logits, axis=1)
    inside, sizes = [], []
    for start in range(0, len(p), 200):
        part, rest = slice(start, start + held_out), slice(start + held_out, start + 200)
        quantile = trust.conformal_quantile(trust.conformal_scores(p[part], labels[part], method), coverage)
        sets = trust.prediction_sets(p[rest], quantile, method)
        inside.append(sets[np.arange(len(sets)), labels[rest]].mean())
        sizes.append(sets.sum(1).mean())
    assert np.mean(inside) >= coverage - 0.01
    assert np.mean(sizes) < 5  # of 6
    if method == "lac":
        assert np.mean(inside) == pytest.approx(coverage, abs=0.02)  # no more than it must


def test_adaptive_sets_by_hand() -> None:
    p = np.array([[0.5, 0.2, 0.2, 0.1]])
    for label, expected in enumerate((0.5, 0.9, 0.9, 1.0)):  # equal ones count together
        assert trust.conformal_scores(p, [label], "aps") == pytest.approx(expected)
    assert trust.prediction_sets(p, 0.9 + 1e-12, "aps").tolist() == [[True, True, True, False]]
    assert trust.prediction_sets(p, 0.1, "aps").tolist() == [[True, False, False, False]]  # never empty
    assert trust.prediction_sets(p, 0.8, "lac").tolist() == [[True, True, True, False]]


def test_too_few_held_out_images_put_every_class_into_the_set() -> None:
    assert trust.conformal_quantile([0.1] * 8, 0.9) == math.inf and trust.conformal_quantile([0.1] * 9, 0.9) == 0.1
    assert trust.prediction_sets(np.full((2, 3), 1 / 3), math.inf).all()


def plain_openworld_auc(base_scores: np.ndarray, base_right: np.ndarray, novel_scores: np.ndarray, novel_right: np.ndarray) -> float:
    hits = 0
    for score, right in zip(base_scores, base_right):
        for other, also in zip(novel_scores, novel_right):
            hits += bool(right and also and score > other)
    return hits / (len(base_scores) * len(novel_scores))


@pytest.mark.parametrize("step", [None, 0.5])
def test_openworld_auc_is_the_share_of_pairs(step: float | None) -> None:
    random = np.random.default_rng(2)
    base, novel = random.normal(1, 1, 70), random.normal(0, 1, 50)
    if step:
        base, novel = np.round(base / step) * step, np.round(novel / step) * step
    right, also = random.random(70) < 0.8, random.random(50) < 0.6
    assert trust.openworld_auc(base, right, novel, also) == plain_openworld_auc(base, right, novel, also)
    assert trust.openworld_auc(base, right, novel, also) <= right.mean() * also.mean()
    assert trust.openworld_auc(base + 100, right, novel, also) == pytest.approx(right.mean() * also.mean(), abs=1e-12)
    assert trust.openworld_auc(np.ones(3), [True] * 3, np.ones(2), [True] * 2) == 0  # ranked strictly


@pytest.mark.parametrize("detection", ["max", "sum"])
def test_open_world_measures(detection: str) -> None:
    logits, labels = drawn(300, 7)
    base = np.array([True, False, True, True, False, False, True])
    found = trust.open_world(logits, labels, base, detection=detection)
    known = base[labels]
    right = logits.argmax(1) == labels
    assert (found.base_to_all, found.novel_to_all) == (right[known].mean(), right[~known].mean())
    assert found.harmonic_mean == pytest.approx(2 / (1 / found.base_to_all + 1 / found.novel_to_all))
    among = [np.flatnonzero(base if known[i] else ~base)[logits[i, base if known[i] else ~base].argmax()] == labels[i] for i in range(300)]
    among = np.array(among)
    assert (found.base, found.novel) == (among[known].mean(), among[~known].mean())
    p = softmax(logits, axis=1)[:, base]
    r = p.max(1) if detection == "max" else p.sum(1)
    assert found.auroc == pytest.approx(trust.auroc(r[known], r[~known]))
    assert found.openworld_auc == pytest.approx(plain_openworld_auc(r[known], among[known], r[~known], among[~known]), abs=1e-12)


def test_openworld_auc_does_not_depend_on_how_many_images_of_each_kind_there_are() -> None:
    logits, labels = drawn(200, 6)
    base = np.arange(6) < 3
    twice = np.r_[np.arange(200), np.flatnonzero(base[labels])]
    one, other = trust.open_world(logits, labels, base), trust.open_world(logits[twice], labels[twice], base)
    assert one.openworld_auc == pytest.approx(other.openworld_auc, abs=1e-12)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: trust.fit_temperature(np.zeros((0, 3)), []), r"shape \(0, 3\)"),
        (lambda: trust.fit_temperature([[1.0, 2.0]], [2]), "labels go from 2 to 2, but there are 2 classes"),
        (lambda: trust.fit_temperature([[1.0, 2.0]], [0.5]), "need 1 whole numbers"),
        (lambda: trust.fit_temperature([[1.0, np.nan]], [0]), "image 0 are not finite"),
        (lambda: trust.fit_temperature([[1.0, 2.0]], [0], smoothing=1), "smoothing is 1"),
        (lambda: trust.calibrated_probabilities([[1.0, 2.0]], temperature=0), "temperature is 0"),
        (lambda: trust.calibrated_probabilities([[1.0, 2.0]], factors=[1.0]), "2 numbers above 0 are needed"),
        (lambda: trust.distance_factors(np.eye(3), np.eye(3), np.eye(3), np.eye(4)), "do not go together"),
        (lambda: trust.distance_factors(np.eye(3), np.eye(3), np.eye(3), np.eye(3), neighbours=0), "neighbours is 0"),
        (lambda: trust.threshold_at_recall([], 0.9), "at least one number"),
        (lambda: trust.threshold_at_recall([1.0, np.inf], 0.9), "not finite, at place 1"),
        (lambda: trust.threshold_at_recall([1.0], 95), "recall is 95; it is a share"),
        (lambda: trust.conformal_quantile([1.0], 1.0), "coverage is 1.0"),
        (lambda: trust.conformal_scores([[1.0, 0.0]], [0], "lca"), "Did you mean 'lac'|lac"),
        (lambda: trust.prediction_sets([[1.0, 0.0]], np.nan), "not a number"),
        (lambda: trust.base_scores([[1.0, 0.0]], [True, True]), "all 2 classes are base ones"),
        (lambda: trust.base_scores([[1.0, 0.0]], [1, 0]), "need one True or False each"),
        (lambda: trust.open_world([[1.0, 0.0]], [0], [True, False]), "images of both kinds"),
        (lambda: trust.openworld_auc([1.0], [True, False], [1.0], [True]), "answers whether"),
    ],
)
def test_what_does_not_fit_is_said(call, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        call()
