"""Data as people have it: what phones, systems and spreadsheets leave, paths written whole, test images alone, and mistyped folders."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmrl.data import Dataset, draw_shots, formats, load_dataset, to_rgb
from mmrl.errors import Notice, UsageError

WITH_EXTRA = formats.reads_heic()


def photo(path: Path, shade: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((20, 24, 3), shade, np.uint8)).save(path)
    return path


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    for name in ("cat", "dog"):
        for i in range(3):
            photo(tmp_path / "pets" / name / f"{i}.png", i)
    return tmp_path / "pets"


def keys(dataset: Dataset) -> list[str]:
    return [item.key for item in (*dataset.train, *dataset.val, *dataset.test)]


def said(spec: object) -> tuple[Dataset, list[str]]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        dataset = load_dataset(str(spec))
    return dataset, [str(each.message) for each in caught if issubclass(each.category, Notice)]


@pytest.fixture
def without_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "reads_heic", lambda: False)
    monkeypatch.setattr("mmrl.data.images.reads_heic", lambda: False)


@pytest.mark.parametrize("litter", ["._0.png", ".DS_Store", "Thumbs.db", "thumbs.db", "desktop.ini", ".hidden.png"])
def test_what_systems_leave_is_no_photo(pets: Path, litter: str) -> None:
    before = keys(load_dataset(pets))
    for place in (pets, pets / "cat"):
        (place / litter).write_bytes(b"\x00\x05\x16\x07")
    (pets / "__MACOSX" / "cat").mkdir(parents=True)
    (pets / "__MACOSX" / "cat" / "._0.png").write_bytes(b"\x00\x05\x16\x07")
    (pets / "cat" / "__MACOSX").mkdir()
    photo(pets / "cat" / "__MACOSX" / "0.png")
    assert keys(load_dataset(pets)) == before


def test_what_systems_leave_is_skipped_in_lists(pets: Path) -> None:
    lines = ["path,label", "cat/0.png,cat", "cat/._0.png,cat", "cat/.DS_Store,cat", "__MACOSX/dog/1.png,dog", "dog/1.png,dog"]
    (pets / "list.csv").write_text("\n".join(lines))
    dataset = load_dataset(pets / "list.csv")
    assert keys(dataset) == ["cat/0.png", "dog/1.png"] and dataset.classes == ("cat", "dog")


def test_heic_is_counted_where_nothing_reads_it(pets: Path, without_extra: None) -> None:
    before = keys(load_dataset(pets))
    for i, name in enumerate(("a.HEIC", "b.heic", "c.heif")):
        (pets / ("cat", "dog")[i % 2] / name).write_bytes(b"\0")
    dataset, notes = said(pets)
    assert keys(dataset) == before
    assert notes == [f"skipped 3 .HEIC files in {pets}: pip install 'mmrl[heic]' reads them."]
    (pets / "list.csv").write_text("path,label\ncat/0.png,cat\ncat/a.HEIC,cat")
    dataset, notes = said(pets / "list.csv")
    assert keys(dataset) == ["cat/0.png"]
    assert notes == [f"skipped 1 .HEIC file in {pets / 'list.csv'}: pip install 'mmrl[heic]' reads them."]
    (pets / "phone").mkdir()
    (pets / "phone" / "a.HEIC").write_bytes(b"\0")
    with pytest.raises(UsageError, match=r"class 'phone' has 1 .HEIC photos and no other: .* To read them: pip install 'mmrl\[heic\]'"):
        load_dataset(pets)
    (pets / "list.csv").write_text("path,label\ncat/0.png,cat\nphone/a.HEIC,phone")
    with pytest.raises(UsageError, match=r"class 'phone' of .* has only .HEIC photos"):
        load_dataset(pets / "list.csv")


def test_a_heic_photo_says_what_reads_it(tmp_path: Path, without_extra: None) -> None:
    content = b"\0\0\0\x1cftypheic" + bytes(20)
    (tmp_path / "a.jpg").write_bytes(content)  # as some chat programs rename it
    for source in (tmp_path / "a.jpg", content):
        with pytest.raises(UsageError, match=r"is a HEIC photo, and the library that reads it is not installed: pip install 'mmrl"):
            to_rgb(source)


@pytest.mark.skipif(not WITH_EXTRA, reason="the extra 'heic' is not installed")
def test_heic_is_read_with_the_extra(pets: Path) -> None:
    made = photo(pets / "cat" / "phone.HEIC", 100)
    dataset, notes = said(pets)
    assert not notes and "cat/phone.HEIC" in keys(dataset)
    for source in (made, made.read_bytes()):
        image = to_rgb(source)
        assert image.size == (24, 20) and abs(float(np.asarray(image).mean()) - 100) < 3
    made.write_bytes(made.read_bytes()[:60])
    with pytest.raises(UsageError, match="phone.HEIC"):
        to_rgb(made)


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_spreadsheets_divide_columns_their_own_way(pets: Path, delimiter: str) -> None:
    rows = [("label", "path", "split"), ("cat", "cat/0.png", "train"), ("cat, black", "cat/1.png", "train"), ("cat", "cat/2.png", "test")]
    written = "\r\n".join(delimiter.join(f'"{cell}"' if "," in cell else cell for cell in row) for row in rows)
    for name in ("list.csv", "list.tsv"):
        (pets / name).write_text(written, encoding="utf-8-sig")
        dataset = load_dataset(pets / name)
        assert dataset.classes == ("cat", "cat, black") and [item.label for item in dataset.train] == [0, 1]
        assert dataset.image(dataset.test[0]).getpixel((0, 0)) == (2, 2, 2)


def test_paths_may_be_written_whole(pets: Path, tmp_path: Path) -> None:
    other = photo(tmp_path / "elsewhere" / "a.png", 7)
    (pets / "list.csv").write_text(f"path,label\n{pets}/cat/0.png,cat\ndog/1.png,dog\n{other},dog")
    dataset = load_dataset(pets / "list.csv")
    assert keys(dataset) == ["cat/0.png", str(other), "dog/1.png"]  # those below the list's folder stay relative, so it can be moved
    assert [dataset.image(item).getpixel((0, 0))[0] for item in dataset.train] == [0, 7, 1]
    draw_shots(dataset, 1, 1).save(tmp_path / "draw.json")
    (pets / "list.csv").write_text(f"path,label\n{pets}/cat/0.png,cat\ncat/0.png,cat")
    with pytest.raises(UsageError, match="line 3: image 'cat/0.png' is already in line 2"):
        load_dataset(pets / "list.csv")


def test_test_images_alone_are_a_test_set(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        photo(tmp_path / "whole" / "test" / name / "0.png")
    (tmp_path / "list.csv").write_text("path,label,split\na.png,cat,test\nb.png,dog,testing\nc.png,dog,val")
    folder, listed = load_dataset(tmp_path / "whole"), load_dataset(tmp_path / "list.csv")
    for dataset, tested in ((folder, 2), (listed, 2)):
        assert dataset.classes == ("cat", "dog") and not dataset.train and len(dataset.test) == tested and not dataset.rest_tests
        for shots in (0, 2):
            with pytest.raises(UsageError, match="has test images only, and nothing can be trained without others"):
                draw_shots(dataset, shots, 1, allow_fewer=True)


@pytest.mark.parametrize("folders", [("test",), ("train",), ("test", "train")])
def test_a_split_without_classes_is_no_class(tmp_path: Path, folders: tuple[str, ...]) -> None:
    for name in folders:
        photo(tmp_path / name / "0.png")
    with pytest.raises(UsageError, match=f"has only {'/ and '.join(folders)}/, without class folders in it. Expected one subfolder"):
        load_dataset(tmp_path)


def test_a_mistyped_folder_is_answered_with_a_folder(pets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(pets.parent)
    (pets.parent / "textures-mine").mkdir()
    cases = {
        "pest": "unknown data set 'pest'. Did you mean pets?",
        "texture-mine": "unknown data set 'texture-mine'. Did you mean textures-mine?",
        "./pest": "data folder pest does not exist. Did you mean pets?",
        f"{pets.parent}/Pet": f"does not exist. Did you mean {pets}?",
        "pest/cat": "data folder pest/cat does not exist. Did you mean pets/cat?",
        "pets/lst.csv": "list of images pets/lst.csv does not exist. Check the path.",
        "holiday": "unknown data set 'holiday'. Known: ",
    }
    for spec, message in cases.items():
        with pytest.raises(UsageError) as error:
            load_dataset(spec)
        assert message in str(error.value) and "mini:textures'?" not in str(error.value), spec
