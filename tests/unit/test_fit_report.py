"""A classifier keeps its score: held out and trained on, beside zero-shot CLIP, through saving, loading and pickling."""

from __future__ import annotations

import functools
import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import mmrl
from mmrl.classifier.predictor import Classifier
from mmrl.classifier.report import FitReport
from mmrl.clip import load_clip
from mmrl.errors import MmrlError, UsageError

QUICK = {"epochs": 2, "warmup_epochs": 0, "batch_size": 2, "rep_dim": 8, "rep_tokens": 1}
pytestmark = pytest.mark.filterwarnings("ignore::mmrl.errors.Notice", "ignore::mmrl.engine.BelowZeroShotWarning")


tiny = functools.cache(load_clip)


def fit(photos: Path, **options: Any) -> Classifier:
    return mmrl.fit(photos, backbone=tiny("tiny", device="cpu"), progress=False, **options)


@pytest.fixture(scope="module")
def classifier(photos: Path) -> Classifier:
    return fit(photos, holdout=0.25, overrides=QUICK)


def report_of(classifier: Classifier) -> FitReport:
    assert classifier.report is not None
    return classifier.report


def test_what_the_report_says(classifier: Classifier, photos: Path) -> None:
    report = report_of(classifier)
    held, train = report.held_out, report.train
    assert held is not None and train is not None and report.new_classes is None
    assert (held.count, train.count) == (4, 12) and report.train is train  # computed once
    assert held.scores == report.record.metrics.all and held.zero_shot == report.record.zero_shot.all
    assert not {*held.images} & {*train.images} and {*held.images, *train.images} == {str(each) for each in photos.rglob("*.jpg")}
    again = classifier.evaluate((list(held.images), [Path(each).parent.name.replace("_", " ") for each in held.images]))
    assert again.scores.top1 == held.top1 and again.answers is not None and held.answers is not None
    assert again.answers.predicted.tolist() == held.answers.predicted.tolist()
    assert len(report.curve) == 12 and {"step", "loss", "lr"} <= {*report.curve[0]}
    assert f"held out: top-1 {held.top1:.1%} of 4 images (zero-shot {held.zero_shot.top1:.1%})" in repr(report)  # type: ignore[union-attr]
    assert f"top-1 {held.top1:.1%} of 4 images" in repr(classifier) and "\n" not in repr(classifier) + repr(report)
    page = report._repr_html_()
    assert page.count("<svg") == 4 and "trained on, zero-shot" in page and "blue thing" in page  # confusion, calibration, loss, accuracy
    assert "held out" in classifier._repr_html_() and "<script" not in page
    assert json.loads(json.dumps(report.to_dict()))["held_out"]["scores"]["top1"] == held.top1


def test_names_in_pages_are_text(photos: Path, tmp_path: Path) -> None:
    for i, name in enumerate(("<b>cat</b>", "a & b")):
        for j in range(3):
            (tmp_path / name.replace("/", "∕")).mkdir(exist_ok=True)
            Image.new("RGB", (20, 20), (90 * i, 40 * j, 0)).save(tmp_path / name.replace("/", "∕") / f"{j}.png")
    classifier = fit(tmp_path, method="linear-probe", holdout=0.4)
    for page in (classifier._repr_html_(), report_of(classifier)._repr_html_()):
        assert "<b>cat" not in page and "&lt;b&gt;cat" in page and "a &amp; b" in page


def test_half_of_the_classes(photos: Path) -> None:
    report = report_of(fit(photos, classes="base", holdout=0.25, overrides=QUICK))
    assert report.held_out is not None and report.new_classes is not None and report.train is not None
    assert (report.held_out.classes, report.new_classes.classes) == (("blue thing",), ("red thing",))
    assert report.train.count == 6


def test_without_images_held_out(photos: Path) -> None:
    classifier = fit(photos, holdout=0, method="linear-probe")
    report = report_of(classifier)
    assert report.held_out is None and report.train is not None and report.train.count == 16
    assert "nothing held out" not in repr(report) and "top-1" not in repr(classifier)
    with pytest.raises(UsageError, match="every image of '.*' was drawn to train"):
        classifier.evaluate(photos)


def test_saved_and_loaded(classifier: Classifier, photos: Path, tmp_path: Path) -> None:
    folder = classifier.save_pretrained(tmp_path / "saved")
    assert sorted(each.name for each in folder.iterdir()) == [
        "README.md", "adapter_config.json", "adapter_model.safetensors", "draw.json", "run.json"
    ]  # fmt: skip
    assert "zero-shot" in (folder / "README.md").read_text()  # the card has the scores
    loaded = mmrl.from_pretrained(folder, backbone=tiny("tiny", device="cpu"))
    held = report_of(loaded).held_out
    assert held is not None and held.scores == report_of(classifier).record.metrics.all and report_of(loaded).train is None
    assert f"top-1 {held.top1:.1%} of 4 images" in repr(mmrl.from_pretrained(folder, backbone=tiny("tiny", device="cpu")))
    assert repr(report_of(loaded)).startswith("FitReport(mmrl on 12 images") and "<svg" in report_of(loaded)._repr_html_()
    with pytest.raises(UsageError, match="which images were wrong is not in the record of a run; evaluate them again"):
        print(held.wrong)
    assert loaded.evaluate(photos).count == 4  # it knows what it was trained on
    (folder / "run.json").write_text("{")
    with pytest.raises(MmrlError, match="run record"):
        print(mmrl.from_pretrained(folder, backbone=tiny("tiny", device="cpu")).report)
    assert repr(mmrl.from_pretrained(folder, backbone=tiny("tiny", device="cpu"))).endswith("2 trained classes)")
    (folder / "run.json").unlink()
    assert mmrl.from_pretrained(folder, backbone=tiny("tiny", device="cpu")).report is None


def test_pickled_with_its_score(classifier: Classifier, photos: Path, tmp_path: Path) -> None:
    train = report_of(classifier).train
    again: Classifier = pickle.loads(pickle.dumps(classifier))  # noqa: S301 - of this test
    held = report_of(again).held_out
    assert held is not None and held.wrong == report_of(classifier).held_out.wrong  # type: ignore[union-attr]
    assert train is not None and report_of(again).to_dict()["train"] == train.to_dict()
    assert report_of(again).record == report_of(classifier).record
    with pytest.raises(UsageError, match="is not kept with this report"):
        held.image(held.images[0])
    moved = shutil.copytree(photos, tmp_path / "elsewhere")
    assert again.evaluate(moved).count == 16
