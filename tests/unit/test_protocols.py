"""Plans: how many cells and trainings the paper's evaluations and ablations are, counted by hand, and what they share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from mmrl.errors import UsageError
from mmrl.protocols import ABLATIONS, EVALUATIONS, MINI, PAPER, Cell, Suite, Tower, Training, ablate, evaluation
from mmrl.reports import paper

METHODS = ("zero-shot", "mmrl", "mmrlpp")
SEEDS = (1, 2, 3)


def trainings(cells: list[Cell]) -> set[Training]:
    return {cell.training for cell in cells if cell.training}


def planned(study: str, **more: Any) -> list[Cell]:
    return evaluation(study, PAPER, METHODS, SEEDS, **more)


@pytest.mark.parametrize(
    ("study", "cells", "trained"),
    [
        ("base-to-novel", 11 * 2 * (1 + 2 * 3), 11 * 2 * 3),  # data sets, halves, zero-shot and two methods of three seeds
        ("few-shot", 11 * (1 + 2 * 5 * 3), 11 * 2 * 5 * 3),
        ("cross-dataset", (1 + 10) * (1 + 2 * 3), 2 * 3),
        ("domain-generalisation", (1 + 4) * (1 + 2 * 3), 2 * 3),
    ],
)
def test_the_papers_evaluations_counted_by_hand(study: str, cells: int, trained: int) -> None:
    plan = planned(study)
    assert len(plan) == len(set(plan)) == cells
    assert len(trainings(plan)) == trained
    assert {cell.study for cell in plan} == {study}
    assert {cell.method for cell in plan} == set(METHODS)


def test_both_transfers_test_the_same_trainings_and_no_others_are_shared() -> None:
    across, shifted = (trainings(planned(study)) for study in ("cross-dataset", "domain-generalisation"))
    assert across == shifted
    assert {(training.dataset, training.classes, training.shots) for training in across} == {("imagenet", "all", 16)}
    everything = [cell for study in EVALUATIONS for cell in planned(study)]
    assert len(trainings(everything)) == 66 + 330 + 6


def test_suites_have_the_papers_data_sets_and_the_mini_ones_in_the_same_roles() -> None:
    assert PAPER.single == paper.DATASETS and PAPER.shifted == paper.SHIFTED and len(PAPER.names) == 15
    assert PAPER.source == "imagenet" and set(PAPER.targets) == set(PAPER.single) - {"imagenet"}
    assert MINI.source in MINI.single and set(MINI.targets) == set(MINI.single) - {MINI.source}
    assert len(MINI.shifted) == len(PAPER.shifted) and len(MINI.names) == 9


@pytest.mark.parametrize("suite", [PAPER, MINI], ids=lambda suite: suite.name)
def test_what_is_seen(suite: Suite) -> None:
    for study in EVALUATIONS:
        for cell in evaluation(study, suite, METHODS, (1,)):
            t = cell.training
            covered = t is not None and t.dataset == cell.dataset and (t.classes == "all" or cell.classes == "base")
            assert cell.seen is covered, cell


def test_few_shot_has_the_papers_shots_and_every_cell_its_own_training() -> None:
    plan = planned("few-shot")
    assert {cell.training.shots for cell in plan if cell.training} == set(paper.SHOTS)
    assert {cell.training.classes for cell in plan if cell.training} == {"all"} == {cell.classes for cell in plan}
    assert sum(cell.training is None for cell in plan) == 11
    few = planned("few-shot", shots=(2, 4), datasets=("dtd",))
    assert [(cell.method, cell.training and cell.training.shots) for cell in few].count(("mmrl", 4)) == 3


def test_base_to_novel_trains_on_the_base_half_with_16_shots() -> None:
    plan = planned("base-to-novel")
    assert {(t.classes, t.shots, t.recipe) for t in trainings(plan)} == {("base", 16, "base-to-novel")}
    for training in trainings(plan):
        halves = [cell.classes for cell in plan if cell.training == training]
        assert sorted(halves) == ["base", "novel"]
        assert {cell.dataset for cell in plan if cell.training == training} == {training.dataset}


def test_overrides_name_the_variant_and_leave_zero_shot_alone() -> None:
    given = {"lam": 2, "regulariser": "l1", "visual": False}
    plan = planned("base-to-novel", overrides=given)
    assert {cell.variant for cell in plan if cell.training} == {"lam=2, regulariser=l1, visual=false"}
    assert {cell.variant for cell in plan if not cell.training} == {""}
    assert not trainings(plan) & trainings(planned("base-to-novel"))
    assert plan == planned("base-to-novel", overrides=dict(reversed(given.items())))


@pytest.mark.parametrize("study", EVALUATIONS)
def test_a_methods_own_options_win_and_are_its_own(study: str) -> None:
    plan = planned(study, overrides={"epochs": 2, "lr": 0.1}, own={"mmrl": {"epochs": 3, "lam": 2}})
    variants = {method: {cell.variant for cell in plan if cell.method == method} for method in METHODS}
    assert variants.pop("zero-shot") == {""} and variants.pop("mmrl") == {"epochs=3, lam=2, lr=0.1"}
    assert all(each == {"epochs=2, lr=0.1"} for each in variants.values())
    assert {t.overrides for t in trainings(plan) if t.method == "mmrl"} == {(("epochs", 3), ("lam", 2), ("lr", 0.1))}


@pytest.mark.parametrize("study", ["cross-dataset", "domain-generalisation"])
def test_paper_compat_changes_how_mmrlpp_is_tested_and_nothing_else(study: str) -> None:
    plain, tuned = planned(study), planned(study, paper_compat=True)
    assert trainings(plain) == trainings(tuned)
    assert {cell.method for cell in tuned if cell.options or cell.variant} == {"mmrlpp"}
    assert not any(cell.options for cell in plain)
    betas = {cell.dataset: dict(cell.options)["beta"] for cell in tuned if cell.method == "mmrlpp"}
    assert set(betas) == {"imagenet", *(PAPER.targets if study == "cross-dataset" else PAPER.shifted)}
    assert len(set(betas.values())) > 1
    assert [cell for cell in plain if cell.method != "mmrlpp"] == [cell for cell in tuned if cell.method != "mmrlpp"]


def test_another_source_is_no_target_of_its_own() -> None:
    plan = evaluation("cross-dataset", PAPER, ("mmrl",), (1,), source="dtd", datasets=("dtd", "eurosat"))
    assert [(cell.dataset, cell.seen) for cell in plan] == [("dtd", True), ("eurosat", False)]
    assert {training.dataset for training in trainings(plan)} == {"dtd"}


@pytest.mark.parametrize(
    ("study", "more", "message"),
    [
        ("base-to-nove", {}, "Did you mean 'base-to-novel'"),
        ("few-shot", {"source": "dtd"}, "few-shot takes no --source"),
    ],
)
def test_what_no_evaluation_has(study: str, more: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        planned(study, **more)


# Ablations


def printed(table: str, column: str) -> list[str]:
    return [row[column] for row in paper.rows(table)]


def agree(label: str, name: str) -> bool:
    return paper.same(label, name) or (paper.is_full(label) and paper.is_full(name))


PRINTED: dict[str, Callable[[], list[str]]] = {
    "variants": lambda: printed("table4_variants", "variant"),
    "rep-dim": lambda: printed("table4_rep_dim", "rep_dim"),
    "alpha": lambda: printed("table5_alpha", "alpha"),
    "lambda": lambda: printed("table8_lambda", "lambda") + printed("table5_lambda_imagenet", "lambda"),
    "regulariser": lambda: printed("table9_regularization", "regularization"),
}


@pytest.mark.parametrize("name", PRINTED)
def test_an_ablations_rows_are_those_the_paper_prints(name: str) -> None:
    labels = list(dict.fromkeys(cell.variant for cell in ablate(name, ("dtd",), (1,))))
    names = PRINTED[name]()
    assert [label for label in labels if not any(agree(label, each) for each in names)] == []
    assert [each for each in names if not any(agree(label, each) for label in labels)] == []


# rows that differ, of them rows that need a training of their own, on two data sets
COUNTED = {
    "variants": (7, 5),
    "rep-dim": (6, 6),
    "layers": (7, 7),
    "tokens": (5, 5),
    "alpha": (5, 5),
    "lambda": (12, 12),
    "regulariser": (3, 3),
}


@pytest.mark.parametrize("name", COUNTED)
def test_the_papers_ablations_counted_by_hand(name: str) -> None:
    rows, trained = COUNTED[name]
    plan = ablate(name, ("dtd", "ucf101"), SEEDS, tower=Tower(12, 6))
    assert len(plan) == len(set(plan)) == rows * 2 * 3 * 2  # data sets, seeds, halves
    assert len(trainings(plan)) == trained * 2 * 3
    assert len({cell.variant for cell in plan}) == rows
    assert set(ABLATIONS) == set(COUNTED)


def test_rows_without_decoupling_test_the_unchanged_training_otherwise() -> None:
    plan = ablate("variants", ("dtd",), (1,))
    by_row = {label: {cell.training for cell in plan if cell.variant == label} for label in ("full", "w/o DS1", "w/o DS2", "w/o RS")}
    assert (
        by_row["full"]
        == by_row["w/o DS1"]
        == by_row["w/o DS2"]
        == trainings(evaluation("base-to-novel", PAPER, ("mmrl",), (1,), datasets=("dtd",)))
    )
    assert by_row["w/o RS"].isdisjoint(by_row["full"])
    options = {cell.variant: dict(cell.options) for cell in plan if cell.options}
    assert options == {"w/o DS1": {"inference": "class"}, "w/o DS2": {"inference": "both"}}


def test_the_representation_dimension_of_eurosat_stays_its_recipes() -> None:
    plan = ablate("rep-dim", ("eurosat", "dtd"), (1,))
    changed = {dataset: {t.overrides for t in trainings(plan) if t.dataset == dataset} for dataset in ("eurosat", "dtd")}
    assert changed["eurosat"] == {()} and len(changed["dtd"]) == 6
    assert len({cell.variant for cell in plan if cell.dataset == "eurosat"}) == 6  # so that averages over data sets are whole
    other = ablate("rep-dim", ("eurosat",), (1,), method="mmrlpp")  # MMRL++ has no width of its own there
    assert len({t.overrides for t in trainings(other)}) == 6


@pytest.mark.parametrize(("depth", "expected"), [(12, [1, 2, 4, 6, 8, 10, 12]), (8, [1, 2, 4, 6, 8]), (7, [1, 2, 3, 4, 6]), (1, [1])])
def test_first_layers_hold_the_default_of_any_depth(depth: int, expected: list[int]) -> None:
    assert Tower(depth, max(1, depth // 2)).layers == expected


def test_own_values_and_options_of_every_row() -> None:
    plan = ablate("alpha", ("dtd",), (1,), numbers=[0.2, 1], shots=4, overrides={"epochs": 2})
    assert {cell.variant: cell.training and cell.training.overrides for cell in plan} == {
        "0.2, epochs=2": (("alpha", 0.2), ("epochs", 2)),
        "1, epochs=2": (("alpha", 1), ("epochs", 2)),
    }
    assert {training.shots for training in trainings(plan)} == {4}
    assert {cell.study for cell in plan} == {"alpha"}


@pytest.mark.parametrize(
    ("name", "more", "message"),
    [
        ("variants", {"numbers": [1]}, "takes no --values: its rows are w/o L, w/o V, .*w/o DS2"),
        ("layers", {}, "needs the depth"),
        ("alpha", {"overrides": {"alpha": 0.5}}, "alpha is what `ablate alpha` changes, so it cannot be set to 0.5"),
        ("variants", {"overrides": {"inference": "class"}}, "inference is what `ablate variants` changes"),
    ],
)
def test_what_no_ablation_can_be(name: str, more: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        ablate(name, ("dtd",), (1,), **more)
