"""Grids that are repeated, changed, killed, shared, damaged and starved of space: nothing is lost, reused wrongly, or done twice.

`main` runs in a process of its own, which forks one process for every attempt, as in `test_resume`.
"""

from __future__ import annotations

import errno
import importlib
import json
import os
import shutil
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest
import torch

from mmrl import files
from mmrl.cli.main import app
from mmrl.engine import Context, record
from mmrl.engine.grid import ResultsFolder, attempt, local, missing_tests
from mmrl.errors import MmrlError, UsageError
from mmrl.reports.results import Results
from mmrl.reports.status import status
from tests.unit.colours import NAMES
from tests.unit.grids import COMMON, compute, contents, jobs_of, losses, photos, planned, scored, scores, smallest, times
from tests.unit.test_resume import Moments, in_a_fork, of_a_process

WAIT = 0.05
RUN = importlib.import_module("mmrl.engine.run")  # the package has a function of this name
LATER = datetime(2100, 1, 1, tzinfo=timezone.utc)


@pytest.fixture(scope="module")
def done(context: Context, root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A results folder: zero-shot and one training."""
    folder = tmp_path_factory.mktemp("grid") / "done"
    outcome, said = compute(jobs_of(context, planned(root)), context, folder)
    assert len(outcome.done) == 2 and not outcome.failed and not outcome.left
    assert len(said) == 2 and said[0].startswith("zero-shot on ") and "mmrl on " in said[1]
    return folder


# Repeating


def test_a_second_time_nothing_is_done(context: Context, root: Path, done: Path) -> None:
    before = times(done, "runs", "work")
    outcome, said = compute(jobs_of(context, planned(root)), context, done)
    assert len(outcome.done) == 2 and not said and before == times(done, "runs", "work")


def test_another_run_of_the_same_seed_gives_the_same(context: Context, root: Path, done: Path, tmp_path: Path) -> None:
    compute(jobs_of(context, planned(root)), context, tmp_path)
    assert scores(tmp_path) == scores(done) and len(scores(done)) == 4
    assert losses(tmp_path) == losses(done) and all(losses(done).values())


@pytest.mark.parametrize("damage", ["", "{", '{"schema": "mmrl.run/2"}', '{"schema": "mmrl.run/9"}', "half"])
def test_a_damaged_record_is_made_anew_and_it_alone(context: Context, root: Path, tmp_path: Path, done: Path, damage: str) -> None:
    jobs = jobs_of(context, planned(root))
    folder = Path(shutil.copytree(done, tmp_path / "copy"))
    expected, before = (scores(folder), losses(folder)), times(folder, "runs", "work")
    path = folder / "runs" / f"{jobs[1].key}.json"
    path.write_text(path.read_text()[: len(path.read_text()) // 2] if damage == "half" else damage)
    results = Results(folder)
    assert path.stem not in results.runs and [str(path) in message for message in results.damaged] == [True]
    assert missing_tests(jobs[1], ResultsFolder(folder)) == {key for _, key in jobs[1].tests}
    outcome, said = compute(jobs, context, folder)
    assert not outcome.failed and len(said) == 1 and (scores(folder), losses(folder)) == expected
    after = times(folder, "runs", "work")
    assert {changed.stem for changed in after if after[changed] != before[changed] and "runs" in changed.parts} == {path.stem}
    assert not [changed for changed in after if changed.suffix == ".safetensors" and after[changed] != before[changed]], "trained again"


def test_a_test_that_is_missing_is_made_and_the_others_kept(context: Context, root: Path, tmp_path: Path, done: Path) -> None:
    jobs = jobs_of(context, planned(root))
    folder = Path(shutil.copytree(done, tmp_path / "copy"))
    path = folder / "runs" / f"{jobs[1].key}.json"
    whole = json.loads(path.read_text())
    lost, kept = whole["tests"]
    path.write_text(json.dumps({**whole, "tests": [kept]}))
    assert missing_tests(jobs[1], ResultsFolder(folder)) == {lost["key"]}
    compute(jobs, context, folder)
    now = json.loads(path.read_text())
    assert now["training"] == whole["training"] and [test["key"] for test in now["tests"]] == [kept["key"], lost["key"]]
    assert now["tests"][0] == kept and now["tests"][1]["scores"] == lost["scores"] and scores(folder) == scores(done)


def test_what_an_earlier_process_left_does_no_harm(context: Context, root: Path, tmp_path: Path, done: Path) -> None:
    jobs = jobs_of(context, planned(root))
    store = ResultsFolder(tmp_path)
    for path in (store.path("runs", jobs[0].key), store.work(jobs[1].key) / "adapter_model.safetensors"):
        path.parent.mkdir(parents=True, exist_ok=True)
        (path.parent / f".{path.name}.xyz.partial").write_text('{"half')
    (tmp_path / "locks").mkdir()
    for job in jobs:
        (tmp_path / "locks" / f"{job.key}.lock").write_text('{"pid": 1, "host": "gone"')
    assert not status(tmp_path).running
    outcome, _ = compute(jobs, context, tmp_path)
    assert len(outcome.done) == 2 and scores(tmp_path) == scores(done)
    assert not list((tmp_path / "locks").iterdir()) and not Results(tmp_path).damaged


# Failing


def test_a_job_that_fails_is_noted_and_the_others_go_on(context: Context, root: Path, tmp_path: Path) -> None:
    bad = photos(tmp_path / "bad")
    broken = bad / context.dataset(str(bad)).restrict("novel").test[0].key
    good = broken.read_bytes()
    broken.write_bytes(good[:60])
    fresh, store = smallest(), ResultsFolder(tmp_path / "out")
    jobs = jobs_of(fresh, [*planned(bad), *planned(root)])
    outcome, said = compute(jobs, fresh, store.folder)
    ours = {job.key for job in jobs[:2]}
    assert set(outcome.failed) == ours == set(contents(store.folder, "failed")) and len(outcome.done) == 2
    assert len(scores(store.folder)) == 6  # the base halves of the bad one, too
    failures = contents(store.folder, "failed").values()
    assert all(broken.name in failure["error"] and not failure["traceback"] for failure in failures)
    assert sum(line.startswith("failed: ") for line in said) == 2
    before = times(store.folder, "work")

    broken.write_bytes(good)
    outcome, said = compute(jobs, fresh, store.folder)
    assert len(outcome.done) == 4 and len(said) == 2 and not contents(store.folder, "failed")
    assert len(scores(store.folder)) == 8
    weights = [path for path in before if path.suffix == ".safetensors"]
    assert weights and all(path.stat().st_mtime_ns == before[path] for path in weights), "trained again"


def test_an_error_nobody_foresaw_is_noted_with_its_traceback(
    context: Context, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(RUN, "fitting", fails)
    jobs = jobs_of(context, planned(root))
    outcome, _ = compute(jobs, context, tmp_path)
    assert outcome.failed == [jobs[1].key] and outcome.done == [jobs[0].key]
    (failure,) = contents(tmp_path, "failed").values()
    assert failure["error"] == "ZeroDivisionError" and "in fails" in failure["traceback"] and failure["kind"] == "failed"


def test_a_user_who_stops_it_loses_nothing(
    context: Context, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, done: Path
) -> None:
    def stopped(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    jobs = jobs_of(context, planned(root))
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(RUN, "fitting", stopped)
        compute(jobs, context, tmp_path)
    (failure,) = contents(tmp_path, "failed").values()
    assert failure["kind"] == "cancelled" and len(scores(tmp_path)) == 2
    assert not list((tmp_path / "locks").iterdir())
    outcome, _ = compute(jobs, context, tmp_path)
    assert len(outcome.done) == 2 and scores(tmp_path) == scores(done) and not contents(tmp_path, "failed")


def test_data_that_change_after_the_plan(root: Path, tmp_path: Path) -> None:
    changing = photos(tmp_path / "changing")
    jobs = jobs_of(smallest(), planned(changing))
    for number in range(6):
        (changing / NAMES[2] / f"{number}.png").unlink()
    outcome, _ = compute(jobs, smallest(), tmp_path / "out")
    failures = contents(tmp_path / "out", "failed")
    assert jobs[1].key in outcome.failed
    assert "changed since the plan was made; start the command again" in failures[jobs[1].key]["error"]


def test_a_job_held_by_another_is_waited_for(
    context: Context, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, done: Path
) -> None:
    """The other one finishes the first job, and fails at the second: neither is done again here."""
    jobs, store = jobs_of(context, planned(root)), ResultsFolder(tmp_path)
    held = {job.key: store.claim(job.key) for job in jobs}
    assert store.claim(jobs[0].key) is None
    failure, waits = attempt.failure_of(jobs[1], MmrlError("no space"), torch.device("cpu")), []
    failure = failure.model_copy(update={"environment": failure.environment.model_copy(update={"started": LATER})})

    def others_end(seconds: float) -> None:
        waits.append(seconds)
        files.write_json(store.path("runs", jobs[0].key), contents(done, "runs")[jobs[0].key])
        store.write("failed", jobs[1].key, failure)
        for job in jobs:
            store.release(job.key, held[job.key])

    monkeypatch.setattr(local.time, "sleep", others_end)
    outcome, said = compute(jobs, context, tmp_path)
    assert len(waits) == 1 and not said
    assert outcome.done == [jobs[0].key] and outcome.failed == [jobs[1].key]


def test_a_failure_of_an_earlier_run_is_tried_again(context: Context, root: Path, tmp_path: Path) -> None:
    jobs, store = jobs_of(context, planned(root)), ResultsFolder(tmp_path)
    store.write("failed", jobs[0].key, attempt.failure_of(jobs[0], MmrlError("no space"), torch.device("cpu")))
    assert not attempt.failed_since(jobs[0], store, datetime.now(timezone.utc))
    outcome, _ = compute(jobs[:1], context, tmp_path)
    assert outcome.done == [jobs[0].key] and not contents(tmp_path, "failed")


# The folder


def test_a_full_disk_ends_the_run_and_damages_nothing(
    context: Context, root: Path, tmp_path: Path, done: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = jobs_of(context, planned(root))
    room = 3  # files that can still be written
    written = []

    def fills_up(descriptor: int) -> None:
        if len(written) >= room:
            raise OSError(errno.ENOSPC, "No space left on device")
        written.append(descriptor)

    ResultsFolder(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(files.os, "fsync", fills_up)
        with pytest.raises(MmrlError, match="cannot write .*No space left on device. Free some space") as caught:
            compute(jobs, context, tmp_path)
    assert not isinstance(caught.value, UsageError) and len(written) == room
    assert scores(tmp_path) and not Results(tmp_path).damaged
    assert not list(tmp_path.rglob("*.partial")) and not list((tmp_path / "locks").iterdir())
    assert scores(tmp_path).items() <= scores(done).items()
    outcome, _ = compute(jobs, context, tmp_path)
    assert len(outcome.done) == 2 and scores(tmp_path) == scores(done)


@pytest.mark.parametrize(
    ("marker", "kind", "message"),
    [
        ('{"format": "mmrl.results/0"}', MmrlError, "results of format 'mmrl.results/0'; this mmrl reads 'mmrl.results/2'"),
        ('["mmrl.results/2"]', MmrlError, "results of format None"),
        ('{"form', MmrlError, "marker is damaged"),
        (None, UsageError, "holds other things (thesis.tex); give a new folder"),
    ],
)
def test_folders_that_are_refused(tmp_path: Path, marker: str | None, kind: type[MmrlError], message: str) -> None:
    (tmp_path / "thesis.tex").write_text("chapter 1")
    if marker is not None:
        (tmp_path / "results.json").write_text(marker)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(MmrlError) as caught:
        ResultsFolder(tmp_path)
    assert type(caught.value) is kind and message in str(caught.value)
    assert sorted(tmp_path.iterdir()) == before


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("")
    with pytest.raises(UsageError, match="out is a file; results need a folder"):
        ResultsFolder(tmp_path / "out")
    with pytest.raises(MmrlError, match="cannot write"):
        ResultsFolder(tmp_path / "out" / "below")


# Killed, and two at a time


def noted(note: Path, jobs: list[Any], context: Context, folder: Path, fatal: int | None) -> None:
    """One attempt, which kills itself at the moment `fatal`; else it notes its moments."""
    moments = Moments(fatal)
    outcome, _ = compute(jobs, context, folder)
    assert not outcome.failed and not outcome.left
    note.write_text(json.dumps(moments.names))


def killed(context: Context, jobs: list[Any], place: Path, stride: int) -> dict[str, Any]:
    """Kill at every `stride`-th moment and start again; also a run that is killed again and again."""
    note = place / "moments.json"

    def attempts(folder: Path, fatal: int | None) -> bool:
        return in_a_fork(lambda: noted(note, jobs, context, folder, fatal))

    assert attempts(place / "whole", None)
    moments = json.loads(note.read_text())
    expected = scores(place / "whole"), losses(place / "whole")
    ends, differ, again_done = [], [], []
    for moment in range(0, len(moments), stride):
        folder = place / str(moment)
        assert not attempts(folder, moment), "it should have been killed"
        kept = scored(folder)
        assert attempts(folder, None)
        ends.append(moments[moment])
        differ += [moment] if (scores(folder), losses(folder)) != expected else []
        again_done += [key for key, test in scored(folder).items() if test != kept.get(key, test)]
    tries = 1
    while not attempts(place / "again", 5 + tries):
        tries += 1
    differ += [-1] if (scores(place / "again"), losses(place / "again")) != expected else []
    return {"moments": moments, "killed": ends, "differ": differ, "again": again_done, "tries": tries, "tests": len(expected[0])}


def together(root: Path, place: Path) -> dict[str, Any]:
    """Two `mmrl bench` at the same time into one folder."""

    def bench(number: int) -> Callable[[], None]:
        def go() -> None:
            local.WAIT = WAIT
            words = ["bench", "base-to-novel", "--datasets", str(root), "--seeds", "1,2", "--shots", "2", "--out", str(place / "both")]
            with (place / f"{number}.txt").open("w") as sys.stdout:
                app([*words, *COMMON], standalone_mode=False)

        return go

    children = []
    for number in range(2):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                bench(number)()
                code = 0
            finally:
                os._exit(code)
        children.append(child)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    said = [(place / f"{number}.txt").read_text() for number in range(2)]
    return {"codes": codes, "said": said, "tests": len(scores(place / "both")), "plan": contents(place / "both", "plans")}


def partner_lost(context: Context, root: Path, place: Path) -> dict[str, Any]:
    """Two processes on one folder, as on two machines that share it; one is killed while it trains, just after the other has come."""
    jobs, folder, note = jobs_of(context, planned(root, seeds=(1, 2))), place / "shared", place / "alone.json"
    assert in_a_fork(lambda: noted(note, jobs, context, place / "alone", None))
    fatal = json.loads(note.read_text()).index("after training_state.bin") + 1

    def first() -> None:
        noted(place / "first.json", jobs, context, folder, fatal)

    def second() -> None:
        while not list(folder.glob("work/*/training_state.bin")):
            time.sleep(0.01)
        noted(place / "second.json", jobs, context, folder, None)

    with ThreadPoolExecutor(2) as both:
        ended = list(both.map(in_a_fork, (first, second)))
    same = scores(folder) == scores(place / "alone") and losses(folder) == losses(place / "alone")
    return {"ended": ended, "same": same, "runs": len(contents(folder, "runs")), "failed": len(contents(folder, "failed"))}


@pytest.fixture(scope="module")
def found(root: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return of_a_process("tests.unit.test_grid", root, tmp_path_factory.mktemp("forks"))


def test_killed_at_any_moment_and_started_again_equals_undisturbed(found: dict[str, Any]) -> None:
    told = found["killed"]
    assert told["differ"] == [] and told["again"] == [] and told["tests"] == 4
    assert told["tries"] > 2 and len(told["killed"]) >= 8
    hit = {name.split()[-1].split(".")[0] for name in told["killed"]}
    assert {"training_state", "adapter_model"} & hit and len(hit) > 4  # in the training, and among the tests


def test_two_processes_on_one_folder_do_everything_once(found: dict[str, Any]) -> None:
    told = found["together"]
    assert told["codes"] == [0, 0], told["said"]
    lines = [line for text in told["said"] for line in text.splitlines() if line.endswith(" s)")]
    jobs = [line.split(":")[0] for line in lines]
    assert len(jobs) == len(set(jobs)) == 1 + 2 * 2
    assert told["tests"] == len(told["plan"]["base-to-novel"]["slots"]) == 2 * (1 + 2 * 2)


def test_a_process_that_is_killed_leaves_its_part_to_the_other(found: dict[str, Any]) -> None:
    assert found["partner"] == {"ended": [False, True], "same": True, "runs": 3, "failed": 0}


def main(root: Path, place: Path) -> None:
    torch.set_num_threads(1)
    record.source_state = lambda: (None, None)  # git takes longer than a training here
    context = smallest()
    jobs = jobs_of(context, planned(root))
    compute(jobs, context, place / "first")  # imports what every fork needs
    told = {"killed": killed(context, jobs, place, 3), "together": together(root, place), "partner": partner_lost(context, root, place)}
    print(json.dumps(told))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
