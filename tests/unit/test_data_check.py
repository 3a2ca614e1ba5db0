"""`check_dataset` and `mmrl data check` on miniature trees of all 15 data sets."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from mmrl.cli.main import app
from mmrl.data.benchmark import entry, published
from mmrl.data.benchmark.check import check_dataset, data_root
from mmrl.data.benchmark.entries import ENTRIES
from mmrl.data.benchmark.entry import read_benchmark
from mmrl.data.benchmark.published import lists_hash
from mmrl.errors import UsageError
from tests.trees import NAMES, SPLIT_FILES, facts_of_tree, make_tree

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
    assert report.split is not None and report.split.file == entry.split
    assert report.split.kind == ("as given" if name not in SPLIT_FILES else "drawn here" if raw else "other")

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
        "3 of the 3 classes, such as n01440764, but 9 images outside class folders." if flat else "1 of the 3 classes, such as n01484850."
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
    assert code == 0 and all(name in text for name in NAMES) and "says which files to get" in text
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


@pytest.mark.parametrize("kind", ["published", "other", "drawn here"])
def test_the_split_is_told_with_its_hash(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    make_tree("dtd", tmp_path, raw=kind == "drawn here", classes=2)
    file = SPLIT_FILES["dtd"]
    if kind == "published":
        facts = facts_of_tree("dtd", tmp_path)
        monkeypatch.setattr(published, "all_facts", lambda: {"dtd": facts})
    dataset = read_benchmark(ENTRIES["dtd"], tmp_path)
    hashed = lists_hash(dataset)
    (report,) = json.loads(run("--root", tmp_path, "--json", "dtd")[1])
    assert (report["split"]["kind"], report["split"]["file"], report["split"]["lists"]) == (kind, file, hashed)
    differences = report["split"]["differences"]
    assert bool(differences) == (kind == "other") and dataset.own_split == (kind != "published")
    code, text = run("--root", tmp_path, "dtd")
    lines = {
        "published": f"split: published (lists' hash {hashed})\n",
        "other": f"split: {file} is not the published one (lists' hash {hashed}; 20 known entries or counts differ, the first: "
        "2 classes, not 47): results do not compare with the paper's\n",
        "drawn here": f"split: drawn here, as there is no {file} (lists' hash {hashed}): results do not compare with the paper's\n",
    }
    assert code == 0 and lines[kind] in text
    if kind == "other":
        assert differences[:4] == ["2 classes, not 47", "10 training images, not 2,820", "4 validation images, not 1,128",
                                   "6 test images, not 1,692"]  # fmt: skip
        assert len(differences) == 4 + 16 and differences[4].endswith("not 'banded/banded_0117.jpg' (label 0, 'banded')")


def test_lists_of_the_authors_have_a_hash_too(tmp_path: Path):
    make_tree("fgvc_aircraft", tmp_path, classes=2)
    assert f"split: as its authors give it (lists' hash {lists_hash(read_benchmark(ENTRIES['fgvc_aircraft'], tmp_path))})" in run(
        "--root", tmp_path, "fgvc_aircraft"
    )[1]


def test_a_folder_that_cannot_be_listed_is_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = make_tree("dtd", tmp_path, classes=2) / "images/banded"
    listed = os.scandir

    def refusing(path: str | Path = "."):  # type: ignore[no-untyped-def]  # tests may run as root, whom no permission stops
        if Path(path) == folder:
            raise PermissionError(13, os.strerror(13), str(path))
        return listed(path)

    monkeypatch.setattr(os, "scandir", refusing)
    report = check_dataset(ENTRIES["dtd"], tmp_path)
    assert report.state == "partly" and report.problems == [f"folder {folder} cannot be listed: Permission denied. Check its permissions."]


def test_links_to_themselves_and_names_that_are_too_long_are_missing(tmp_path: Path):
    folder = make_tree("dtd", tmp_path, classes=2)
    circle = folder / "images/banded/banded_0002.jpg"
    circle.unlink()
    circle.symlink_to(circle)
    split = folder / SPLIT_FILES["dtd"]
    content = json.loads(split.read_text())
    content["train"][0][0], content["train"][1][0] = f"{'x' * 300}.jpg", f"{'x' * 300}/1.jpg"
    split.write_text(json.dumps(content))
    report = check_dataset(ENTRIES["dtd"], tmp_path, deep=True)
    assert {Path(path).name for path in report.missing} == {circle.name, f"{'x' * 300}.jpg", "1.jpg"} and not report.problems
    (tmp_path / "ucf101").symlink_to(tmp_path / "ucf101")
    assert check_dataset(ENTRIES["ucf101"], tmp_path).state == "absent"
    assert run("--root", tmp_path / ("x" * 300))[0] == 2


def test_deep_decodes_as_the_authors_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    make_tree("dtd", tmp_path, classes=2)
    decoded: list[Path] = []
    monkeypatch.setattr(entry, "as_published", lambda path: decoded.append(path) or Image.new("RGB", (1, 1)))
    assert check_dataset(ENTRIES["dtd"], tmp_path, deep=True).ready and len(decoded) == 20


def test_deep_on_the_command_line(tmp_path: Path):
    folder = make_tree("dtd", tmp_path, classes=2)
    (folder / "images/blotchy/blotchy_0005.jpg").write_bytes(b"")
    code, text = run("--root", tmp_path, "--deep", "--workers", "2", "dtd")
    assert code == 1 and f"cannot be read: {folder / 'images/blotchy/blotchy_0005.jpg'}" in text


def test_mistakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("DATA", raising=False)
    assert run() == (2, "the folder with the data sets is not set. Pass it with --root, or set the environment variable DATA.")
    assert run("--root", tmp_path / "none")[0] == 2
    code, text = run("--root", tmp_path, "oxfort_pets")
    assert code == 2 and "Did you mean 'oxford_pets'?" in text
    monkeypatch.setenv("DATA", str(tmp_path))
    assert data_root(None) == tmp_path
