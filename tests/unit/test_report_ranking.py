"""Methods side by side: ranks, paired differences with their intervals, and accuracy over training time."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmrl.reports.measures import StudyScores
from mmrl.reports.plans import Slot
from mmrl.reports.ranking import ranking_sheet, standings, time_chart
from mmrl.reports.results import Results
from tests.results_folder import Accuracy, few_shot, fill, halves, make_results

METHODS = ("zero-shot", "mmrl", "coop", "other")
TOP = {"zero-shot": 0.6, "mmrl": 0.8, "coop": 0.7, "other": 0.7}


def study(folder: Path, slots: list[Slot], at: Accuracy) -> tuple[Results, StudyScores]:
    make_results(folder, slots)
    fill(folder, slots, at=at)
    results = Results(folder)
    (plan,) = results.plans.values()
    return results, StudyScores(results, plan)


def flat(each: Slot) -> float:
    return TOP[each.method] + 0.01 * (each.seed or 0)


def test_order_ranks_and_differences(tmp_path: Path) -> None:
    slots = halves(methods=METHODS, datasets=("one", "two"), seeds=(1, 2))
    found = standings(*study(tmp_path, slots, flat))
    assert [each.arm.method for each in found] == ["mmrl", "coop", "other", "zero-shot"]
    assert [each.rank for each in found] == [1, 2.5, 2.5, 4]
    by_name = {each.arm.method: each for each in found}
    assert by_name["mmrl"].compared is None
    coop, zero = by_name["coop"].compared, by_name["zero-shot"].compared
    assert coop and zero and (coop.value, coop.low, coop.high) == pytest.approx((-10, -10, -10))
    # zero-shot is 60 beside both seeds' 81 and 82; seeds are drawn too, so the interval is from -22 to -21
    assert (zero.value, zero.low, zero.high) == pytest.approx((-21.5, -22, -21))
    assert by_name["zero-shot"].seconds == 0 and by_name["coop"].seconds == pytest.approx(60) and by_name["coop"].parameters


def test_a_data_set_where_all_is_not_done_has_no_rank(tmp_path: Path) -> None:
    slots = halves(methods=METHODS, datasets=("one", "two"), seeds=(1,))
    make_results(tmp_path, slots)
    fill(tmp_path, [each for each in slots if (each.method, each.dataset) != ("coop", "two")], at=flat)
    results = Results(tmp_path)
    found = {each.arm.method: each for each in standings(results, StudyScores(results, results.plans["base-to-novel"]))}
    compared = found["coop"].compared
    assert found["coop"].rank is None and compared and compared.value == pytest.approx(-10) and compared.datasets == 1
    assert found["mmrl"].rank == 1 and found["other"].rank == 2


def test_what_is_not_applicable_is_last_and_has_no_number(tmp_path: Path) -> None:
    slots = [
        each.model_copy(update={"applicable": each.method != "other" or each.classes == "base"})
        for each in halves(methods=METHODS, datasets=("one", "two"), seeds=(1, 2))
    ]
    results, scores = study(tmp_path, slots, flat)
    found = standings(results, scores)
    assert found[-1].arm.method == "other" and found[-1].rank is None and found[-1].compared is None
    sheet = ranking_sheet(scores, found)
    assert sheet and sheet.rows[-1][1] == "n/a" and sheet.heads[4:7] == ("difference to MMRL", "95% from", "to")
    assert sheet.rows[0][1] == pytest.approx(81.5)


def test_without_mmrl_nothing_is_compared(tmp_path: Path) -> None:
    results, scores = study(tmp_path, halves(methods=("zero-shot", "coop"), seeds=(1, 2)), flat)
    sheet = ranking_sheet(scores, standings(results, scores))
    assert sheet and not any("difference" in head for head in sheet.heads)


def test_few_shot_learning_is_ranked_at_the_most_shots(tmp_path: Path) -> None:
    slots = few_shot(methods=("zero-shot", "mmrl", "coop"), shots=(1, 4))
    results, scores = study(tmp_path, slots, lambda each: TOP[each.method] + 0.01 * (each.shots or 0))
    found = {each.arm.method: each.average.mean for each in standings(results, scores)}
    assert found == pytest.approx({"mmrl": 84, "coop": 74, "zero-shot": 60})


def test_the_chart_names_every_method_and_none_covers_another(tmp_path: Path) -> None:
    results, scores = study(tmp_path, halves(methods=METHODS, datasets=("one", "two"), seeds=(1, 2)), flat)
    drawn = time_chart(scores, standings(results, scores))
    heights = {name: float(drawn.split(f">{name}<")[0].rpartition(' y="')[2].split('"')[0]) for name in ("coop", "other", "mmrl")}
    assert abs(heights["coop"] - heights["other"]) >= 11  # equal in accuracy and time
    assert "zero-shot CLIP" in drawn and "seconds of a training" in drawn
    few = halves(methods=("zero-shot", "a-slow-method", "mmrl"), datasets=("one",), seeds=(1,))
    level = study(tmp_path / "level", few, lambda slot: 0.5 if slot.method != "mmrl" else 0.4)
    drawn = time_chart(level[1], standings(*level))
    heights = [float(drawn.split(f">{name}<")[0].rpartition(' y="')[2].split('"')[0]) for name in ("a-slow-method", "zero-shot CLIP")]
    assert abs(heights[0] - heights[1]) >= 11  # both are at the right, on the line
    alone, one = study(tmp_path / "one", halves(methods=("zero-shot", "mmrl"), seeds=(1,)), flat)
    assert time_chart(one, standings(alone, one)) == ""
