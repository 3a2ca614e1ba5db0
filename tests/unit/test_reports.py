"""Run records and the picture of predictions on records made by hand."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmrl.errors import MmrlError, UsageError
from mmrl.reports import Metrics, RunRecord, Scores, harmonic_mean, read_record
from mmrl.reports.plots import predictions_plot
from tests.results_folder import cost_row, environment


def scores(top1: float, **more: object) -> Scores:
    return Scores(top1=top1, count=100, **more)


def make(base: float, novel: float, *, method: str = "mmrl", dataset: str = "mini:digits", **training: object) -> RunRecord:
    """A run that is tested on both halves, with zero-shot beside; `training`: fields of its training, and of where it was computed."""
    place = environment().model_dump()
    place |= {key: training.pop(key) for key in list(training) if key in place}
    tests = [
        {"key": half, "dataset": dataset, "classes": half, "seen": half == "base", "template": "a {}.", "scores": scores(top1),
         "zero_shot": scores(zero), "seconds": 1.5, "environment": place}
        for half, top1, zero in (("base", base, 0.4), ("novel", novel, 0.6))
    ]  # fmt: skip
    trained = {
        "dataset": dataset, "classes": "base", "shots": 16, "seed": 1, "draw_hash": "d1e2", "images": 48, "template": "a {}.",
        "seconds": 12.5, "trained_parameters": 9, "environment": place,
    } | training  # fmt: skip
    return RunRecord(key="k", method=method, title="a title", backbone="tiny", backbone_hash="f" * 16, training=trained, tests=tests)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    make(0.8, 0.6).write(tmp_path / "run.json")
    return tmp_path / "run.json"


def edit(path: Path, **changes: object) -> Path:
    """Changes of fields of the record; 'training__seed' is one of its training, 'test__scores' one of its first test."""
    content = json.loads(path.read_text())
    for key, value in changes.items():
        part, _, field = key.rpartition("__")
        {"": content, "training": content["training"], "test": content["tests"][0]}[part][field] = value
    path.write_text(json.dumps(content))
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
    assert json.loads(run.read_text())["schema"] == "mmrl.run/2"
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
    with pytest.raises(MmrlError, match=r"mmrl\.run/3.*mmrl\.run/2"):
        read_record(edit(run, schema="mmrl.run/3"))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_json_has_no_number_for_is_never_written(tmp_path: Path, value: float):
    for top1, changes in ((0.8, {"seconds": value}), (0.8, {"history": [{"loss": value}]}), (value, {})):
        with pytest.raises(ValueError, match="finite number|greater than or equal|less than or equal"):
            make(top1, 0.6, **changes)
    option = {"section": "method", "key": "lam", "value": value, "source": "user"}
    make(0.8, 0.6, options=[option], hardware={"gpu_memory_gib": value}).write(tmp_path / "run.json")
    strict = json.loads((tmp_path / "run.json").read_text(), parse_constant=pytest.fail)
    assert strict["training"]["options"][0]["value"] is None is strict["training"]["environment"]["hardware"]["gpu_memory_gib"]
    for name in ("train_ms_per_image", "train_minutes", "images_per_second", "peak_memory_gib", "hm"):
        with pytest.raises(ValueError, match=f"{name}\n"):
            cost_row("mmrl", **{name: value})


def matrix(confusion: object, **more: object) -> dict[str, object]:
    return {"test__scores": {"top1": 0.8, "count": 3, "confusion": confusion, **more}}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"training__seed": "one"}, r"training\.seed: "),
        ({"test__scores": {"top1": 80.0, "count": 10}}, r"tests\.0\.scores\.top1: .*less than or equal to 1"),
        ({"test__scores": {"top1": 0.8, "count": 3, "class_names": ["a", "b"], "per_class": [1.0]}}, "per_class has 1 entries for 2"),
        (matrix([[1, 2]]), "not square"),
        (matrix({"size": 5}), r"scores\.confusion: .*no matrix .KeyError.'counts'"),
        (matrix({"size": 5, "counts": [[5, 0, 1]]}), "no matrix .IndexError"),
        (matrix({"size": 5, "counts": [[0, -1, 1]]}), "0, -1 is no place in it"),
        (matrix({"size": "5", "counts": []}), "no matrix .TypeError"),
        (matrix({"size": 10**9, "counts": []}), "size is 1000000000; at most 10000"),
        (matrix({"size": 3, "counts": []}, class_names=["a", "b"]), "size is 3; at most 2 is possible"),
        ({"training__environment": {"versions": {}, "hardware": {}, "started": "2026-03-04T05:06:07"}}, "no offset from UTC"),
        ({"test__classes": "seen"}, r"tests\.0\.classes: "),
    ],
)
def test_wrong_values_are_named(run: Path, changes: dict, message: str):
    with pytest.raises(MmrlError, match=message):
        read_record(edit(run, **changes))


def test_every_wrong_field_is_named_at_once(run: Path):
    content = json.loads(run.read_text())
    del content["method"], content["training"]["draw_hash"]
    run.write_text(json.dumps(content))
    with pytest.raises(MmrlError, match=r"method: Field required; training\.draw_hash: Field required"):
        read_record(run)


def test_scores_of_a_run_are_those_on_the_data_set_trained_on():
    record = make(0.8, 0.6)
    other = record.tests[0].model_copy(update={"key": "other", "dataset": "mini:objects", "classes": "all", "warnings": ("low",)})
    joined = record.joined(record.model_copy(update={"tests": (record.tests[0], other)}))
    assert [test.key for test in joined.tests] == ["base", "novel", "other"] and joined.warnings == ("low",)
    assert joined.metrics == record.metrics and joined.metrics.all is None
    assert joined.zero_shot.hm == pytest.approx(0.48) and record.zero_shot.base.top1 == 0.4
    alone = RunRecord(key="z", method="zero-shot", backbone="tiny", backbone_hash="", tests=(other,))
    assert alone.metrics.all == other.scores and alone.zero_shot.hm is None


@pytest.mark.parametrize(("wrong", "message"), [(0.9, "base and novel give 0.685714"), (None, "hm without base and novel")])
def test_a_harmonic_mean_follows_from_its_halves(wrong: float | None, message: str):
    halves = {"base": scores(0.8), "novel": scores(0.6)} if wrong else {"all": scores(0.8)}
    with pytest.raises(ValueError, match=message):
        Metrics(hm=wrong or 0.9, **halves)


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
