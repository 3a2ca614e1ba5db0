"""`mmrl status`: states of scores, live locks, time left."""

from __future__ import annotations

import fcntl
import io
import json
import os
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from mmrl.cli.main import app
from mmrl.cli.output import sheet_table
from mmrl.errors import MmrlError, UsageError
from mmrl.reports.plans import Slot
from mmrl.reports.sheets import Sheet
from mmrl.reports.status import duration, held_locks, status
from tests.results_folder import fail, few_shot, fill, halves, make_results, run_path


@pytest.fixture
def slots() -> list[Slot]:
    return halves(methods=("mmrl",), datasets=("one", "two"), seeds=(1, 2))


def run_of(slots: list[Slot], dataset: str, seed: int) -> list[Slot]:
    return [each for each in slots if (each.dataset, each.seed) == (dataset, seed)]


def lock(folder: Path, name: str, host: str = "here") -> int:
    """A lock as a running process holds it."""
    path = folder / "locks" / f"{name}.lock"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"pid": os.getpid(), "host": host, "since": "2026-03-04T05:06:07+00:00"}))
    descriptor = os.open(path, os.O_RDWR)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    return descriptor


def test_every_state(tmp_path: Path, slots: list[Slot]):
    make_results(tmp_path, slots)
    fill(tmp_path, run_of(slots, "one", 1), seconds=100)
    failed, cancelled, running = (run_of(slots, *at) for at in (("one", 2), ("two", 1), ("two", 2)))
    fail(tmp_path, failed[0])
    fail(tmp_path, cancelled[0], kind="cancelled", error="stopped")
    held = lock(tmp_path, running[0].run)
    found = status(tmp_path)
    assert found.studies == {"base-to-novel": {"done": 2, "running": 2, "failed": 2, "cancelled": 2, "to do": 0}}
    assert found.running[0]["pid"] == os.getpid() and found.running[0]["run"] == running[0].run
    assert [failure.kind for failure in sorted(found.failures, key=lambda each: each.kind)] == ["cancelled", "failed"]
    assert found.failed and found.seconds_left == pytest.approx(120)  # 100 for training, 10 for each of two tests
    os.close(held)
    after = status(tmp_path)
    assert after.total["to do"] == 2 and not after.running
    fill(tmp_path, failed)  # a later try went well: the old failure does not count
    assert not status(tmp_path).failed and [failure.kind for failure in status(tmp_path).failures] == ["cancelled"]


def test_asking_leaves_a_lock_as_it_is(tmp_path: Path, slots: list[Slot]):
    make_results(tmp_path, slots)
    held = lock(tmp_path, slots[0].run)
    assert list(held_locks(tmp_path)) == list(held_locks(tmp_path)) == [slots[0].run]
    os.close(held)
    assert not held_locks(tmp_path)
    again = lock(tmp_path, slots[0].run)
    os.close(again)


def test_time_left_is_that_of_the_most_similar_runs(tmp_path: Path):
    slots = few_shot(("zero-shot", "mmrl"), (1, 4), datasets=("one", "two"), seeds=(1, 2))
    make_results(tmp_path, slots)
    assert status(tmp_path).seconds_left is None  # nothing to judge by
    for dataset, shots, seconds in (("one", 1, 10.0), ("one", 4, 30.0)):
        own = [each for each in slots if (each.dataset, each.shots, each.seed) == (dataset, shots, 1)]
        fill(tmp_path, own, seconds=seconds)
    same = 11 + 33  # seed 2 of the same, tests included
    other = 2 * (22 + 22)  # data set two: the mean of the method
    zero = 2 * 22  # zero-shot: the mean of all
    assert status(tmp_path).seconds_left == pytest.approx(same + other + zero)
    for hosts in (1, 2, 4):  # runs that are computed together go no faster than one after the other
        running = [each.run for each in slots if each.dataset == "two" and each.seed]
        held = [lock(tmp_path, run, f"host {number % hosts}") for number, run in enumerate(running)]
        assert len(held) == 4 and status(tmp_path).seconds_left == pytest.approx((same + other + zero) / hosts)
        for descriptor in held:
            os.close(descriptor)
    fill(tmp_path, slots)
    assert status(tmp_path).seconds_left is None


def test_a_score_of_two_studies_counts_once_in_all(tmp_path: Path, slots: list[Slot]):
    shared = [each.model_copy(update={"study": "alpha", "variant": "0.7"}) for each in slots]
    make_results(tmp_path, [*slots, *shared])
    found = status(tmp_path)
    assert [sum(counts.values()) for counts in found.studies.values()] == [8, 8] and sum(found.total.values()) == 8


def test_damaged_files_are_named(tmp_path: Path, slots: list[Slot]):
    make_results(tmp_path, slots)
    fill(tmp_path, slots)
    broken = run_path(tmp_path, slots[0])
    broken.write_text(broken.read_text()[:100])
    found = status(tmp_path)
    assert found.failed and found.total["to do"] == 2 and str(broken) in found.damaged[0]


def test_command_line(tmp_path: Path, slots: list[Slot]):
    make_results(tmp_path, slots)
    fill(tmp_path, slots[:2])
    run = CliRunner()
    done = run.invoke(app, ["status", str(tmp_path)])
    assert done.exit_code == 0 and "base-to-novel" in done.output and "left" in done.output
    fail(tmp_path, run_of(slots, "two", 1)[0], error="disk [red] full")
    done = run.invoke(app, ["status", str(tmp_path)])
    assert done.exit_code == 1 and "failed: mmrl on two: disk [red] full" in done.output
    told = json.loads(run.invoke(app, ["status", str(tmp_path), "--json"]).output)
    assert told["total"] == {"done": 2, "running": 0, "failed": 2, "cancelled": 0, "to do": 4}
    assert told["failures"][0]["error"] == "disk [red] full" and "traceback" not in told["failures"][0]


def test_notes_below_a_narrow_table_are_as_wide_as_the_terminal():
    note = "A note of a length that has its place on one line of a terminal, though not below a table of two short columns."
    sheet = Sheet("x", "A title that is longer than its table", ("a", "b"), (("one", "two"),), (note, "[brackets] stay"))
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(sheet_table(sheet))
    lines = [line.rstrip() for line in console.export_text().splitlines()]
    assert lines[0] == sheet.title and lines[-2:] == [note, "[brackets] stay"]


def test_a_narrow_terminal_shows_every_name_and_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    make_results(tmp_path, halves("domain-generalisation"))
    monkeypatch.setenv("COLUMNS", "50")
    printed = CliRunner().invoke(app, ["status", str(tmp_path)]).output
    assert "domain-generalisation" in printed and "…" not in printed


def test_no_results_folder(tmp_path: Path):
    with pytest.raises(UsageError, match="does not exist"):
        status(tmp_path / "none")
    with pytest.raises(UsageError, match="no results folder"):
        status(tmp_path)
    (tmp_path / "results.json").write_text('{"format": "mmrl.results/9"}')
    with pytest.raises(MmrlError, match="mmrl.results/9"):
        status(tmp_path)


def test_a_lock_that_is_being_written_is_a_lock(tmp_path: Path, slots: list[Slot]):
    make_results(tmp_path, slots)
    held = lock(tmp_path, slots[0].run)
    (tmp_path / "locks" / f"{slots[0].run}.lock").write_text("")
    assert status(tmp_path).running == ({"run": slots[0].run},)
    os.close(held)


def test_durations():
    assert [duration(seconds) for seconds in (12.4, 200, 7500, 3599.6)] == ["12 s", "3 min 20 s", "2 h 05 min", "1 h 00 min"]
