"""`mmrl eval ADAPTER FOLDER`: every photo, those that trained it told apart, among the trained classes; the page of the mistakes."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from mmrl import api
from mmrl.classifier.apart import evaluate_apart, merged
from mmrl.data import load_dataset, to_rgb
from mmrl.engine import score
from tests.unit.conftest import Cli

SCRIPT = "<script>document.title='ran'</script>"
HANDLER = "<img src=x onerror=document.title='ran'>"


@pytest.fixture(scope="module")
def objects(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six photos each of four of the mini objects."""
    folder, dataset = tmp_path_factory.mktemp("data") / "objects", load_dataset("mini:objects")
    for label in range(4):
        for number, item in enumerate([each for each in dataset.train if each.label == label][:6]):
            place = folder / dataset.classes[label] / f"{number}.png"
            place.parent.mkdir(parents=True, exist_ok=True)
            dataset.image(item).save(place)
    return folder


@pytest.fixture(scope="module")
def taught(objects: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "taught"
    api.train(objects, method="coop", shots=4, out=out, overrides={"epochs": 1, "batch_size": 8}, progress=False, device="cpu")
    return out


def some_of(objects: Path, place: Path, labels: list[int], numbers: range) -> Path:
    for name in sorted(each.name for each in objects.iterdir())[labels[0] : labels[-1] + 1]:
        (place / name).mkdir(parents=True)
        for number in numbers:
            shutil.copy(objects / name / f"{number}.png", place / name / f"new {number}.png")
    return place


def test_every_photo_counts_and_those_that_trained_it_are_told_apart(cli: Cli, objects: Path, taught: Path) -> None:
    code, printed, err = cli("eval", taught, objects)
    assert code == 0 and "16 images trained it; how good it is, the other 8 say" in printed, err
    rows = {tuple(line.split()[:3]): line.split() for line in printed.splitlines()}
    assert rows["new", "to", "it"][-1] == "8" and rows["used", "for", "it"][-1] == "16"
    assert all(re.search(rf"^  {name} +6 ", printed, re.M) for name in load_dataset(objects).classes)
    code, printed, _ = cli("eval", taught, "--data", objects, "--json")
    found = json.loads(printed)
    (test,) = found["tests"]
    kept = json.loads((taught / "run.json").read_text())["tests"][0]
    assert test["scores"] == kept["scores"] and test["scores"]["count"] == 8 and found["on_used_images"]["count"] == 16
    wrong = round(8 * (1 - test["scores"]["top1"]) + 16 * (1 - found["on_used_images"]["top1"]))
    drawn = {key for key, _ in json.loads((taught / "draw.json").read_text())["train"]}
    assert len(found["wrong"]) == wrong
    assert all(each["used_for_it"] == (str(Path(each["image"]).relative_to(objects)) in drawn) for each in found["wrong"])


def test_trained_classes_compete_unless_others_are_named(cli: Cli, objects: Path, taught: Path, tmp_path: Path) -> None:
    names = load_dataset(objects).classes
    two = some_of(objects, tmp_path / "two", [1, 2], range(6))
    (tmp_path / "names.txt").write_text("\n".join([*names[1:3], "wolverine"]))
    listed = {"trained": names, "data": names[1:3], str(tmp_path / "names.txt"): (*names[1:3], "wolverine"), ",".join(names[:3]): names[:3]}
    for among, competing in {"": names, **listed}.items():
        words = ("--among", among) if among else ()
        code, printed, err = cli("eval", taught, two, *words, "--json")
        scores = json.loads(printed)["tests"][0]["scores"]
        assert code == 0 and tuple(scores["class_names"]) == competing and scores["count"] == 12, err
    code, _, err = cli("eval", taught, two, "--among", names[0])
    assert code == 2 and f"images of 'two' are of {names[1]}, {names[2]}" in err and "--among data" in err
    code, _, err = cli("eval", taught, two, "--among", "data", "--classes", "base")
    assert code == 2 and "--classes base says which classes compete" in err
    code, _, err = cli("eval", taught, two, "--data", two)
    assert code == 2 and "data is given twice" in err


def test_test_images_alone(cli: Cli, objects: Path, taught: Path, tmp_path: Path) -> None:
    some_of(objects, tmp_path / "held" / "test", [0, 3], range(2))
    lines = [f"{objects}/{name}/5.png;{name};test" for name in load_dataset(objects).classes]
    (tmp_path / "held.csv").write_text("\n".join(["path;label;split", *lines]))
    for data, count in ((tmp_path / "held", 8), (tmp_path / "held.csv", 4)):
        code, printed, err = cli("eval", taught, data, "--json")
        assert code == 0 and json.loads(printed)["tests"][0]["scores"]["count"] == count, err


def test_scores_of_two_parts_are_those_of_the_whole() -> None:
    random, names = np.random.default_rng(0), [f"class {i}" for i in range(7)]
    logits, labels = random.normal(size=(50, 7)), random.integers(0, 6, 50)
    for cut in (1, 20, 49):
        parts = [score(logits[at], labels[at], names) for at in (slice(cut), slice(cut, None))]
        found, whole = merged(*parts), score(logits, labels, names)
        assert found.confusion == whole.confusion and found.per_class == whole.per_class and found.class_names == whole.class_names
        assert [each.count for each in found.bins] == [each.count for each in whole.bins]
        for name in ("top1", "top5", "macro", "ece", "count"):
            assert getattr(found, name) == pytest.approx(getattr(whole, name), abs=1e-12), name


def test_a_report_on_every_image_reads_each_of_them(objects: Path, taught: Path) -> None:
    classifier = api.from_pretrained(taught, device="cpu")
    options = {"classifier_rule": "auto", "template": None, "skip_broken": False, "beside_zero_shot": True, "batch_size": 64, "workers": 0}
    found = evaluate_apart(classifier, objects, split="test", root=None, among="trained", **options)
    assert found.new is not None and found.trained is not None and found.counted is found.new
    whole = found.all
    assert len(whole.images) == whole.count == 24 and sorted(whole.images) == sorted(str(path) for path in objects.rglob("*.png"))
    assert all(whole.image(name).size == to_rgb(name).size for name in (whole.images[0], whole.images[-1]))
    assert found.taught(whole.images[-1]) and not found.taught(whole.images[0])
    assert len(whole.wrong) == len(found.new.wrong) + len(found.trained.wrong)


def test_that_it_is_below_zero_shot_is_said_of_new_images_alone(monkeypatch: pytest.MonkeyPatch, objects: Path, taught: Path) -> None:
    for module in ("mmrl.engine.run", "mmrl.classifier.apart"):
        monkeypatch.setattr(sys.modules[module], "below_zero_shot", lambda method, test: f"{method} is below on {test.scores.count} images")
    classifier = api.from_pretrained(taught, device="cpu")
    options = {"classifier_rule": "auto", "template": None, "skip_broken": False, "beside_zero_shot": True, "batch_size": 64, "workers": 0}
    found = evaluate_apart(classifier, objects, split="test", root=None, among="trained", **options)
    assert found.new is not None and found.all.record.warnings == (f"{classifier.method.title} is below on 8 images",)


@pytest.fixture
def page(cli: Cli, objects: Path, tmp_path: Path) -> Path:
    """Of images whose classes are called like scripts, two of which cannot be right."""
    names = sorted(each.name for each in objects.iterdir())
    lines = [f"{objects / names[0]}/0.png\t{SCRIPT}", f"{objects / names[0]}/1.png\t{HANDLER}", f"{objects / names[1]}/1.png\t{names[1]}"]
    (tmp_path / "odd.csv").write_text("\n".join(["path\tlabel", *lines]))
    code, printed, err = cli("eval", "zero-shot", tmp_path / "odd.csv", "--html", tmp_path / "page.html")
    assert code == 0 and f"page written to {tmp_path / 'page.html'}" in printed, err
    return tmp_path / "page.html"


def test_the_page_shows_mistakes_and_runs_nothing(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert "<script" not in text and "<img src=x" not in text and "&lt;script&gt;" in text and "&lt;img src=x" in text
    assert "default-src 'none'; img-src data:" in text
    wrong = int(re.search(r"Wrong images \((\d) of 3\)", text)[1])  # type: ignore[index]
    assert wrong >= 1 and text.count('src="data:image/jpeg;base64,') == wrong and not re.search(r'(src|href)="(?!data:)', text)
    found = next(filter(None, map(shutil.which, ("chromium", "google-chrome", "chromium-browser"))), None)
    if found is None:
        pytest.skip("no Chromium here")
    with pytest.importorskip("playwright.sync_api").sync_playwright() as started:
        running = started.chromium.launch(executable_path=found, args=["--no-sandbox", "--disable-gpu"])
        shown = running.new_page(viewport={"width": 390, "height": 800})
        asked: list[str] = []
        shown.on("request", lambda request: asked.append(request.url))
        shown.goto(page.as_uri())
        assert shown.title() == "odd: evaluation" and shown.locator("img").count() == wrong
        assert shown.evaluate("[...document.images].every(image => image.naturalWidth > 0)")
        assert shown.evaluate("document.documentElement.scrollWidth") <= 390
        assert [url for url in asked if not url.startswith(("file:", "data:"))] == []
        running.close()


def test_many_classes_and_mistakes_are_cut_on_the_terminal(cli: Cli, monkeypatch: pytest.MonkeyPatch, objects: Path, taught: Path) -> None:
    from mmrl.cli import evaluated

    monkeypatch.setattr(evaluated, "CLASSES", 2)
    monkeypatch.setattr(evaluated, "WRONG", 1)
    names = load_dataset(objects).classes
    code, printed, _ = cli("eval", taught, objects, "--template", "{}")
    assert code == 0 and "class (lowest 2)" in printed and sum(f"  {name} " in printed for name in names) == 2
    shown = printed.partition("the surest answers first")[2].splitlines()
    assert len(shown) <= 3
