"""Run records and the picture of predictions on records made by hand."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmrl.errors import MmrlError, UsageError
from mmrl.reports import RunRecord, Scores, harmonic_mean, read_record
from mmrl.reports.plots import predictions_plot
from tests.results_folder import cost_row


def scores(top1: float, **more: object) -> Scores:
    return Scores(top1=top1, count=100, **more)


def make(base: float, novel: float, *, seed: int = 1, method: str = "mmrl", dataset: str = "mini:digits", **more: object) -> RunRecord:
    fields = {
        "classes": "base", "shots": 16, "draw_hash": "d1e2", "backbone": "tiny", "versions": {"mmrl": "0.1.0"}, "hardware": {"cpus": 2},
        "started": "2026-03-04T05:06:07+00:00", "seconds": 12.5,
        "metrics": {"base": scores(base), "novel": scores(novel)},
        "zero_shot": {"base": scores(0.4), "novel": scores(0.6)},
    }  # fmt: skip
    return RunRecord(**(fields | {"seed": seed, "method": method, "dataset": dataset} | more))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    make(0.8, 0.6).write(tmp_path / "run.json")
    return tmp_path / "run.json"


def edit(path: Path, **changes: object) -> Path:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return path


def test_harmonic_mean_is_the_papers():
    assert harmonic_mean(69.34, 74.22) == pytest.approx(71.70, abs=0.005)  # CLIP, average of Table 1
    assert harmonic_mean(85.68, 77.16) == pytest.approx(81.20, abs=0.005)  # MMRL
    assert harmonic_mean(0.0, 0.5) == harmonic_mean(0.5, 0.0) == harmonic_mean(0.0, 0.0) == 0
    with pytest.raises(UsageError, match="-0.1"):
        harmonic_mean(-0.1, 0.5)


def test_a_record_survives_writing_and_reading(run: Path):
    record = read_record(run)
    assert record.model_dump() == make(0.8, 0.6).model_dump()
    assert record.metrics.hm == pytest.approx(0.96 / 1.4)
    assert json.loads(run.read_text())["schema"] == "mmrl.run/1"
    assert read_record(run.parent) == record


def test_a_reader_ignores_fields_added_later(run: Path):
    assert read_record(edit(run, colour="blue")).model_dump() == make(0.8, 0.6).model_dump()


@pytest.mark.parametrize("length", [0, 1, 100, -3])
def test_a_cut_record_is_named(run: Path, length: int):
    run.write_bytes(run.read_bytes()[:length])
    with pytest.raises(MmrlError, match=rf"run record is damaged: {run}"):
        read_record(run)


@pytest.mark.parametrize("content", ["[]", "3", "null", "{}", '{"schema": "other/1"}', '{"schema": 1}'])
def test_foreign_json_is_refused(run: Path, content: str):
    run.write_text(content)
    with pytest.raises(MmrlError, match="not a run record of mmrl"):
        read_record(run)


def test_a_later_schema_is_refused(run: Path):
    with pytest.raises(MmrlError, match=r"mmrl\.run/2.*mmrl\.run/1"):
        read_record(edit(run, schema="mmrl.run/2"))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_json_has_no_number_for_is_never_written(tmp_path: Path, value: float):
    for changes in ({"seconds": value}, {"history": [{"loss": value}]}, {"metrics": {"all": {"top1": value, "count": 1}}}):
        with pytest.raises(ValueError, match="finite number|greater than or equal|less than or equal"):
            make(0.8, 0.6, **changes)
    option = {"section": "method", "key": "lam", "value": value, "source": "user"}
    make(0.8, 0.6, options=[option], hardware={"gpu_memory_gib": value}).write(tmp_path / "run.json")
    strict = json.loads((tmp_path / "run.json").read_text(), parse_constant=pytest.fail)
    assert strict["options"][0]["value"] is None is strict["hardware"]["gpu_memory_gib"]
    for name in ("train_ms_per_image", "train_minutes", "images_per_second", "peak_memory_gib", "hm"):
        with pytest.raises(ValueError, match=f"{name}\n"):
            cost_row("mmrl", **{name: value})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": "one"}, "seed: "),
        ({"metrics": {"base": {"top1": 80.0, "count": 10}}}, r"metrics\.base\.top1: .*less than or equal to 1"),
        ({"metrics": {"base": {"top1": 0.8, "count": 1}, "novel": {"top1": 0.6, "count": 1}, "hm": 0.9}}, "base and novel give 0.685714"),
        ({"metrics": {"all": {"top1": 0.8, "count": 1}, "hm": 0.9}}, "hm without base and novel"),
        ({"metrics": {"all": {"top1": 0.8, "count": 3, "class_names": ["a", "b"], "per_class": [1.0]}}}, "per_class has 1 entries for 2"),
        ({"metrics": {"all": {"top1": 0.8, "count": 3, "confusion": [[1, 2]]}}}, "not square"),
        ({"metrics": {"all": {"top1": 0.8, "count": 3, "confusion": {"size": 5}}}}, r"all\.confusion: .*no matrix .KeyError.'counts'"),
        ({"metrics": {"all": {"top1": 0.8, "count": 3, "confusion": {"size": 5, "counts": [[5, 0, 1]]}}}}, "no matrix .IndexError"),
        ({"metrics": {"all": {"top1": 0.8, "count": 3, "confusion": {"size": 5, "counts": [[0, -1, 1]]}}}}, "0, -1 is no place in it"),
        ({"metrics": {"all": {"top1": 0.8, "count": 3, "confusion": {"size": "5", "counts": []}}}}, "no matrix .TypeError"),
        ({"metrics": {"all": {"top1": 0.8, "count": 3, "confusion": {"size": 10**9, "counts": []}}}}, "size is 1000000000; at most 10000"),
        (
            {"metrics": {"all": {"top1": 0.8, "count": 3, "class_names": ["a", "b"], "confusion": {"size": 3, "counts": []}}}},
            "size is 3; at most 2 is possible",
        ),
        ({"started": "2026-03-04T05:06:07"}, "no offset from UTC"),
    ],
)
def test_wrong_values_are_named(run: Path, changes: dict, message: str):
    with pytest.raises(MmrlError, match=message):
        read_record(edit(run, **changes))


def test_every_wrong_field_is_named_at_once(run: Path):
    content = json.loads(run.read_text())
    del content["method"], content["draw_hash"]
    run.write_text(json.dumps(content))
    with pytest.raises(MmrlError, match="method: Field required; draw_hash: Field required"):
        read_record(run)


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB")).astype(int)


def has(image: np.ndarray, colour: str) -> bool:
    wanted = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    return bool((np.abs(image - wanted).max(axis=-1) <= 3).sum() > 20)


def test_predictions_plot_shows_the_images(tmp_path: Path):
    for name, colour in (("red", (200, 10, 10)), ("green", (10, 200, 10))):
        Image.new("RGB", (8, 8), colour).save(tmp_path / f"{name}.png")
    guesses = [[("$5 note", 0.9, True), ("b", 0.1, False)], [("b", 0.7, False), ("$5 note", 0.3, True)]]
    drawn = [tmp_path / "p.png", tmp_path / "again.png"]
    for path in drawn:
        predictions_plot([tmp_path / "red.png", tmp_path / "green.png"], guesses, ["$5 note", "b"], path)
    image = pixels(drawn[0])
    assert has(image, "#C80A0A") and has(image, "#0AC80A") and has(image, "#0072B2") and has(image, "#D55E00")
    assert drawn[0].read_bytes() == drawn[1].read_bytes()
    (tmp_path / "file").write_text("")
    with pytest.raises(MmrlError, match="cannot write"):
        predictions_plot([tmp_path / "red.png"], guesses[:1], ["b"], tmp_path / "file" / "p.png")
