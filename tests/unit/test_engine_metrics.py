"""Scores by hand, and against scikit-learn's."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.calibration import calibration_curve
from sklearn.metrics import accuracy_score, balanced_accuracy_score, confusion_matrix, top_k_accuracy_score

from mmrl.engine.metrics import Tally, score
from mmrl.errors import MmrlError, UsageError

HAND = np.log([[0.7, 0.2, 0.1], [0.5, 0.3, 0.2], [0.1, 0.8, 0.1], [0.3, 0.15, 0.55]])  # softmax gives these back
LABELS = [0, 1, 1, 1]


def test_by_hand() -> None:
    found = score(HAND, LABELS, ["a", "b", "c"])
    assert (found.top1, found.top5, found.count) == (0.5, 1.0, 4)
    assert found.per_class == (1.0, pytest.approx(1 / 3), None)  # c has no image and does not count
    assert found.macro == pytest.approx((1 + 1 / 3) / 2)
    assert found.confusion == ((1, 0, 0), (1, 1, 1), (0, 0, 0))
    # confidences 0.7 right, 0.5 wrong, 0.8 right, 0.55 wrong: bins (10/15, 11/15], (7/15, 8/15], (11/15, 12/15], (8/15, 9/15]
    assert found.ece == pytest.approx((0.3 + 0.5 + 0.2 + 0.55) / 4)
    assert [i for i, b in enumerate(found.bins) if b.count] == [7, 8, 10, 11]
    assert (found.bins[10].confidence, found.bins[10].accuracy) == (pytest.approx(0.7), 1.0)


def test_against_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(400, 12)) * 2, rng.integers(0, 12, 400)
    logits[np.arange(400), labels] += 1.5
    found = score(logits, labels, [str(i) for i in range(12)])
    predicted = logits.argmax(1)
    assert found.top1 == pytest.approx(accuracy_score(labels, predicted))
    assert found.top5 == pytest.approx(top_k_accuracy_score(labels, logits, k=5))
    assert found.macro == pytest.approx(balanced_accuracy_score(labels, predicted))
    assert np.array_equal(found.confusion, confusion_matrix(labels, predicted))
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    accuracy, confidence = calibration_curve(predicted == labels, p.max(1), n_bins=15)
    full = [b for b in found.bins if b.count]
    assert [b.accuracy for b in full] == pytest.approx(list(accuracy))
    assert [b.confidence for b in full] == pytest.approx(list(confidence))
    weights = np.array([b.count for b in full]) / 400
    assert found.ece == pytest.approx(float((weights * np.abs(accuracy - confidence)).sum()))


def test_batches_add_up() -> None:
    rng = np.random.default_rng(1)
    logits, labels = rng.normal(size=(50, 7)), rng.integers(0, 7, 50)
    tally = Tally([str(i) for i in range(7)])
    for first in range(0, 50, 8):
        tally.add(logits[first : first + 8], labels[first : first + 8])
    assert tally.scores() == score(logits, labels, [str(i) for i in range(7)])


def test_equal_logits_do_not_count_as_right() -> None:
    found = score(np.zeros((8, 8)), np.arange(8), list("abcdefgh"))
    assert (found.top1, found.top5) == (1 / 8, 5 / 8)
    assert sum(map(sum, found.confusion)) == 8 and [row[0] for row in found.confusion] == [1] * 8


def test_bad_input() -> None:
    with pytest.raises(UsageError, match=r"shape \(2, 3\)"):
        score(np.zeros((2, 3)), [0, 1], ["a", "b"])
    with pytest.raises(UsageError, match="labels go from 0 to 2"):
        score(np.zeros((2, 2)), [0, 2], ["a", "b"])
    with pytest.raises(UsageError, match="nothing to evaluate"):
        Tally(["a"]).scores()
    with pytest.raises(MmrlError, match="class 'b' for image 1 is not finite"):
        score([[0.0, 1.0], [0.0, np.nan]], [0, 1], ["a", "b"])
