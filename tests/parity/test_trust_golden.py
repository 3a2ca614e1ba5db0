"""DAC and MCM against the numbers of their authors' code (float32 there)."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from mmrl import trust

GOLDEN = Path(__file__).parents[1] / "golden" / "features"
CASES = json.loads((GOLDEN / "golden.json").read_text(encoding="utf-8"))["cases"]
DAC = sorted(name for name, case in CASES.items() if name.startswith("dac/") and "hyper_parameters" in case)
MEASURES = ("measures_ties", "measures_twenty", "measures_separable", "measures_constant")


def tensors(name: str) -> dict[str, np.ndarray]:
    case = CASES[name]
    every, prefix = load_file(GOLDEN / case["file"]), case["prefix"]
    return {key.removeprefix(prefix): value for key, value in every.items() if key.startswith(prefix)}


@pytest.mark.parametrize("name", DAC)
def test_distance_aware_calibration(name: str) -> None:
    case, given = CASES[name], tensors(name)
    texts = [given[f"in/{key}"] for key in ("base_text_zs", "base_text_tuned", "current_text_zs", "current_text_tuned")]
    factors = trust.distance_factors(*texts, neighbours=case["hyper_parameters"]["K"])
    half = texts[0].dtype == np.float16
    np.testing.assert_allclose(factors, given["out/class_confidence"], rtol=2e-3 if half else 1e-6)
    published = given["out/class_confidence"].astype(np.float64)
    p = trust.calibrated_probabilities(given["in/logits"], factors=published)
    np.testing.assert_allclose(p, given["out/probs"], rtol=2e-5, atol=1e-7)
    numbers = case["numbers"]
    for logits_factors, side in ((None, "before"), (published, "after")):
        p = trust.calibrated_probabilities(given["in/logits"], factors=logits_factors)
        confidence, correct = p.max(1), p.argmax(1) == given["in/labels"]
        assert 100 * correct.mean() == pytest.approx(numbers[side]["accuracy"])
        assert 100 * trust.adaptive_calibration_error(confidence, correct, 10) == pytest.approx(numbers[side]["ace"], abs=1e-4)


def test_scores_of_images() -> None:
    given = tensors("mcm/all")
    for t in (1.0, 0.01):
        for which in ("id", "ood"):
            cosines = given[f"in/{which}_features"].astype(np.float64) @ given["in/text_features"].T.astype(np.float64)
            name = f"T{t:g}/{which}_score"
            np.testing.assert_allclose(-trust.mcm_scores(cosines, t), given[f"MCM_{name}"], rtol=2e-5)
            np.testing.assert_allclose(-trust.energy_scores(cosines, t), given[f"energy_{name}"], rtol=2e-6, atol=1e-7)


@pytest.mark.parametrize("name", [*(f"{score}_T{t}" for score in ("MCM", "energy") for t in ("1", "0.01")), *MEASURES])
def test_measures_of_scores(name: str) -> None:
    given, numbers = tensors("mcm/all"), CASES["mcm/all"]["numbers"][name]
    measures = name in MEASURES
    known, unknown = (given[f"{name}/{key}"] for key in (("pos", "neg") if measures else ("id_score", "ood_score")))
    known, unknown = (known, unknown) if measures else (-known, -unknown)
    assert trust.auroc(known, unknown) == pytest.approx(numbers["auroc"], abs=1e-12)
    assert trust.fpr_at_recall(known, unknown) == pytest.approx(numbers["fpr95"], abs=1e-12)
