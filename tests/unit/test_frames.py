"""Results as a table for pandas: every number is the record's, and every mean is the report's."""

from __future__ import annotations

import builtins
import math
from pathlib import Path
from typing import Any

import pytest

import mmrl
from mmrl.errors import UsageError
from mmrl.reports.frames import macro_f1
from mmrl.reports.measures import StudyScores
from mmrl.reports.results import Results
from tests import results_folder as made

pd = pytest.importorskip("pandas")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made.whole(tmp_path_factory.mktemp("frames") / "results")


def test_a_row_for_each_test_with_its_numbers(folder: Path) -> None:
    frame, results = mmrl.load_results(folder), Results(folder)
    slots = [slot for plan in results.plans.values() for slot in plan.slots if slot.key in results.tests and slot.applicable]
    assert len(frame) == len(slots) > 200 and frame.attrs["planned"] - frame.attrs["missing"] == len(frame)
    assert list(frame.key) == [slot.key for slot in slots] and list(frame.variant) == [slot.variant for slot in slots]
    for column in ("accuracy", "macro_accuracy", "ece"):
        name = {"accuracy": "top1", "macro_accuracy": "macro"}.get(column, column)
        assert list(frame[column]) == [getattr(results.tests[slot.key].scores, name) for slot in slots]
    assert str(frame.seed.dtype) == "Int64" == str(frame.shots.dtype) and frame[frame.method == "zero-shot"].seed.isna().all()
    assert set(frame.seed.dropna()) == {1, 2, 3} and frame[frame.method == "mmrl"]["option.first_layer"].eq(6).all()
    few = frame[(frame.study == "few-shot") & (frame.method == "mmrl")]
    zero = frame[(frame.study == "few-shot") & (frame.method == "zero-shot")].set_index("dataset").accuracy
    assert all(row.zero_shot_accuracy == zero[row.dataset] for row in few.itertuples())
    assert not any(name.startswith("option.") for name in mmrl.load_results(folder, options=False))


def test_means_are_those_of_the_report(folder: Path) -> None:
    results = Results(folder)
    means = mmrl.mean_results(mmrl.load_results(folder), datasets=True)
    checked = 0
    for study, plan in results.plans.items():
        scores = StudyScores(results, plan)
        own = means[means.study == study]
        for row in own.itertuples():
            shots = None if pd.isna(row.shots) else int(row.shots)
            column = shots if study == "few-shot" else None
            arms = [a for a in scores.arms if (a.method, a.variant) == (row.method, row.variant) and a.shots in (None, shots)]
            (arm,) = arms
            average = row.dataset == "average"
            if average:
                found = scores.average(arm, row.classes, shots=column)
            else:
                found = scores.measure(arm, row.dataset, row.classes, shots=column)
            assert found is not None and found.mean is not None
            assert math.isclose(100 * row.accuracy, found.mean, rel_tol=1e-12), (study, row)
            assert not average or row.datasets == found.datasets[0]  # type: ignore[index]
            if not average and found.std is not None:
                assert math.isclose(100 * row.accuracy_std, found.std, rel_tol=1e-9, abs_tol=1e-12) and row.seeds == len(found.by_seed)
            checked += 1
    assert checked == len(means) > 200 and {"hm", "base", "novel", "all"} == set(means.classes)


def test_several_folders_and_damage(folder: Path, tmp_path: Path) -> None:
    other = made.make_results(tmp_path / "other", slots := made.halves(datasets=("mini:digits",), seeds=(1,)))
    made.fill(other, slots)
    (bad := made.run_path(other, slots[-1])).write_text("{")
    frame = mmrl.load_results(folder, other)
    assert set(frame.results) == {"results", "other"} and len(frame[frame.results == "other"]) == 2
    assert len(frame.attrs["damaged"]) == 1 and bad.name in frame.attrs["damaged"][0]
    assert "hm" not in set(mmrl.mean_results(frame[(frame.results == "other") & (frame.method == "mmrl")]).classes)
    empty = mmrl.load_results(made.make_results(tmp_path / "empty", slots))
    assert empty.empty and {"seed", "accuracy"} <= set(empty) and empty.attrs["missing"] == 4
    with pytest.raises(UsageError, match="no results folder"):
        mmrl.load_results(tmp_path)


def test_the_f1_score_is_that_of_its_definition() -> None:
    scores = made.scores(0.6)
    sklearn = pytest.importorskip("sklearn.metrics")
    truth = [i for i, row in enumerate(scores.confusion) for images in row for _ in range(images)]
    guess = [j for row in scores.confusion for j, images in enumerate(row) for _ in range(images)]
    assert macro_f1(scores) == pytest.approx(sklearn.f1_score(truth, guess, average="macro"), rel=1e-12)
    assert macro_f1(scores.model_copy(update={"confusion": ()})) is None


def test_a_single_run_is_a_table_too(folder: Path, tmp_path: Path) -> None:
    run = next(run for run in Results(folder).runs.values() if run.training)
    run.write(tmp_path / "run.json")
    frame = mmrl.load_results(tmp_path)
    assert list(frame.accuracy) == [test.scores.top1 for test in run.tests] and set(frame.study) == {run.trained.protocol}


def test_without_pandas_the_extra_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usual = builtins.__import__

    def missing(name: str, *more: Any) -> Any:
        if name == "pandas":
            raise ImportError(name)
        return usual(name, *more)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(UsageError, match=r"pip install 'mmrl\[results\]'"):
        mmrl.load_results(folder)
