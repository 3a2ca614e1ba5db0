"""`--sort-into`: copies by class under safe names, none over another, none twice, and none where an image cannot be read."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmrl.bulk import sorting, stream
from mmrl.bulk.answers import Answer
from mmrl.bulk.listed import WantedImages
from mmrl.bulk.predict import Engine, Predicted, Target, write
from mmrl.bulk.sorting import Sorter, folder_names
from mmrl.errors import MmrlError, UsageError
from mmrl.trust.answers import Prediction
from tests.unit import bulk_sets
from tests.unit.bulk_sets import CLASSES, judge


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "BLOCK", 8)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return bulk_sets.photos(tmp_path / "photos")


def sort(photos: Path, folder: Path, problems: list[str] | None = None, *, out: Path | None = None, **options: Any) -> Predicted:
    threshold = options.pop("threshold", None)
    target = Target.of(out, sort_into=folder, **options)
    assert target is not None
    told = [] if problems is None else problems
    return write(judge(threshold=threshold), WantedImages((photos,), recursive=True), target, Engine(), problem=told.append, progress=False)


def lines_of(folder: Path) -> list[dict[str, Any]]:
    return list(map(json.loads, (folder / "predictions.jsonl").read_text().splitlines()))


def digests(folder: Path) -> dict[str, str]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_each_image_is_copied_once_into_the_folder_of_its_class(photos: Path, tmp_path: Path) -> None:
    folder, before = tmp_path / "sorted", digests(photos)
    problems: list[str] = []
    found = sort(photos, folder, problems)
    assert found.out == folder / "predictions.jsonl" and found.unreadable == len(problems) == 3 and found.not_copied == 0
    lines = lines_of(folder)
    names = dict(zip(CLASSES, folder_names(CLASSES)))
    copies = [line["copy"] for line in lines if "copy" in line]
    assert len(copies) == len(set(copies)) == 28 and all("error" in line for line in lines if "copy" not in line)
    for line in lines:
        if "copy" in line:
            assert Path(line["copy"]).parent == folder / names[line["predictions"][0]["name"]]
            assert Path(line["copy"]).read_bytes() == Path(line["image"]).read_bytes()
            assert os.stat(line["copy"]).st_mtime == pytest.approx(os.stat(line["image"]).st_mtime)
    assert {str(path) for path in folder.rglob("*") if path.is_file()} == {*copies, str(found.out), f"{found.out}.run.json"}
    suffixed = [copy for copy in copies if "-" in Path(copy).name]
    assert suffixed and digests(photos) == before


def test_same_names_and_even_the_same_image_twice_get_names_of_their_own(tmp_path: Path) -> None:
    one = bulk_sets.photo(tmp_path / "a" / "x.png", 1)
    two = bulk_sets.photo(tmp_path / "b" / "x.png", 1)  # the same content, too
    folder = tmp_path / "sorted"
    target = Target.of(None, sort_into=folder)
    assert target is not None
    write(judge(), WantedImages((one, two, one, one, two)), target, Engine(), problem=print, progress=False)
    copies = [line["copy"] for line in lines_of(folder)]
    assert len(set(copies)) == 5 and all(Path(copy).read_bytes() == one.read_bytes() for copy in copies)
    assert Path(copies[0]).name == "x.png" and all(Path(copy).name.startswith("x-") and copy.endswith(".png") for copy in copies[1:])


def test_unknown_images_have_a_folder(photos: Path, tmp_path: Path) -> None:
    sort(photos, tmp_path / "sorted", threshold=1e9)
    assert {Path(line["copy"]).parent.name for line in lines_of(tmp_path / "sorted") if "copy" in line} == {"unknown"}


def test_nothing_is_overwritten(photos: Path, tmp_path: Path) -> None:
    folder = tmp_path / "sorted"
    sort(photos, folder)
    with pytest.raises(UsageError, match="predictions.jsonl is there already"):
        sort(photos, folder)
    before = digests(folder)
    sort(photos, folder, out=tmp_path / "again.csv")
    after = digests(folder)
    assert before.items() <= after.items() and len(after) == len(before) + 28
    assert sort(photos, folder, resume=True).before == 31 and digests(folder) == after


def test_links(photos: Path, tmp_path: Path) -> None:
    sort(photos, tmp_path / "sorted", links=True)
    lines = [line for line in lines_of(tmp_path / "sorted") if "copy" in line]
    assert len(lines) == 28 and all(os.readlink(line["copy"]) == line["image"] for line in lines)
    assert sort(photos, tmp_path / "sorted", links=True, resume=True).not_copied == 0


def test_copies_that_are_gone_are_made_again_when_it_goes_on(photos: Path, tmp_path: Path) -> None:
    folder, problems = tmp_path / "sorted", list[str]()
    sort(photos, folder)
    before = digests(folder)
    copies = [Path(line["copy"]) for line in lines_of(folder) if "copy" in line]
    copies[0].unlink(), copies[5].unlink()
    copies[7].write_bytes(b"another file")
    found = sort(photos, folder, problems, resume=True)
    assert found.not_copied == 1 and f"another file is at {copies[7]}" in problems[0]
    copies[7].unlink()
    assert sort(photos, folder, resume=True).not_copied == 0 and digests(folder) == before


def test_an_image_that_vanishes_before_it_is_copied(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, problems, placed = tmp_path / "sorted", list[str](), Sorter.placed

    def and_gone(self: Sorter, answers: list[Answer], first: int) -> list[Answer]:
        if first == 0:
            os.unlink(answers[0].image)
        return placed(self, answers, first)

    monkeypatch.setattr(Sorter, "placed", and_gone)
    found = sort(photos, folder, problems)
    assert found.not_copied == 1 and "a/000.png could not be copied: No such file" in problems[0]
    assert len([line for line in lines_of(folder) if "copy" in line]) == 28


def test_a_full_disk_and_file_systems_without_links(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "sorted"

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(sorting.shutil, "copyfileobj", full)
        with pytest.raises(MmrlError, match="cannot write .*/sorted/.*png: No space left on device.*--resume goes on"):
            sort(photos, folder)
    assert not list(folder.rglob("*.partial")) and 8 <= len(lines_of(folder)) < 31
    with monkeypatch.context() as patch:
        patch.setattr(os, "link", full)
        assert sort(photos, folder, resume=True).not_copied == 0
    assert len(list(folder.rglob("*.png"))) == 28


def test_options_that_need_each_other(tmp_path: Path) -> None:
    for options, said in (({"links": True}, "--link needs"), ({"resume": True}, "--resume needs --out or --sort-into")):
        with pytest.raises(UsageError, match=said):
            Target.of(None, **options)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="--link needs --sort-into"):
        Target.of(tmp_path / "x.csv", links=True)
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="--sort-into .*file is a file; give a folder"):
        Sorter(tmp_path / "file", CLASSES)
    assert Target.of(None) is None


def test_copies_are_not_made_where_images_are_looked_for(photos: Path, tmp_path: Path) -> None:
    for wanted in (WantedImages((photos,), recursive=True), WantedImages((f"{photos}/**/*.png",)), WantedImages((f"{tmp_path}/pho**",))):
        with pytest.raises(UsageError, match="lies in .*, whose images are asked for"):
            write(judge(), wanted, Target(tmp_path / "x.csv", sort_into=photos / "sorted"), Engine(), problem=print, progress=False)
    WantedImages((photos,)).refuse_copies_inside(photos / "sorted")
    WantedImages((photos,), recursive=True).refuse_copies_inside(tmp_path / "photos of last year")
    assert not (tmp_path / "x.csv").exists()


def test_urls_are_not_copied(tmp_path: Path) -> None:
    likeliest = [Prediction("cat", 1.0, False)]
    sorter = Sorter(tmp_path, ("cat",))
    (url, file) = sorter.placed([Answer("https://x.example/a.png", likeliest), Answer("a.png", likeliest)], 0)
    assert [each.image for each in sorter.copy([("a.png", str(tmp_path)), ("b.png", str(tmp_path / "b.png"))])] == ["b.png"]
    assert url.copy is None and file.copy == str(tmp_path / "cat" / "a.png")


ODD = ["..", ".", "a/b", "a_b", "A_B", "con", "NUL.txt", "x. ", "/", "\0", "predictions.jsonl"]
NAMES = st.lists(st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=200), min_size=1, max_size=6)


@settings(max_examples=100, deadline=None)
@given(NAMES | st.lists(st.sampled_from(ODD), min_size=1))
def test_folders_of_classes_are_folders_of_their_own(names: list[str]) -> None:
    found = folder_names(names)
    assert len({name.casefold() for name in found}) == len(names)
    for name in found:
        assert name not in ("", ".", "..", "predictions.jsonl") and not set(name) & set('/\\\0\n:*?"<>|')
        assert len(name.encode()) < 200 and name[0] not in ". " and name[-1] not in ". " and name.casefold() not in ("con", "nul.txt")


def test_names_stay_readable() -> None:
    assert folder_names(["red panda", "AC/DC", "..", "é", ".hidden"]) == ["red panda", "AC_DC", "_", "é", "_hidden"]
