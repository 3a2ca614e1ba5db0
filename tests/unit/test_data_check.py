"""`check_dataset` and `mmrl data check` on miniature trees of all 15 data sets."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from mmrl.cli.main import app
from mmrl.data.benchmark.check import check_dataset, data_root
from mmrl.data.benchmark.entries import ENTRIES
from mmrl.data.benchmark.read import read_benchmark
from mmrl.errors import UsageError
from tests.trees import NAMES, SPLIT_FILES, make_tree

RAW_OR_SPLIT = [(name, raw) for name in NAMES for raw in ((True, False) if name in SPLIT_FILES else (True,))]
LISTED = [
    (name, raw) for name, raw in RAW_OR_SPLIT if not raw or name in ("oxford_pets", "stanford_cars", "fgvc_aircraft", "sun397", "ucf101")
]


def run(*words: str | Path) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["data", "check", *map(str, words)])
    error = result.exception
    return (2, str(error)) if isinstance(error, UsageError) else (result.exit_code, result.stdout)


def test_every_entry_has_a_tree():
    assert tuple(ENTRIES) == NAMES
    assert {name: entry.split for name, entry in ENTRIES.items() if entry.split} == SPLIT_FILES


@pytest.mark.parametrize(("name", "raw"), RAW_OR_SPLIT)
def test_ready_then_partly_without_what_it_needs(name: str, raw: bool, tmp_path: Path):
    entry = ENTRIES[name]
    folder = make_tree(name, tmp_path, raw=raw, per_class=5, classes=3)
    report = check_dataset(entry, tmp_path, deep=True)
    assert report.ready and not (report.missing or report.problems or report.unreadable or report.fixes)
    assert report.counts["classes"] == (2 if name in ("imagenet_a", "imagenet_r") else 3, entry.classes)
    assert report.counts["test"][0] > 0 and all(report.counts[part][1] == getattr(entry, part) for part in ("train", "val", "test"))
    assert any("Table 7" in note for note in report.notes)
    assert any("the split is drawn here" in note for note in report.notes) == (raw and name in SPLIT_FILES)

    needed = entry.image_folders_of(tmp_path)[0]
    needed.rename(folder / "elsewhere")
    report = check_dataset(entry, tmp_path)
    assert str(needed) in report.missing and report.fixes
    assert report.state == ("partly" if report.found else "absent")


@pytest.mark.parametrize(("name", "raw"), LISTED)
def test_a_listed_image_that_is_gone_is_named(name: str, raw: bool, tmp_path: Path):
    make_tree(name, tmp_path, raw=raw, per_class=5, classes=2)
    entry = ENTRIES[name]
    image = entry.images_of(tmp_path) / read_benchmark(entry, tmp_path).test[0].key
    image.unlink()
    report = check_dataset(entry, tmp_path)
    assert (report.state, report.missing) == ("partly", [str(image)])
    assert f"mmrl data prepare {name}" in report.fixes[-1]


def test_a_folder_in_the_place_of_an_image_is_no_image(tmp_path: Path):
    folder = make_tree("dtd", tmp_path, classes=2)
    (folder / "images/banded/banded_0002.jpg").unlink()
    (folder / "images/banded/banded_0002.jpg").mkdir()
    assert check_dataset(ENTRIES["dtd"], tmp_path).missing == [str(folder / "images/banded/banded_0002.jpg")]


def test_an_empty_folder_is_nothing(tmp_path: Path):
    (tmp_path / "dtd/images").mkdir(parents=True)
    report = check_dataset(ENTRIES["dtd"], tmp_path)
    assert (report.state, report.missing) == ("absent", [str(tmp_path / "dtd/images")])


def test_only_deep_finds_broken_images(tmp_path: Path):
    folder = make_tree("eurosat", tmp_path, classes=2)
    broken = folder / "2750/Forest/Forest_3.jpg"
    broken.write_bytes(broken.read_bytes()[:200])
    assert check_dataset(ENTRIES["eurosat"], tmp_path).ready
    seen: list[tuple[int, int]] = []
    report = check_dataset(ENTRIES["eurosat"], tmp_path, deep=True, workers=2, progress=lambda *at: seen.append(at))
    assert (report.state, report.unreadable) == ("partly", [str(broken)])
    assert seen == [(done, 20) for done in range(1, 21)]
    assert "remove the images that cannot be read" in report.fixes


def test_a_damaged_list_is_a_problem(tmp_path: Path):
    folder = make_tree("food101", tmp_path, classes=2)
    split = folder / SPLIT_FILES["food101"]
    split.write_text(split.read_text()[:100])
    report = check_dataset(ENTRIES["food101"], tmp_path)
    assert report.state == "partly" and str(split) in report.problems[0]


@pytest.mark.parametrize("flat", [True, False])
def test_imagenets_val_without_class_folders_is_a_problem(flat: bool, tmp_path: Path):
    val = make_tree("imagenet", tmp_path, classes=3) / "images/val"
    gone = [val / "n01484850"] if not flat else sorted(val.iterdir())
    for folder in gone:
        for image in folder.iterdir():
            image.rename(val / image.name if flat else tmp_path / image.name)
        folder.rmdir()
    (problem,) = check_dataset(ENTRIES["imagenet"], tmp_path).problems
    with pytest.raises(UsageError) as caught:
        read_benchmark(ENTRIES["imagenet"], tmp_path)
    assert str(caught.value) == problem
    what = (
        "3 of the 3 classes, n01440764 for one, but 9 images outside class folders." if flat else "1 of the 3 classes, n01484850 for one."
    )
    assert problem.startswith(f"{val} has no folder for {what} Move val/ away") and "`mmrl data prepare imagenet --from FOLDER`" in problem


def test_missing_lists_name_the_published_split_as_the_other_way(tmp_path: Path):
    folder = make_tree("oxford_pets", tmp_path, raw=True)
    shutil.rmtree(folder / "annotations")
    report = check_dataset(ENTRIES["oxford_pets"], tmp_path)
    assert report.missing == [str(folder / "annotations/trainval.txt"), str(folder / "annotations/test.txt")]
    assert report.fixes[0].startswith("get annotations.tar.gz from")
    assert "split_zhou_OxfordPets.json" in report.fixes[1]


def test_table_and_exit_codes(tmp_path: Path):
    assert run("--root", tmp_path)[0] == 1  # nothing is there
    make_tree("dtd", tmp_path, classes=2)
    code, text = run("--root", tmp_path)
    assert code == 0 and all(name in text for name in NAMES) and "says what to get" in text
    assert run("--root", tmp_path, "dtd")[0] == 0
    code, text = run("--root", tmp_path, "dtd", "food101")
    assert code == 1 and f"missing: {tmp_path / 'food-101/images'}" in text and "food-101.tar.gz" in text
    folder = make_tree("sun397", tmp_path, classes=2)
    for image in list((folder / "SUN397/a/abbey").iterdir())[:7]:
        image.unlink()
    code, text = run("--root", tmp_path)
    assert code == 1 and text.count(f"missing: {folder}") == 5 and "and 2 more" in text


def test_json_names_everything(tmp_path: Path):
    make_tree("dtd", tmp_path, classes=2)
    code, text = run("--root", tmp_path, "--json", "dtd", "ucf101")
    ready, absent = json.loads(text)
    assert code == 1 and (ready["state"], absent["state"]) == ("ready", "absent")
    assert ready["counts"]["train"] == [10, 2820] and absent["missing"][0] == str(tmp_path / "ucf101/UCF-101-midframes")


def test_deep_on_the_command_line(tmp_path: Path):
    folder = make_tree("dtd", tmp_path, classes=2)
    (folder / "images/blotchy/blotchy_0005.jpg").write_bytes(b"")
    code, text = run("--root", tmp_path, "--deep", "--workers", "2", "dtd")
    assert code == 1 and f"cannot be read: {folder / 'images/blotchy/blotchy_0005.jpg'}" in text


def test_mistakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("DATA", raising=False)
    assert run() == (2, "where are the data sets? Give their folder with --root, or set the environment variable DATA.")
    assert run("--root", tmp_path / "none")[0] == 2
    code, text = run("--root", tmp_path, "oxfort_pets")
    assert code == 2 and "Did you mean 'oxford_pets'?" in text
    monkeypatch.setenv("DATA", str(tmp_path))
    assert data_root(None) == tmp_path
