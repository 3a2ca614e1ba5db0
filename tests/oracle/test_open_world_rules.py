"""The rules for mixed lists, written out image by image and class by class."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from mmrl import methods
from mmrl.clip import Clip
from mmrl.engine.rules import (
    BESIDE,
    CLASS,
    COOLED,
    FOLDS,
    FROZEN,
    FUSED,
    MASS,
    ONE,
    RECALL,
    STACKED,
    Fitted,
    Passed,
    cross_fitted,
    fit_on,
    fitted_rules,
    plain_rules,
)
from mmrl.trust import fit_temperature
from tests.unit.colours import NAMES, PROMPT, fresh, smallest_clip

TRAINED = np.array([True, False, True, False, False])
BIAS = {MASS: 1.5, FUSED: -2.0, CLASS: 0.25, BESIDE: 3.0}


def passed(n: int = 6, seed: int = 0, two: bool = True) -> Passed:
    random = np.random.default_rng(seed)
    own, fused, single = 4 * random.normal(size=(3, n, len(TRAINED)))
    return Passed(own, fused, single) if two else Passed(own)


def softmax(row: list[float]) -> list[float]:
    total = math.fsum(math.exp(value) for value in row)
    return [math.exp(value) / total for value in row]


def plainly(fused: list[float], single: list[float]) -> list[float]:
    """Probabilities: the class token says how much the trained classes have together, and the fused scores divide it among them."""
    p, among = softmax(single), softmax([value for value, trained in zip(fused, TRAINED) if trained])
    mass = math.fsum(value for value, trained in zip(p, TRAINED) if trained)
    shares = iter(among)
    return [mass * next(shares) if trained else value for value, trained in zip(p, TRAINED)]


@pytest.mark.parametrize(("first", "second"), [(1.0, 1.0), (1.7, 0.6)])
def test_mass(first: float, second: float) -> None:
    """Without temperatures and with them."""
    logits = passed()
    found = fitted_rules(logits, TRAINED, Fitted(first, second, {}))[MASS + COOLED]
    assert logits.fused is not None and logits.single is not None
    for row, fused, single in zip(found, logits.fused / first, logits.single / second, strict=True):
        np.testing.assert_allclose(softmax(row.tolist()), plainly(fused.tolist(), single.tolist()), rtol=0, atol=1e-12)
    if first == 1:
        np.testing.assert_allclose(plain_rules(logits, TRAINED)[MASS], found, rtol=0, atol=1e-12)


def test_the_others() -> None:
    logits = passed()
    fused, single = logits.fused, logits.single
    assert fused is not None and single is not None
    found = plain_rules(logits, TRAINED) | fitted_rules(logits, TRAINED, Fitted(2.0, 4.0, BIAS))
    for image, at in np.ndindex(fused.shape):
        trained = bool(TRAINED[at])
        assert found[FUSED][image, at] == fused[image, at] and found[CLASS][image, at] == single[image, at]
        assert found[BESIDE][image, at] == (fused if trained else single)[image, at]
        assert found[BESIDE + COOLED][image, at] == (fused / 2 if trained else single / 4)[image, at]
        for name, bias in BIAS.items():
            assert found[name + STACKED][image, at] == found[name][image, at] - (bias if trained else 0)


def test_frozen_mass() -> None:
    """Frozen CLIP says how much each half has together, and the half's own classifier divides it among its classes."""
    random = np.random.default_rng(5)
    own, frozen = 4 * random.normal(size=(2, 6, 5))
    halves = 4 * random.normal(size=(6, 2)), 4 * random.normal(size=(6, 3))
    found = plain_rules(Passed(own, None, None, frozen, *halves), TRAINED)
    assert set(found) == {ONE, FROZEN}
    for at, row in enumerate(found[FROZEN]):
        p = softmax(frozen[at].tolist())
        mass = math.fsum(value for value, trained in zip(p, TRAINED, strict=True) if trained)
        shares = [iter(softmax(half[at].tolist())) for half in halves]
        expected = [mass * next(shares[0]) if trained else (1 - mass) * next(shares[1]) for trained in TRAINED]
        np.testing.assert_allclose(softmax(row.tolist()), expected, rtol=0, atol=1e-12)


def test_one_classifier_has_its_own_logits_and_a_bias() -> None:
    logits = passed(two=False)
    assert {name: value is logits.own for name, value in plain_rules(logits, TRAINED).items()} == {ONE: True}
    found = fitted_rules(logits, TRAINED, Fitted(2.0, None, {ONE: 0.5}))
    assert set(found) == {ONE + STACKED} and np.array_equal(found[ONE + STACKED], logits.own - 0.5 * TRAINED)


@pytest.mark.parametrize("n", [20, 57])
def test_the_bias_leaves_the_stated_share_to_trained_classes(n: int) -> None:
    """As of n + 1 exchangeable images; no larger bias does."""
    logits, labels = passed(n), np.resize(np.flatnonzero(TRAINED), n)
    found = fit_on(logits, labels, TRAINED)
    assert set(found.bias) == set(plain_rules(logits, TRAINED))
    wanted = min(n, math.ceil(RECALL * (n + 1) - 1e-9))
    for name, z in plain_rules(logits, TRAINED).items():
        def kept(bias: float, z: np.ndarray = z) -> int:
            return sum(TRAINED[int((row - bias * TRAINED).argmax())] for row in z)

        assert kept(found.bias[name]) == wanted and kept(found.bias[name] + 1e-6) == wanted - 1


def test_temperatures_are_of_the_trained_classes_alone() -> None:
    logits, labels = passed(40), np.resize(np.flatnonzero(TRAINED), 40)
    found = fit_on(logits, labels, TRAINED)
    assert logits.fused is not None and logits.single is not None
    places = {int(at): place for place, at in enumerate(np.flatnonzero(TRAINED))}
    mine = [places[int(label)] for label in labels]
    for value, z in ((found.temperature, logits.fused), (found.class_temperature, logits.single)):
        assert value == pytest.approx(fit_temperature(z[:, TRAINED], mine, smoothing=1 / 41), rel=1e-9)
    moved = Passed(*(z + 7.0 * ~TRAINED for z in (logits.own, logits.fused, logits.single)))
    assert fit_on(moved, labels, TRAINED).temperature == pytest.approx(found.temperature, rel=1e-9)


def test_no_image_is_scored_with_values_fitted_on_it() -> None:
    """Another image in place of one changes the scores of those in other folds, and not what fits its own."""
    logits, labels = passed(12), np.resize(np.flatnonzero(TRAINED), 12)
    found = cross_fitted(logits, labels, TRAINED)
    for at in range(FOLDS):
        rest = np.arange(12) % FOLDS != at
        fitted = fit_on(logits.at(rest), labels[rest], TRAINED)
        expected = fitted_rules(logits.at(~rest), TRAINED, fitted)
        assert all(np.array_equal(found[name][~rest], z) for name, z in expected.items())
    assert all(np.array_equal(found[name], z) for name, z in plain_rules(logits, TRAINED).items())
    assert set(cross_fitted(logits.at(np.arange(3)), labels[:3], TRAINED)) == set(plain_rules(logits, TRAINED))  # too few to fit


@pytest.mark.parametrize("name", ["mmrl", "mmrlpp"])
@pytest.mark.parametrize("fusion", ["logits", "probabilities"])
def test_what_the_methods_ship_is_the_mass_rule(name: str, fusion: str) -> None:
    clip: Clip = smallest_clip()
    method = fresh(clip, name, fusion=fusion).eval()
    pixels, seen = torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(3)), torch.tensor([True, False, True, False])
    with torch.no_grad():
        head = method.head(method.class_list(NAMES, PROMPT))
        own, fused, single = method.logits_each(pixels, [(head, seen), (head, True), (head, False)])
        again = [method.logits(pixels, head, each) for each in (seen, True, False)]
    assert all(torch.equal(a, b) for a, b in zip((own, fused, single), again, strict=True))
    found = plain_rules(Passed(*(each.double().numpy() for each in (own, fused, single))), seen.numpy())[MASS]
    if fusion == "logits":
        np.testing.assert_allclose(found, own.numpy(), rtol=0, atol=1e-4)
    else:  # the mixture of probabilities depends on the list, so the fused scores of a mixed list are of the trained classes alone
        assert np.abs(found - own.numpy()).max() > 1e-4


def test_every_method_gives_the_same_to_several_questions() -> None:
    clip = smallest_clip()
    pixels = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(4))
    for name in ("zero-shot", "clip-lora", "plotpp"):
        method = methods.build(name, clip, {}, seed=1).eval()
        with torch.no_grad():
            head, other = (method.head(method.class_list(names, PROMPT)) for names in (NAMES, NAMES[:2]))
            found = method.logits_each(pixels, [(head, False), (other, True)])
            assert torch.equal(found[0], method.logits(pixels, head, False)) and torch.equal(found[1], method.logits(pixels, other, True))
