"""All four protocols on miniature trees of all 15 datasets, from the split files and from the raw downloads."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmrl.clip import load_clip
from mmrl.data.benchmark import published
from mmrl.engine import Bench, Context, bind
from mmrl.engine.grid import ResultsFolder, run_here
from mmrl.protocols import EVALUATIONS, PAPER, evaluation
from mmrl.reports.plans import Plan
from mmrl.reports.results import Results
from tests.trees import SPLIT_FILES, facts_of_tree, make_trees

QUICK = {"epochs": 1, "warmup_epochs": 0, "rep_dim": 8, "first_layer": 8, "first_text_layer": 8}


@pytest.mark.slow
@pytest.mark.parametrize("raw", [False, True], ids=["split files", "raw"])
def test_all_protocols_on_all_datasets(tmp_path: Path, raw: bool, monkeypatch: pytest.MonkeyPatch):
    data = make_trees(tmp_path / "data", raw=raw, per_class=8, classes=3)
    facts = {} if raw else {name: facts_of_tree(name, data) for name in SPLIT_FILES}
    monkeypatch.setattr(published, "all_facts", lambda: facts)
    before = {path: path.stat().st_mtime_ns for path in data.rglob("*")}
    store = ResultsFolder(tmp_path / "results")
    context = Context(Bench("tiny", root=data, cache=store.cache), load_clip("tiny"))
    methods = ["zero-shot", "mmrl"]
    shots = {"few-shot": [1, 2]}
    cells = [cell for study in EVALUATIONS for cell in evaluation(study, PAPER, methods, [1], shots=shots.get(study, [2]), overrides=QUICK)]
    jobs, slots = bind(cells, context)
    for study in EVALUATIONS:
        mine = tuple(slot for slot in slots if slot.study == study)
        store.add_plan(Plan(schema="mmrl.plan/2", study=study, suite="paper", slots=mine))
    outcome = run_here(jobs, context, store, say=lambda line: None)
    assert not outcome.failed and not outcome.left, [failure.error for failure in Results(store.folder).failures.values()]

    results = Results(store.folder)
    assert set(results.plans) == set(EVALUATIONS)
    assert {slot.key for slot in slots} == set(results.tests) and not results.damaged
    tested = {test.dataset for test in results.tests.values()}
    assert tested == set(PAPER.names) and len(tested) == 15
    assert {test.dataset for test in results.tests.values() if test.own_split} == (set(SPLIT_FILES) if raw else set())
    # 11 base-to-novel, 22 few-shot (two numbers of shots) and one on ImageNet for cross-dataset and domain generalisation together
    assert sum(run.training is not None for run in results.runs.values()) == 11 + 22 + 1
    assert {run.method for run in results.runs.values()} == set(methods) and set(results.runs) == {slot.run for slot in slots}
    assert all(0 <= test.scores.top1 <= 1 and test.scores.count for test in results.tests.values())
    assert {path: path.stat().st_mtime_ns for path in data.rglob("*")} == before, "something was written into the data folder"
