"""`mmrl calibrate`, and what `mmrl predict` and `mmrl demo` say then."""

from __future__ import annotations

import csv
import io
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmrl import api
from mmrl.cli import demo
from mmrl.data import load_dataset
from mmrl.engine.adapter import read_config
from tests.unit.conftest import Cli


@pytest.fixture
def held_out(tmp_path: Path) -> Path:
    """Twelve more photos of each class."""
    random = np.random.default_rng(5)
    for name, channel in (("red_thing", 0), ("blue thing", 2)):
        (tmp_path / "more" / name).mkdir(parents=True)
        for i in range(12):
            pixels = random.integers(0, 60, (48, 56, 3), dtype=np.uint8)
            pixels[..., channel] += 150
            Image.fromarray(pixels).save(tmp_path / "more" / name / f"{i}.jpg")
    return tmp_path / "more"


@pytest.fixture
def adapter(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "adapter"))


def test_calibrate_then_predict(cli: Cli, adapter: Path, held_out: Path, photos: Path) -> None:
    image = photos / "red_thing" / "7.jpg"
    code, _, err = cli("predict", adapter, image, "--reject")
    assert code == 2 and "not calibrated" in err and "mmrl calibrate ADAPTER DATA" in err
    before = (adapter / "adapter_model.safetensors").read_bytes()
    code, printed, _ = cli("calibrate", adapter, held_out)
    assert code == 0 and printed.startswith("calibrated on 24 images among 2 classes (") and "for a recall of 0.95" in printed
    trust = read_config(adapter).trust
    assert trust is not None and trust.images == 24 and (adapter / "adapter_model.safetensors").read_bytes() == before
    card = (adapter / "README.md").read_text()
    assert "Calibrated on 24 images (given later), on which it must not be measured: prob" in card and "Not measured yet" not in card

    code, printed, _ = cli("predict", adapter, image, "--json")
    (plain,) = map(json.loads, printed.splitlines())
    assert code == 0 and set(plain) == {"image", "predictions"}
    code, printed, _ = cli("predict", adapter, image, "--threshold", "1e4", "--coverage", "0.9", "--json")
    (line,) = map(json.loads, printed.splitlines())
    assert code == 0 and line["unknown"] is True and line["predictions"] == plain["predictions"] and line["score"] < 1e4
    assert line["set"][0] == plain["predictions"][0]["name"]
    code, printed, _ = cli("predict", adapter, image, "--recall", "0.5", "--score", "mcm", "--json")
    assert json.loads(printed)["score"] == pytest.approx(api.from_pretrained(adapter).known_scores(image, score="mcm")[0])
    raw = cli("predict", adapter, image, "--raw", "--json")[1]
    assert json.loads(raw)["predictions"][0]["probability"] != plain["predictions"][0]["probability"]

    code, printed, _ = cli("predict", adapter, image, "--threshold", "1e4", "--coverage", "0.9")
    table = [line.split() for line in printed.splitlines()]
    assert table[0] == ["image", "class", "probability", "trained", "score", "set"] and table[1][1] == "unknown" and len(table) == 4
    code, printed, _ = cli("predict", adapter, image, "--threshold=-1e4", "--csv")
    rows = list(csv.DictReader(io.StringIO(printed)))
    assert [row["unknown"] for row in rows] == ["no", "no"] and float(rows[0]["score"]) == pytest.approx(line["score"], rel=1e-4)
    assert cli("predict", adapter, image, "--reject", "--json")[0] == 0


def test_eval_measures_calibrated_probabilities(
    cli: Cli, adapter: Path, held_out: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = json.loads(cli("eval", adapter, photos, "--json")[1])
    assert found["calibration"] == {"ece": found["tests"][0]["scores"]["ece"], "raw_ece": None, "temperature": None}
    assert "raw ECE" not in cli("eval", adapter, photos)[1]
    assert cli("calibrate", adapter, held_out)[0] == 0
    calibrated = json.loads(cli("eval", adapter, photos, "--json", "--out", tmp_path / "scores.json", "--html", tmp_path / "page.html")[1])
    classifier = api.from_pretrained(adapter)
    assert classifier.trust is not None
    parts = [classifier.evaluate(photos, include_trained=every) for every in (False, True)]
    assert calibrated["calibration"] == {"ece": parts[0].ece, "raw_ece": parts[0].raw_ece, "temperature": classifier.trust.temperature}
    for now, before in ((calibrated, found), (json.loads((tmp_path / "scores.json").read_text()), found)):
        assert now["tests"][0]["scores"] == before["tests"][0]["scores"]  # a record is of raw probabilities
    wrong = {each["image"]: each["probability"] for each in calibrated["wrong"]}
    assert wrong == {each.image: pytest.approx(each.probability, rel=1e-5) for each in parts[1].wrong}
    page = (tmp_path / "page.html").read_text()
    assert parts[0].ece is not None and parts[0].raw_ece is not None and parts[1].ece is not None and parts[1].raw_ece is not None
    assert f"calibration error {parts[0].ece:.1%} (raw {parts[0].raw_ece:.1%})" in page
    assert f"<td>{100 * parts[1].ece:.1f} %</td><td>{100 * parts[1].raw_ece:.1f} %</td>" in page  # of all images
    monkeypatch.setenv("COLUMNS", "80")
    head, row, *_ = (line.split() for line in cli("eval", adapter, photos)[1].splitlines())
    assert row[:3] == ["new", "to", "it"]  # on one line
    assert head[-4:] == ["ECE", "raw", "ECE", "images"] and row[-3:-1] == [f"{100 * parts[0].ece:.1f}", f"{100 * parts[0].raw_ece:.1f}"]


def test_what_cannot_be_calibrated(cli: Cli, adapter: Path, held_out: Path, tmp_path: Path) -> None:
    cases = {
        ("zero-shot", held_out): "zero-shot CLIP has no folder",
        (tmp_path / "none", held_out): "is no folder with an adapter",
        (adapter, tmp_path / "nothing"): "nothing",
        (adapter, held_out, "--classes", "red thing"): "are of blue thing, which is not among the 1 classes to calibrate",
        (adapter, "mini:digits", "--split", "tests"): "unknown split 'tests'",
    }
    for words, message in cases.items():
        code, _, err = cli("calibrate", *words)
        assert code == 2 and message in err, err


def test_the_demo_shows_a_rejected_photo(trained: Path, held_out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    classifier, known, other = api.from_pretrained(trained), load_dataset(held_out), load_dataset("mini:digits")
    classifier.calibrate(known)
    found = demo._rejected(classifier, replace(known, test=known.train[:8]), replace(other, test=other.test[:8]), tmp_path)
    said = capsys.readouterr().out
    assert "Answered 'unknown', at a threshold that keeps 95 % of held-out photos: " in said and "of 8 of mini:digits" in said
    assert found is not None and found[0].is_file() and len(found[1]) == 2 and f"{found[0]} is one of them: unknown" in said
    assert classifier.predict(found[0], reject=True) == "unknown"
