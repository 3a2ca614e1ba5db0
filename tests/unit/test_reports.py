"""Run records, tables, plots and model cards on records made by hand."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from mmrl.errors import MmrlError, UsageError
from mmrl.reports import Metrics, RunRecord, Scores, harmonic_mean, read_record, read_records, summarise, to_csv, to_markdown, to_rich
from mmrl.reports.card import model_card
from mmrl.reports.plots import accuracy_plot, confusion_plot, predictions_plot, reliability_diagram, training_curves
from mmrl.reports.records import Bin

CONFIG = {"method": "mmrlpp", "backbone": "tiny", "class_names": ["cat", "dog"], "template": "a photo of a {}.", "version": "0.1.0"}


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


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": "one"}, "seed: "),
        ({"metrics": {"base": {"top1": 80.0, "count": 10}}}, r"metrics\.base\.top1: .*less than or equal to 1"),
        ({"metrics": {"base": {"top1": 0.8, "count": 1}, "novel": {"top1": 0.6, "count": 1}, "hm": 0.9}}, "base and novel give 0.685714"),
        ({"metrics": {"all": {"top1": 0.8, "count": 1}, "hm": 0.9}}, "hm without base and novel"),
        ({"metrics": {"all": {"top1": 0.8, "count": 3, "class_names": ["a", "b"], "per_class": [1.0]}}}, "per_class has 1 entries for 2"),
        ({"metrics": {"all": {"top1": 0.8, "count": 3, "confusion": [[1, 2]]}}}, "not square"),
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


def test_records_of_a_folder_come_in_order_and_once(tmp_path: Path):
    for name in ("b", "a/x"):
        make(0.5, 0.5, seed=len(name)).write(tmp_path / name / "run.json")
    assert [record.seed for record in read_records([tmp_path, tmp_path / "b"])] == [3, 1]
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="empty"):
        read_records([tmp_path / "empty"])
    with pytest.raises(MmrlError, match="not found"):
        read_records([tmp_path / "none.json"])


def test_summary_by_hand():
    summary = summarise([make(0.70, 0.50, seed=1), make(0.80, 0.50, seed=2), make(0.90, 0.50, seed=3)])
    zero_shot, row = summary.rows
    assert (row.method, row.seeds, summary.averages) == ("mmrl", 3, ())
    assert (row.base.mean, row.base.std) == pytest.approx((80.0, 10.0))  # ddof 1; with ddof 0 it would be 8.16
    assert (row.novel.mean, row.novel.std) == pytest.approx((50.0, 0.0))
    assert row.hm.mean == pytest.approx(np.mean([harmonic_mean(100 * b, 50) for b in (0.7, 0.8, 0.9)]))
    assert row.hm.std == pytest.approx(np.std([harmonic_mean(100 * b, 50) for b in (0.7, 0.8, 0.9)], ddof=1))
    assert (zero_shot.method, zero_shot.seeds, zero_shot.base.std) == ("zero-shot", 1, None)
    assert (zero_shot.base.mean, zero_shot.novel.mean, zero_shot.hm.mean) == pytest.approx((40, 60, 48))


def test_average_row_is_the_hm_of_the_averages():
    summary = summarise([make(0.9, 0.3, dataset="one"), make(0.3, 0.9, dataset="two")])
    average = next(row for row in summary.averages if row.method == "mmrl")
    assert [average.base.mean, average.novel.mean, average.hm.mean] == pytest.approx([60, 60, 60])  # the mean of the HMs is 45
    assert average.dataset == "average"


def test_an_average_over_fewer_data_sets_says_so():
    summary = summarise([make(0.9, 0.3, dataset="one"), make(0.3, 0.9, dataset="two"), make(0.5, 0.5, dataset="two", method="mmrlpp")])
    assert {row.method: row.dataset for row in summary.averages} == {
        "zero-shot": "average", "mmrl": "average", "mmrlpp": "average (1 of 2 data sets)",
    }  # fmt: skip


def test_runs_that_must_not_be_mixed():
    with pytest.raises(UsageError, match="two runs of mmrl on mini:digits with seed 1"):
        summarise([make(0.5, 0.5), make(0.6, 0.5)])
    both = summarise([make(0.5, 0.5), make(0.6, 0.5, shots=4), make(0.7, 0.5, backbone="other")])
    assert both.methods[:2] == ["zero-shot (tiny)", "zero-shot (other)"]
    assert both.methods[2:] == ["mmrl (tiny, 16 shots)", "mmrl (tiny, 4 shots)", "mmrl (other, 16 shots)"]


def test_records_without_both_halves_do_not_count():
    half = make(0.5, 0.5, seed=2, metrics=Metrics(base=scores(0.5)))
    assert summarise([make(0.6, 0.6), half]).rows[-1].seeds == 1
    with pytest.raises(UsageError, match="both base and novel"):
        summarise([half])


def test_tables():
    summary = summarise([make(0.70, 0.50), make(0.80, 0.50, seed=2), make(1 / 3, 0.5, dataset="my|[folder]")])
    markdown = to_markdown(summary).splitlines()
    assert "| mini:digits | mmrl | 75.00 ± 7.07 | 50.00 ± 0.00 | **59.94 ± 2.27** | 2 |" in markdown
    assert "| my\\|[folder] | zero-shot | 40.00 | 60.00 | **48.00** | 1 |" in markdown
    assert "ddof 1" in markdown[-1] and "HM of the averaged base and novel" in markdown[-1]

    rows = list(csv.DictReader(io.StringIO(to_csv(summary))))
    assert float(rows[-3]["base_mean"]) == pytest.approx(100 / 3, abs=1e-12) and rows[-3]["base_std"] == ""
    assert rows[1]["seeds"] == "2" and float(rows[1]["base_std"]) == pytest.approx(7.0710678)

    console = Console(width=100, record=True, file=io.StringIO())
    console.print(to_rich(summary))
    text = console.export_text()
    assert "my|[folder]" in text and "75.00 ± 7.07" in text and "average" in text


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB")).astype(int)


def has(image: np.ndarray, colour: str) -> bool:
    wanted = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    return bool((np.abs(image - wanted).max(axis=-1) <= 3).sum() > 20)


def test_accuracy_plot_shows_what_the_summary_holds(tmp_path: Path):
    records = [make(0.7 + 0.02 * s, 0.5 + 0.01 * s, seed=s, dataset=d) for s in (1, 2, 3) for d in ("one", "two", "three", "four")]
    accuracy_plot(summarise(records), tmp_path / "four.png")
    accuracy_plot(summarise(records[:1]), tmp_path / "one.png")
    four, one = pixels(tmp_path / "four.png"), pixels(tmp_path / "one.png")
    assert has(four, "#0072B2") and has(four, "#D55E00") and has(one, "#0072B2")
    assert four.shape[1] > 1.5 * one.shape[1]
    accuracy_plot(summarise(records), tmp_path / "again.png")
    assert (tmp_path / "again.png").read_bytes() == (tmp_path / "four.png").read_bytes()


def test_training_curves(tmp_path: Path):
    history = [{"step": i, "lr": 1e-3, "accuracy": 0.5, "total": 2 / (i + 1), "ce_class": 1 / (i + 1)} for i in range(100)]
    training_curves(history, tmp_path / "all.png")
    training_curves([{"step": 1, "total": 2.0}, {"step": 2, "total": 1.0, "extra": 0.5}], tmp_path / "few.png")
    assert pixels(tmp_path / "all.png").shape[0] > pixels(tmp_path / "few.png").shape[0]
    assert has(pixels(tmp_path / "all.png"), "#0072B2")
    with pytest.raises(UsageError, match="no training history"):
        training_curves([], tmp_path / "none.png")


def test_reliability_and_confusion(tmp_path: Path):
    bins = [Bin(count=i, confidence=(i + 0.5) / 15, accuracy=i / 20) for i in range(15)]
    names = ["$5 note", "très très très long nom de classe", "c"]
    full = scores(0.6, ece=0.1, bins=bins, class_names=names, confusion=[[5, 1, 0], [0, 0, 0], [1, 1, 4]])
    reliability_diagram(full, tmp_path / "r.png")
    confusion_plot(full, tmp_path / "c.png")
    assert has(pixels(tmp_path / "r.png"), "#0072B2") and has(pixels(tmp_path / "r.png"), "#E69F00")
    assert has(pixels(tmp_path / "c.png"), "#083776")  # the diagonal: 5 of 6
    for draw, lacks in ((reliability_diagram, "calibration bins"), (confusion_plot, "confusion matrix")):
        with pytest.raises(UsageError, match=lacks):
            draw(scores(0.5), tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()


def test_predictions_plot_shows_the_images(tmp_path: Path):
    for name, colour in (("red", (200, 10, 10)), ("green", (10, 200, 10))):
        Image.new("RGB", (8, 8), colour).save(tmp_path / f"{name}.png")
    guesses = [[("a", 0.9, True), ("b", 0.1, False)], [("b", 0.7, False), ("a", 0.3, True)]]
    predictions_plot([tmp_path / "red.png", tmp_path / "green.png"], guesses, ["a", "b"], tmp_path / "p.png")
    image = pixels(tmp_path / "p.png")
    assert has(image, "#C80A0A") and has(image, "#0AC80A") and has(image, "#0072B2")


def test_a_plot_that_cannot_be_written_says_so(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(MmrlError, match="cannot write"):
        confusion_plot(scores(0.5, confusion=[[1]]), tmp_path / "file" / "c.png")


def test_model_card_of_a_run():
    options = [{"section": "method", "key": "lam", "value": 3.0, "source": "published"}]
    card = model_card(CONFIG, make(0.8, 0.55, method="mmrlpp", options=options, commit="0123456789abcdef", dirty=True))
    assert card.startswith("---\nlibrary_name: mmrl\n") and "\n- mmrlpp\n---\n" in card
    assert "# MMRL++ for tiny on mini:digits" in card
    assert "| base | 40.00 | 80.00 |" in card and "| novel | 60.00 | 55.00 |" in card and "| harmonic mean | 48.00 | 65.19 |" in card
    assert "**Below zero-shot on novel:**" in card and "Below zero-shot on base" not in card
    assert "| lam | 3.0 | published |" in card and "`0123456789ab` with changes" in card
    assert "{{" not in card and "{%" not in card and "\n\n\n" not in card


def test_model_card_without_a_run():
    card = model_card(CONFIG | {"options": {"lam": 1.0, "first_layer": None}})
    assert "Not measured yet" in card and "| first_layer | none |" in card and "seed" not in card
    assert "{{" not in card and "\n\n\n" not in card
    with pytest.raises(MmrlError, match="no backbone, version"):
        model_card({key: value for key, value in CONFIG.items() if key not in ("backbone", "version")})


def test_class_names_cannot_break_the_card():
    card = model_card(CONFIG | {"class_names": ['<script>"', "a|b", "line\nbreak", "`x`"]})
    assert "&lt;script>" in card and "a\\|b" in card and "line break" in card and "'x'" in card
    assert "<script>" not in card
