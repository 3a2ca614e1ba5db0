"""`mmrl pack`: runs in a handful of files, which every command reads as it reads single ones."""

from __future__ import annotations

import fcntl
import json
import os
from pathlib import Path

import pytest
from typer.testing import CliRunner

from mmrl.cli.main import app
from mmrl.engine.grid import ResultsFolder
from mmrl.errors import MmrlError
from mmrl.reports.report import build_report
from mmrl.reports.results import Results
from tests.results_folder import fill, halves, make_results, run_path, transfer


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two studies; in one of them a run whose plan is gone."""
    out, slots = tmp_path / "results", [*halves(), *transfer("cross-dataset", "one", ["two", "three"])]
    make_results(out, slots)
    fill(out, slots)
    return out


def test_the_report_is_the_same(folder: Path, tmp_path: Path) -> None:
    before, runs = build_report(folder, tmp_path / "before"), Results(folder).runs
    packed = ResultsFolder(folder).pack()
    assert set(packed) == {"base-to-novel", "cross-dataset"} and sum(packed.values()) == len(runs)
    assert not list((folder / "runs").glob("*.json"))
    assert sorted(path.name for path in (folder / "packed").iterdir()) == ["base-to-novel.jsonl", "cross-dataset.jsonl"]
    after = build_report(folder, tmp_path / "after")
    assert [path.read_text() for path in before[1:]] == [path.read_text() for path in after[1:]]
    store = ResultsFolder(folder)
    assert all(store.run(key) == run for key, run in runs.items()) and store.run("nothing") is None


def test_a_run_of_its_own_is_later_and_is_packed_again(folder: Path) -> None:
    first = halves()[0]
    store = ResultsFolder(folder)
    store.pack()
    record = store.run(first.run)
    assert record is not None
    changed = record.model_copy(update={"title": "another"})
    store.write("runs", first.run, changed)
    assert Results(folder).runs[first.run].title == "another" and store.run(first.run) == changed
    other = ResultsFolder(folder)
    other.pack()
    assert not run_path(folder, first).exists() and store.run(first.run) == changed  # read again, as another has packed


def test_nothing_is_packed_while_a_run_is_computed(folder: Path) -> None:
    lock = folder / "locks" / f"{halves()[0].run}.lock"
    lock.parent.mkdir()
    lock.write_text("{}")
    held = os.open(lock, os.O_RDWR)
    fcntl.flock(held, fcntl.LOCK_EX)
    with pytest.raises(MmrlError, match="1 runs of .* are being computed; pack it when they have ended"):
        ResultsFolder(folder).pack()
    os.close(held)
    assert ResultsFolder(folder).pack()


def test_damage_is_named_and_never_thrown_away(folder: Path) -> None:
    run_path(folder, halves()[0]).write_text("{")
    with pytest.raises(MmrlError, match="is not packed, for what is damaged would be lost: run record is damaged"):
        ResultsFolder(folder).pack()
    run_path(folder, halves()[0]).unlink()
    ResultsFolder(folder).pack()
    path = folder / "packed" / "base-to-novel.jsonl"
    lines = path.read_text().splitlines()
    for number, bad in enumerate(("{", json.dumps({"schema": "else"}), '{"schema": "mmrl.run/2"}')):
        lines[number] = bad
    path.write_text("\n".join(lines) + "\n")
    results = Results(folder)
    assert len(results.runs) + 3 == len(lines) + len((folder / "packed" / "cross-dataset.jsonl").read_text().splitlines())
    assert [f"in line {number} of" in message for number, message in enumerate(results.damaged, 1)] == [True] * 3


def test_a_kill_between_writing_and_removing_loses_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = Results(folder).runs

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(ResultsFolder, "forget", killed)
    with pytest.raises(KeyboardInterrupt):
        ResultsFolder(folder).pack()
    monkeypatch.undo()
    assert Results(folder).runs == runs
    ResultsFolder(folder).pack()
    assert Results(folder).runs == runs


def test_command_line(folder: Path, tmp_path: Path) -> None:
    shown = CliRunner().invoke(app, ["pack", str(folder)])
    assert shown.exit_code == 0 and "base-to-novel.jsonl: " in shown.output and "runs" in shown.output
    nowhere = CliRunner().invoke(app, ["pack", str(tmp_path / "nowhere")])
    assert isinstance(nowhere.exception, MmrlError) and not (tmp_path / "nowhere").exists()
