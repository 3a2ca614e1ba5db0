"""From scores to the numbers of a study, against values computed by hand; the paper's beside them only where they belong; the claims."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from mmrl.reports import harmonic_mean, paper
from mmrl.reports.claims import Difference, claims, difference
from mmrl.reports.claims import _verdict as verdict_of
from mmrl.reports.cost import CostTable
from mmrl.reports.measures import Measure, StudyScores
from mmrl.reports.plans import Slot
from mmrl.reports.results import Results
from mmrl.reports.tables import calibration_sheet, cost_sheet, study_sheets
from tests.results_folder import cost_row, edit_tests, environment, fail, few_shot, fill, halves, make_results, run_path, transfer

OPENAI = "ViT-B-16-quickgelu/openai"
Studies = dict[str, StudyScores]


def study(
    folder: Path, slots: Sequence[Slot], *, at: Callable[[Slot], float], suite: str = "mini", left_out: Sequence[Slot] = ()
) -> StudyScores:
    make_results(folder, slots, suite=suite)
    fill(folder, [each for each in slots if each not in left_out], at=at)
    results = Results(folder)
    return StudyScores(results, results.plans[slots[0].study])


def studies_of(folder: Path) -> Studies:
    results = Results(folder)
    return {name: StudyScores(results, plan) for name, plan in results.plans.items()}


BY_HAND = {("one", "base"): (0.90, 0.80, 0.70), ("one", "novel"): (0.30, 0.40, 0.50), ("two", "base"): (0.50, 0.60, 0.70),
           ("two", "novel"): (0.90, 0.80, 0.70)}  # fmt: skip


def by_hand(each: Slot) -> float:
    if each.seed is None:
        return 0.25 if each.classes == "base" else 0.75
    return BY_HAND[each.dataset, each.classes][each.seed - 1]


def given(measure: Measure | None) -> Measure:
    assert measure is not None
    return measure


def test_means_spreads_and_harmonic_means(tmp_path: Path):
    scores = study(tmp_path, halves(datasets=("one", "two")), at=by_hand)
    zero, arm = scores.arms
    base = given(scores.measure(arm, "one", "base"))
    assert base.mean == pytest.approx(80) and base.std == pytest.approx(10)  # ddof 1: sqrt((100 + 0 + 100) / 2)
    assert base.by_seed == pytest.approx({1: 90.0, 2: 80.0, 3: 70.0}) and base.complete
    hm = given(scores.measure(arm, "one", "hm"))
    assert hm.mean == pytest.approx(2 * 80 * 40 / 120)  # of the means, as in the paper
    own = {1: 45.0, 2: 160 / 3, 3: 175 / 3}  # 2*90*30/120, 2*80*40/120, 2*70*50/120
    assert hm.by_seed == pytest.approx(own) and hm.std == pytest.approx(statistics.stdev(own.values()))
    of_seeds = given(scores.measure(arm, "one", "mean hm"))
    assert of_seeds.mean == pytest.approx(statistics.fmean(own.values())) and of_seeds.by_seed == hm.by_seed
    assert given(hm).mean - of_seeds.mean > 1
    average = given(scores.average(arm, "hm"))
    assert average.mean == pytest.approx(harmonic_mean(70, 60)) and average.datasets == (2, 2)  # base (80+60)/2, novel (40+80)/2
    assert average.by_seed[1] == pytest.approx(harmonic_mean((90 + 50) / 2, (30 + 90) / 2))
    of_sets = given(scores.average(arm, "mean hm"))
    assert of_sets.mean == pytest.approx((2 * 80 * 40 / 120 + 2 * 60 * 80 / 140) / 2)  # each data set's, of its means
    assert of_sets.by_seed[1] == pytest.approx((45 + 900 / 14) / 2)
    assert average.mean != pytest.approx(given(scores.average(arm, "mean hm")).mean, abs=0.5)
    unadapted = given(scores.measure(zero, "one", "hm"))
    assert unadapted.mean == pytest.approx(37.5) and unadapted.std is None and list(unadapted.by_seed) == [None]


def test_what_is_missing_is_said(tmp_path: Path):
    slots = halves(datasets=("one", "two"))
    lost = [each for each in slots if each.method == "mmrl" and (each.seed == 3 or each.dataset == "two")]
    scores = study(tmp_path, slots, at=by_hand, left_out=lost)
    arm = scores.arms[1]
    partial = given(scores.measure(arm, "one", "base"))
    assert (len(partial.by_seed), partial.planned, partial.complete) == (2, 3, False) and partial.mean == pytest.approx(85)
    assert given(scores.measure(arm, "two", "novel")).mean is None
    assert given(scores.average(arm, "base")).datasets == (1, 2)
    assert scores.measure(arm, "two", "all") is None  # never planned


def test_half_a_pair_gives_no_harmonic_mean(tmp_path: Path):
    slots = halves(datasets=("one", "two"), seeds=(1, 2))
    lost = [each for each in slots if each.classes == "novel" and each.seed and (each.seed == 1 or each.dataset == "two")]
    scores = study(tmp_path, slots, at=by_hand, left_out=lost)
    arm = scores.arms[1]
    for metric in ("hm", "mean hm"):
        found = given(scores.measure(arm, "one", metric))
        assert list(found.by_seed) == [2] and found.mean == pytest.approx(160 / 3)  # base of seed 1 has no partner
        assert given(scores.measure(arm, "two", metric)).mean is None
        average = given(scores.average(arm, metric))
        assert average.mean == pytest.approx(160 / 3) and average.datasets == (1, 2) and not average.complete
    assert given(scores.average(arm, "base")).mean == pytest.approx((85 + 55) / 2)
    assert scores.measure(arm, "three", "hm") is None is scores.average(arm, "hm", datasets=["three"])


def test_two_backbones_and_two_shots_are_rows_of_their_own(tmp_path: Path):
    slots = [*halves(datasets=("one",)), *halves(datasets=("one",), backbone="other")]
    slots += [each.model_copy(update={"shots": 4, "key": f"{each.key}4", "run": f"{each.run}4"}) for each in slots if each.seed]
    scores = study(tmp_path, slots, at=by_hand)
    (_, sheet) = study_sheets(scores)
    assert sheet.heads[:4] == ("data set", "method", "backbone", "shots") and len(sheet.rows) == 6
    assert all(measure.planned in (1, 3) for row in sheet.rows for measure in row if isinstance(measure, Measure))


def paper_study(folder: Path, **changes: object) -> StudyScores:
    settings: dict[str, object] = {"datasets": paper.DATASETS, "backbone": OPENAI}
    suite = str(changes.pop("suite", "paper"))
    return study(folder, halves(**(settings | changes)), at=lambda each: 0.8, suite=suite)


def test_the_papers_numbers_stand_beside_the_papers_setting(tmp_path: Path):
    scores = paper_study(tmp_path)
    zero, arm = scores.arms
    found = given(scores.measure(arm, "dtd", "hm"))
    assert found.paper and found.paper.value == 73.82 and found.paper.odd and found.delta == pytest.approx(80 - 73.82)
    assert given(scores.average(arm, "hm")).paper == paper.Printed(81.20)
    assert given(scores.average(arm, "mean hm")).paper is None  # the paper averages first
    assert given(scores.measure(zero, "imagenet", "base")).paper == paper.Printed(72.43)
    assert given(scores.measure(arm, "dtd", "base", quantity="ece")).paper is None


@pytest.mark.parametrize(
    "changes",
    [{"suite": "mini"}, {"suite": "own"}, {"backbone": "ViT-B-32/openai"}, {"backbone": "ViT-B-16/openai"}, {"variants": ("lam=2",)},
     {"methods": ("mmrlpp",)}, {"datasets": ("mini:digits", "mini:objects")}],
)  # fmt: skip
def test_and_beside_no_other(tmp_path: Path, changes: dict[str, object]):
    scores = paper_study(tmp_path, **({"methods": ("mmrl",)} | changes))
    numbers = [cell for sheet in study_sheets(scores) for row in sheet.rows for cell in row if isinstance(cell, Measure)]
    ours = [measure for measure in numbers if not measure.arm.paper_only]
    assert ours and not [measure for measure in ours if measure.paper]


def test_the_difference_to_the_paper_is_that_of_the_hm_of_means(tmp_path: Path):
    level = {"base": (0.65, 0.75, 0.85), "novel": (0.75, 0.65, 0.55)}
    slots = halves(datasets=paper.DATASETS, backbone=OPENAI, methods=("mmrl",))
    scores = study(tmp_path, slots, at=lambda each: level[each.classes][(each.seed or 0) - 1], suite="paper")
    arm = scores.arms[0]
    found, of_seeds = given(scores.measure(arm, "eurosat", "hm")), given(scores.measure(arm, "eurosat", "mean hm"))
    assert found.delta == pytest.approx(harmonic_mean(75, 65) - 87.21)
    assert of_seeds.delta is None and of_seeds.mean is not None and found.mean is not None and of_seeds.mean < found.mean - 0.05
    assert given(scores.average(arm, "hm")).delta == pytest.approx(harmonic_mean(75, 65) - 81.20)


def test_nor_beside_what_is_incomplete_or_of_other_shots(tmp_path: Path):
    slots = halves(methods=("mmrl",), datasets=paper.DATASETS, backbone=OPENAI)
    scores = study(tmp_path / "a", slots, at=lambda each: 0.8, suite="paper", left_out=slots[:1])
    arm = scores.arms[0]
    assert given(scores.measure(arm, "imagenet", "base")).paper is None and given(scores.average(arm, "base")).paper is None
    assert given(scores.measure(arm, "dtd", "base")).paper
    part = study(
        tmp_path / "b", halves(methods=("mmrl",), datasets=paper.DATASETS[:3], backbone=OPENAI), at=lambda each: 0.8, suite="paper"
    )
    assert given(part.average(part.arms[0], "hm")).paper is None and given(part.measure(part.arms[0], "imagenet", "hm")).paper
    other = [each.model_copy(update={"shots": 4}) for each in slots]
    four = study(tmp_path / "c", other, at=lambda each: 0.8, suite="paper")
    assert given(four.measure(four.arms[0], "dtd", "base")).paper is None


def test_nor_beside_a_split_drawn_here(tmp_path: Path):
    slots = halves(methods=("mmrl",), datasets=paper.DATASETS, backbone=OPENAI)
    study(tmp_path, slots, at=lambda each: 0.8, suite="paper")
    ours = next(each for each in slots if each.dataset == "dtd" and each.classes == "novel" and each.seed == 2)
    edit_tests(tmp_path, [ours], own_split=True)
    scores = studies_of(tmp_path)["base-to-novel"]
    arm = scores.arms[0]
    without = [
        scores.measure(arm, "dtd", "novel"),
        scores.measure(arm, "dtd", "hm"),
        scores.average(arm, "novel"),
        scores.average(arm, "hm"),
    ]
    assert all(measure and measure.complete and not measure.paper and measure.own_splits == {"dtd"} for measure in without)
    assert all(given(measure).paper for measure in (scores.measure(arm, "dtd", "base"), scores.average(arm, "base")))
    assert all(any("Not the published split: dtd." in note for note in sheet.all_notes) for sheet in study_sheets(scores))


def test_every_study_meets_its_table_of_the_paper(tmp_path: Path):
    slots = [
        *few_shot(("mmrl",), (1, 16), datasets=paper.DATASETS, backbone=OPENAI),
        *transfer("cross-dataset", "imagenet", [name for name in paper.DATASETS if name != "imagenet"], backbone=OPENAI),
        *transfer("domain-generalisation", "imagenet", paper.SHIFTED, backbone=OPENAI),
        *halves("variants", ("mmrl",), variants=("full", "w/o RS"), datasets=paper.DATASETS, seeds=(1,), backbone=OPENAI),
        *halves("lambda", ("mmrl",), variants=("0.2",), datasets=paper.DATASETS, seeds=(1,), backbone=OPENAI),
    ]
    fill(make_results(tmp_path, slots, suite="paper"), slots, at=lambda each: 0.7)
    found = studies_of(tmp_path)
    few, cross, domain, variants, lam = (
        found[name] for name in ("few-shot", "cross-dataset", "domain-generalisation", "variants", "lambda")
    )
    assert given(few.average(few.arms[0], "all", shots=1)).paper == paper.Printed(72.67)
    zero, mmrl = cross.arms
    assert given(cross.average(mmrl, "all")).paper == paper.Printed(67.25) and given(cross.average(mmrl, "all")).datasets == (10, 10)
    assert given(cross.average(zero, "all")).paper is None
    assert given(domain.measure(zero := domain.arms[0], "imagenet_r", "all")).paper == paper.Printed(73.96)
    assert given(domain.average(zero, "all")).datasets == (4, 4)
    assert [given(variants.average(arm, "hm")).paper for arm in variants.arms] == [paper.Printed(81.20), paper.Printed(80.34)]
    assert given(lam.measure(lam.arms[0], "imagenet", "base")).paper == paper.Printed(77.83)
    assert given(lam.measure(lam.arms[0], "dtd", "hm")).paper == paper.Printed(70.58)


def test_a_damaged_run_loses_its_own_scores_alone(tmp_path: Path):
    slots = halves(datasets=("one", "two"))
    study(tmp_path, slots, at=by_hand)
    broken = run_path(tmp_path, next(each for each in slots if each.seed == 2 and each.dataset == "one"))
    broken.write_text(broken.read_text()[:-9])
    results = Results(tmp_path)
    scores = StudyScores(results, results.plans["base-to-novel"])
    arm = scores.arms[1]
    for half in ("base", "novel"):
        assert list(given(scores.measure(arm, "one", half)).by_seed) == [1, 3] and given(scores.measure(arm, "two", half)).complete
    assert len(results.tests) == len(slots) - 2
    (message,) = results.damaged
    assert str(broken) in message


def test_dirty_results_are_known(tmp_path: Path):
    slots = halves(datasets=("one",))
    scores = study(tmp_path, slots, at=by_hand)
    assert not given(scores.measure(scores.arms[1], "one", "base")).dirty
    fill(tmp_path, slots[2:3], dirty=True)
    again = studies_of(tmp_path)["base-to-novel"]
    assert given(again.measure(again.arms[1], "one", "base")).dirty and given(again.average(again.arms[1], "hm")).dirty
    assert not given(again.measure(again.arms[1], "one", "novel")).dirty
    run_path(tmp_path, slots[2]).unlink()
    fill(tmp_path, slots[2:4], dirty=True)
    edit_tests(tmp_path, slots[2:4], environment=json.loads(environment().model_dump_json()))
    trained = studies_of(tmp_path)["base-to-novel"]  # a dirty training makes every score of it dirty
    assert given(trained.measure(trained.arms[1], "one", "novel")).dirty


def verdicts(folder: Path) -> dict[str, tuple[str, tuple[str, ...]]]:
    results = Results(folder)
    found = claims(results, studies_of(folder))
    return {claim.text: (claim.verdict, claim.evidence) for claim in found}


def test_claims_without_runs_are_not_run(tmp_path: Path):
    slots = halves(datasets=("one",))
    make_results(tmp_path, slots)
    fail(tmp_path, slots[0])
    found = verdicts(tmp_path)
    assert len(found) >= 10 and {verdict for verdict, _ in found.values()} == {"not run"}


def test_claims_follow_the_numbers(tmp_path: Path):
    level = {
        "full": 0.8,
        "w/o DS1": 0.7,
        "w/o DS2": 0.9,
        "w/o RS": 0.7,
        "cosine": 0.8,
        "l1": 0.7,
        "mse": 0.9,
        "1": 0.6,
        "6": 0.8,
        "12": 0.9,
    }
    shots = {None: 0.5, 1: 0.6, 2: 0.7, 4: 0.65}

    def at(each: Slot) -> float:
        return level[each.variant] if each.variant else shots[each.shots] if each.study == "few-shot" else 0.5 if each.seed is None else 0.8

    slots = [
        *halves(),
        *few_shot(),
        *halves("variants", ("mmrl",), variants=("full", "w/o DS1", "w/o DS2", "w/o RS")),
        *halves("regulariser", ("mmrl",), variants=("cosine", "l1", "mse")),
        *halves("layers", ("mmrl",), variants=("1", "6", "12")),
    ]
    fill(make_results(tmp_path, slots), slots, at=at)
    found = {text.split(":")[0]: verdict for text, (verdict, _) in verdicts(tmp_path).items()}
    assert found["MMRL has a higher HM of base and novel accuracy than zero-shot CLIP"] == "holds"
    assert found["MMRL's few-shot accuracy rises with every number of shots"] == "does not hold"
    assert found["MMRL's gain over zero-shot CLIP grows with the shots"] == "holds"
    assert found["Decoupling helps base classes"] == "holds" and found["Decoupling helps novel classes"] == "does not hold"
    assert found["The shared representation space helps novel classes"] == "holds"
    assert found["The cosine regulariser is better than L1 and MSE"] == "does not hold"
    assert found["Tokens in the upper layers are better than in all layers"] == "holds"
    assert found["MMRL is above zero-shot CLIP on shifted data"] == "not run"
    assert found["Tokens in both encoders are better than in one of them"] == "not run"


def test_layers_of_unlike_arms_are_not_compared(tmp_path: Path):
    few = halves("layers", ("mmrl",), variants=("1", "3"), backbone="few layers")
    many = halves("layers", ("mmrl",), variants=("12", "24"), backbone="many layers")
    usual = halves(methods=("mmrl",), backbone="many layers")  # their J is 6, which neither tries

    def at(each: Slot) -> float:
        return {"1": 0.5, "3": 0.6, "12": 0.95, "24": 0.9}.get(each.variant, 0.7)

    fill(make_results(tmp_path, [*usual, *few, *many]), [*usual, *few, *many], at=at)
    text = "Tokens in the upper layers are better than in all layers"
    verdict, evidence = verdicts(tmp_path)[text]
    assert verdict == "not run" and not evidence  # of either, the J closest to the default is the lowest
    more = halves("layers", ("mmrl",), variants=("1", "6"), backbone="many layers")
    slots = [*few, *many, *more]
    fill(make_results(tmp_path, slots), slots, at=lambda each: 0.8 if each.variant == "6" else at(each))
    verdict, (sentence,) = verdicts(tmp_path)[text]
    assert verdict == "holds" and "J = 6 80.00, J = 1 50.00" in sentence


@pytest.mark.parametrize(
    ("level", "noise", "seeds", "verdict"),
    [
        ({1: 0.6, 4: 0.7}, 0.0, (1, 2), "holds"),
        ({1: 0.6, 4: 0.7}, 0.0, (1,), "undecided"),
        ({1: 0.6, 4: 0.61}, 0.05, (1, 2), "undecided"),
        ({1: 0.7, 4: 0.6}, 0.0, (1, 2), "does not hold"),
        ({1: 0.3, 4: 0.4}, 0.0, (1, 2), "does not hold"),
    ],
    ids=["grows", "one seed", "within its spread", "shrinks", "no gain at all"],
)
def test_the_gain_grows_only_beyond_its_spread(tmp_path: Path, level: dict[int, float], noise: float, seeds: tuple[int, ...], verdict: str):
    def at(each: Slot) -> float:
        alternating = noise * (-1) ** (each.seed or 0) * (1 if each.shots == 4 else -1)
        return 0.5 if each.seed is None else level[each.shots or 0] + alternating

    slots = few_shot(shots=(1, 4), seeds=seeds)
    fill(make_results(tmp_path, slots), slots, at=at)
    found, evidence = verdicts(tmp_path)["MMRL's gain over zero-shot CLIP grows with the shots"]
    assert found == verdict and len(evidence) == 3 and "4 shots" in evidence[2] and "1 shot " in evidence[2]


def test_the_gain_grows_over_the_data_sets_that_both_have(tmp_path: Path):
    level = {("hard", 1): 0.5, ("hard", 4): 0.4, ("easy", 4): 0.9}
    slots = few_shot(shots=(1, 4), datasets=("hard", "easy"))
    done = [each for each in slots if each.seed is None or (each.dataset, each.shots) in level]
    fill(make_results(tmp_path, slots), done, at=lambda each: 0.3 if each.seed is None else level[each.dataset, each.shots or 0])
    assert verdicts(tmp_path)["MMRL's gain over zero-shot CLIP grows with the shots"][0] == "does not hold"


def test_a_difference_is_told_against_its_spread(tmp_path: Path):
    scores = study(tmp_path, halves(datasets=("one", "two")), at=by_hand)
    zero, arm = scores.arms
    found = difference(scores, arm, zero, "base")
    assert found and found.value == pytest.approx(45) and found.spread == pytest.approx(0, abs=1e-9)  # seeds average to 70 each
    assert (found.better, found.datasets) == (2, 2)
    novel = difference(scores, arm, zero, "novel")
    assert novel and novel.value == pytest.approx(-15) and novel.better == 1
    assert "−15.00 points" in novel.sentence("a", "b", "novel") and "1 of 2 data sets" in novel.sentence("a", "b", "novel")
    assert difference(scores, arm, arm, "all") is None


def test_calibration_and_cost(tmp_path: Path):
    scores = study(tmp_path, halves(datasets=("one",)), at=by_hand)
    sheet = calibration_sheet(scores)
    assert sheet and sheet.heads[-2:] == ("ECE, base classes", "ECE, novel classes")
    measure = sheet.rows[1][-2]
    assert isinstance(measure, Measure) and math.isclose(measure.mean or 0, 2.0) and measure.metric == "ece base"  # 0.1 * (1 - 0.8)
    cost = cost_sheet(CostTable(rows=(cost_row("mmrl", hm=0.75), cost_row("ours", trained_parameters=0))))
    assert (
        cost
        and "variant" not in cost.heads
        and [row[0] for row in cost.rows] == ["MMRL", "ours"]
        and cost.rows[0][cost.heads.index("HM")] == 75
    )
    assert cost.rows[1][cost.heads.index("HM")] is None and "a processor, 2 cores" in cost.notes[0]
    assert cost_sheet(CostTable()) is None


def test_a_difference_of_hms_is_of_means(tmp_path: Path):
    scores = study(tmp_path, halves(datasets=("one",)), at=by_hand)
    zero, arm = scores.arms
    found = difference(scores, arm, zero, "hm")
    assert found and found.ours == pytest.approx(2 * 80 * 40 / 120) and found.other == pytest.approx(37.5)
    assert found.spread == pytest.approx(statistics.stdev([45.0, 160 / 3, 175 / 3]))


def test_options_of_the_users_count_where_the_recipes_were_not_run(tmp_path: Path):
    mine = halves(variants=("epochs=2",), datasets=("one",))
    fill(make_results(tmp_path, mine), mine, at=by_hand)
    verdict, evidence = next(iter(verdicts(tmp_path).values()))
    assert verdict == "holds" and "MMRL (epochs=2)" in evidence[0]
    both = [*mine, *halves(datasets=("one",))]
    fill(make_results(tmp_path, both), both, at=lambda each: 0.1 if each.method == "mmrl" and not each.variant else 0.5)
    assert next(iter(verdicts(tmp_path).values()))[0] == "does not hold"


def test_a_difference_within_its_spread_decides_nothing():
    def gap(value: float, spread: float | None) -> Difference:
        return Difference(50 + value, 50, spread, better=1, datasets=2, planned=2)

    assert verdict_of([gap(1, 0.5), gap(2, 0.5)]) == "holds"
    assert verdict_of([gap(1, 0.5), gap(1, 2)]) == "undecided" == verdict_of([gap(-1, 2)])
    assert verdict_of([gap(1, 0.5), gap(1, None)]) == "undecided" == verdict_of([gap(-1, None)])  # one seed
    assert verdict_of([gap(1, 0.5), gap(-1, 0.5)]) == "does not hold"
    assert verdict_of([]) == "not run"
