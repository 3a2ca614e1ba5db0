"""`mmrl demo` on a few photos: what it leaves, what a second one finds."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from mmrl.cli.main import app
from mmrl.errors import UsageError
from tests.unit.colours import NAMES, read


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for name in NAMES:
        (folder / name).mkdir()
        for number in range(6):
            read(f"{name}/{number}").save(folder / name / f"{number}.png")
    return folder


def invoke(*words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words], env={"COLUMNS": "160"})


def test_a_demo_and_a_second_one(photos: Path, tmp_path: Path):
    for left in ("runs/old/run.json", "plots/accuracy.png", "table.md", "adapter/notes.txt"):  # of an earlier version, or of the user
        (tmp_path / left).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / left).write_text("old")
    words = ("demo", "--out", tmp_path, "--data", photos, "--seeds", "3,1", "--shots", 1)
    done = invoke(*words)
    assert done.exit_code == 0, done.output
    assert "6 trainings and 1 zero-shot pass to do" in done.output
    assert all(text in done.output for text in ("± ", "GDA", "MMRL++"))
    assert "base-to-novel" in (tmp_path / "report" / "index.html").read_text(encoding="utf-8")
    assert (tmp_path / "report" / "tables" / "base-to-novel.csv").is_file() and (tmp_path / "predictions.png").stat().st_size > 5000
    assert sorted(path.stem for path in (tmp_path / "photos").iterdir()) == sorted(NAMES)
    assert f"Try: mmrl predict {tmp_path}/adapter {tmp_path}/photos" in done.output
    told = invoke("predict", tmp_path / "adapter", tmp_path / "photos", "--classes", "red,purple")
    assert told.exit_code == 0 and told.output.count("purple") == len(NAMES)
    weights = (tmp_path / "adapter" / "adapter_model.safetensors").read_bytes()
    (key,) = (path.parent.name for path in tmp_path.rglob("results/work/*/adapter_model.safetensors") if path.read_bytes() == weights)
    run = json.loads((tmp_path / "results" / "runs" / f"{key}.json").read_text(encoding="utf-8"))
    assert (run["method"], run["training"]["seed"]) == ("mmrl", 3)

    computed = {path: path.stat().st_mtime_ns for part in ("runs", "work") for path in (tmp_path / "results" / part).rglob("*")}
    again = invoke(*words)
    assert again.exit_code == 0 and "0 trainings and 0 zero-shot passes to do" in again.output and "MMRL++" in again.output
    assert computed == {path: path.stat().st_mtime_ns for path in computed}

    shutil.rmtree(tmp_path / "results" / "work")
    gone = invoke(*words)
    assert isinstance(gone.exception, UsageError) and "to train again" in str(gone.exception)
