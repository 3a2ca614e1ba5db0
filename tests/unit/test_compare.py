"""`mmrl compare`: differences of the same data sets and seeds, and their intervals."""

from __future__ import annotations

import json
import statistics
from pathlib import Path

import numpy as np
import pytest

from mmrl.reports.measures import StudyScores
from mmrl.reports.paired import Side, compare, interval
from mmrl.reports.plans import Slot
from mmrl.reports.records import harmonic_mean
from mmrl.reports.results import Results
from tests import results_folder as made
from tests.unit.test_cli_bench import Bench, mmrl  # noqa: F401  (a fixture)

SETS = ("mini:digits", "mini:objects", "mini:glyphs")


def folder(path: Path, slots: list[Slot], shift: float = 0.0) -> Path:
    made.fill(made.make_results(path, slots), slots, at=lambda slot: made.accuracy(slot) + shift)
    return path


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The same grid twice, three points higher in the second; few-shot too, and a data set that the second lacks."""
    root = tmp_path_factory.mktemp("compare")
    grid = [*made.halves(methods=("zero-shot", "mmrl", "coop"), datasets=SETS), *made.few_shot(datasets=SETS[:2])]
    short = [slot for slot in grid if slot.dataset != SETS[2]]
    return folder(root / "a", grid), folder(root / "b", short, 0.03)


def test_two_methods_are_paired_by_data_set_and_seed(mmrl: Bench, both: tuple[Path, Path]) -> None:  # noqa: F811
    code, printed, _ = mmrl("compare", "mmrl", "coop", "--in", both[0], "--study", "base-to-novel", "--json")
    assert code == 0
    found = {each["metric"]: each for each in json.loads(printed)}
    results = Results(both[0])
    scores = StudyScores(results, results.plans["base-to-novel"])
    arms = {arm.method: arm for arm in scores.arms}
    for metric, each in found.items():
        ours, other = (scores.average(arms[name], metric) for name in ("mmrl", "coop"))
        assert ours and other and ours.mean and other.mean
        assert each["ours"] == pytest.approx(ours.mean, rel=1e-12) and each["other"] == pytest.approx(other.mean, rel=1e-12)
        assert each["low"] < each["value"] < each["high"] and each["low"] > 0 and each["verdict"] == "higher"
        assert (each["pairs"], each["datasets"], each["better"]) == (9, 3, 3)
    assert set(found) == {"base", "novel", "hm"}
    turned = mmrl("compare", "coop", "mmrl", "--in", both[0], "--study", "base-to-novel", "--json")[1]
    back = {each["metric"]: each for each in json.loads(turned)}
    assert all(back[metric]["value"] == -each["value"] and back[metric]["verdict"] == "lower" for metric, each in found.items())


def test_two_folders_are_compared_arm_by_arm(mmrl: Bench, both: tuple[Path, Path]) -> None:  # noqa: F811
    code, printed, _ = mmrl("compare", *both, "--json")
    found = json.loads(printed)
    assert code == 0 and {each["row"] for each in found if each["study"] == "base-to-novel"} == {"MMRL", "CoOp"}
    assert all(each["verdict"] == "lower" and each["datasets"] == 2 for each in found)
    assert all(each["value"] == pytest.approx(-3, abs=0.01) for each in found if each["metric"] != "hm")
    assert {each["row"] for each in found if each["study"] == "few-shot"} == {"MMRL, 1 shot", "MMRL, 2 shots", "MMRL, 4 shots"}
    code, printed, _ = mmrl("compare", *both, "--by-dataset")
    assert code == 0 and "mini:digits" in printed and "first is" in printed and "lower" in printed
    code, printed, _ = mmrl("compare", "mmrl", "zero-shot", "--in", both[0], "--in", both[1], "--json")
    assert code == 0 and {each["pairs"] for each in json.loads(printed) if each["study"] == "base-to-novel"} == {6}


def test_the_interval_is_that_of_resampled_data_sets_and_seeds() -> None:
    random = np.random.default_rng(3)
    sides = [([tuple(row) for row in random.uniform(50, 90, (seeds, 2))], [tuple(row) for row in random.uniform(50, 90, (seeds, 2))])
             for seeds in (3, 1, 2, 3)]  # fmt: skip
    resampled = []
    for _ in range(4000):
        chosen = [sides[at] for at in random.integers(4, size=4)]
        picks = [random.integers(len(ours), size=len(ours)) for ours, _ in chosen]
        numbers = []
        for side in (0, 1):
            means = [[statistics.fmean(both[side][at][half] for at in pick) for half in (0, 1)] for both, pick in zip(chosen, picks)]
            numbers.append(harmonic_mean(*(statistics.fmean(half) for half in zip(*means))))
        resampled.append(numbers[0] - numbers[1])
    low, high = interval(sides, "hm")
    assert low is not None and high is not None
    assert np.quantile(resampled, [0.025, 0.975]) == pytest.approx([low, high], abs=0.06 * (high - low))
    assert interval([([(1.0,)], [(2.0,)])], "all") == (None, None) and interval(sides, "hm") == (low, high)


def test_two_pairs_decide_nothing() -> None:
    ours, other = [(80.0,), (80.0,), (80.0,)], [(70.0,), (70.0,), (70.0,)]
    assert interval([(ours[:2], other[:2])], "all") == (None, None) == interval([(ours[:1], other[:1])] * 2, "all")
    assert interval([(ours, other)], "all") == pytest.approx((10, 10))


def test_equal_sides_have_no_difference(both: tuple[Path, Path]) -> None:
    results = Results(both[0])
    scores = StudyScores(results, results.plans["base-to-novel"])
    side = Side(results, scores, scores.arms[1], "MMRL")
    for each in compare(side, side):
        assert (each.value, each.low, each.high, each.verdict, each.redrawn) == (0, 0, 0, "undecided", 0)


def test_other_draws_are_told_and_other_data_left_out(mmrl: Bench, both: tuple[Path, Path], tmp_path: Path) -> None:  # noqa: F811
    slots = made.halves(methods=("mmrl",), datasets=SETS)
    other = folder(tmp_path / "other", slots)
    for path in (other / "runs").iterdir():
        run = json.loads(path.read_text())
        run["training"]["draw_hash"] = "ee" * 8
        if run["training"]["dataset"] == SETS[0]:
            for test in run["tests"]:
                test["data"] = "another"
        path.write_text(json.dumps(run))
    code, printed, _ = mmrl("compare", both[0], other)
    flat = " ".join(printed.split())
    assert code == 0 and "6 pairs were trained on different images" in flat and "3 pairs are left out" in flat


def test_what_cannot_be_compared(mmrl: Bench, both: tuple[Path, Path], tmp_path: Path) -> None:  # noqa: F811
    code, _, err = mmrl("compare", "mmrl", "coopp", "--in", both[0])
    assert code == 2 and "has no runs of 'coopp'. It has: coop, mmrl, zero-shot" in err
    code, _, err = mmrl("compare", "mmrl", "coop")
    assert code == 2 and "results folder mmrl does not exist" in err and "--in" in err
    code, _, err = mmrl("compare", *both, "--study", "lambda")
    assert code == 2 and "unknown study 'lambda'" in err
    alone = folder(tmp_path / "alone", made.halves("lambda", ("mmrl",), variants=("1.0",), seeds=(1,)))
    code, _, err = mmrl("compare", both[0], alone)
    assert code == 2 and "nothing to compare" in err
