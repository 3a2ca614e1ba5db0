"""Folders of photos and the catalogue: what is read, in which order, and how what cannot be read is refused."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from mmrl.data import catalogue
from mmrl.data.catalogue import DatasetInfo, Places, dataset_info, dataset_names, load_dataset, register_dataset
from mmrl.data.folder import read_folder
from mmrl.data.records import Dataset, Item
from mmrl.errors import UsageError


def photos(folder: Path, n: int, ending: str = ".png") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(n):
        Image.new("RGB", (4, 4), (i, 0, 0)).save(folder / f"{i}{ending}")


def test_classes_are_sorted_and_all_images_are_there(tmp_path: Path) -> None:
    for name in ("red_fox", "Badger", "cat"):
        photos(tmp_path / name, 10)
    (tmp_path / "cat" / ".hidden.png").write_text("x")
    (tmp_path / "cat" / "notes.txt").write_text("x")
    (tmp_path / ".git").mkdir()
    dataset = load_dataset(str(tmp_path))
    assert dataset.classes == ("Badger", "cat", "red fox") and dataset.template == "a photo of a {}."
    assert dataset.rest_tests and (dataset.val, dataset.test) == ([], [])
    assert [item.label for item in dataset.train] == [0] * 10 + [1] * 10 + [2] * 10
    everything = {item.key for item in dataset.train}
    assert len(everything) == 30 and not any("hidden" in key or "notes" in key for key in everything)
    assert dataset.image(Item("red_fox/7.png", 2)).getpixel((0, 0)) == (7, 0, 0)


def test_split_folders_are_kept(tmp_path: Path) -> None:
    for split, n in (("Train", 3), ("validation", 1), ("test", 2)):
        photos(tmp_path / split / "cat", n)
        photos(tmp_path / split / "dog" / "indoors", n)
    dataset = read_folder(tmp_path)
    assert dataset.classes == ("cat", "dog")
    assert (len(dataset.train), len(dataset.val), len(dataset.test)) == (6, 2, 4)
    assert dataset.test[-1] == Item("test/dog/indoors/1.png", 1)


def test_val_is_the_test_set_where_there_is_no_other(tmp_path: Path) -> None:
    photos(tmp_path / "train" / "cat", 3)
    photos(tmp_path / "val" / "cat", 2)
    dataset = read_folder(tmp_path)
    assert (len(dataset.train), len(dataset.val), len(dataset.test)) == (3, 0, 2)


def test_classes_may_be_called_train(tmp_path: Path) -> None:
    photos(tmp_path / "train", 2)
    photos(tmp_path / "bus", 2)
    assert read_folder(tmp_path).classes == ("bus", "train")


def _empty_class(root: Path) -> None:
    photos(root / "cat", 2)
    (root / "dog").mkdir()


def _no_images(root: Path) -> None:
    (root / "cat").mkdir()
    (root / "cat" / "cat.txt").write_text("meow")


def _twice(root: Path) -> None:
    photos(root / "red fox", 2)
    photos(root / "red_fox", 2)


def _strange_test_class(root: Path) -> None:
    photos(root / "train" / "cat", 2)
    photos(root / "test" / "dog", 2)


def _empty_test(root: Path) -> None:
    photos(root / "train" / "cat", 2)
    (root / "test").mkdir()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda root: None, "is empty. Expected one subfolder per class"),
        (lambda root: photos(root, 2), "has images but no subfolders"),
        (lambda root: (root / "list.csv").write_text(""), "has no subfolder. Expected"),
        (_empty_class, "class 'dog' has no image: .*dog. Add some, or remove the folder"),
        (_no_images, "class 'cat' has no image among its 1 files .images end in .*png"),
        (_twice, "both name class 'red fox'"),
        (_strange_test_class, "has classes that .*train does not have: dog"),
        (_empty_test, "test has no class folder"),
    ],
)
def test_bad_folders_are_refused_with_a_hint(tmp_path: Path, make, message: str) -> None:  # type: ignore[no-untyped-def]
    make(tmp_path)
    with pytest.raises(UsageError, match=message):
        load_dataset(str(tmp_path))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (b"photos/caf\xe9/0.png", r"the name of a folder in .*photos is not UTF-8: 'caf\\xe9'\. Rename it\."),
        (b"photos/cat/\xe90.png", r"the name of an image below .*photos is not UTF-8: 'cat/\\xe90.png'\. Rename it\."),
        (b"photos/cat/\xe9/0.png", r"the name of an image below .*photos is not UTF-8: 'cat/\\xe9/0.png'\. Rename it\."),
        (b"photos\xe9/cat/0.png", r"the name of the data set is not UTF-8: 'photos\\xe9'\. Rename it\."),
    ],
)
def test_names_that_are_not_utf8_are_refused(tmp_path: Path, name: bytes, message: str) -> None:
    image = tmp_path / os.fsdecode(name)
    photos(image.parent, 1)
    (image.parent / "0.png").rename(image)
    with pytest.raises(UsageError, match=message):
        load_dataset(str(tmp_path / Path(os.fsdecode(name)).parts[0]))


def test_other_files_may_be_called_anything(tmp_path: Path) -> None:
    photos(tmp_path / "cat", 2)
    (tmp_path / "cat" / os.fsdecode(b"\xe9.txt")).touch()
    assert len(read_folder(tmp_path).train) == 2


def test_missing_folder_and_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="none does not exist. Check the path"):
        load_dataset(str(tmp_path / "none"))
    (tmp_path / "photo.png").write_bytes(b"x")
    with pytest.raises(UsageError, match="is a file, not a folder"):
        load_dataset(str(tmp_path / "photo.png"))


def test_a_broken_photo_is_named_when_it_is_read(tmp_path: Path) -> None:
    photos(tmp_path / "cat", 1)
    (tmp_path / "cat" / "0.png").write_bytes((tmp_path / "cat" / "0.png").read_bytes()[:40])
    dataset = read_folder(tmp_path)
    with pytest.raises(UsageError, match="cat/0.png"):
        dataset.image(dataset.train[0])


@pytest.mark.parametrize(("name", "near"), [("mini:object", "mini:objects"), ("digits", "mini:digits"), ("mini:glyph", "mini:glyphs")])
def test_unknown_names_suggest_the_nearest(name: str, near: str) -> None:
    with pytest.raises(UsageError, match=f"unknown data set '{name}'. Did you mean '{near}'?"):
        load_dataset(name)
    with pytest.raises(UsageError, match=f"Did you mean '{near}'?"):
        dataset_info(name)
    with pytest.raises(UsageError, match="unknown data set ''"):
        load_dataset("")


@pytest.mark.parametrize("name", [name for name in dataset_names() if not dataset_info(name).needs_root])
def test_descriptions_agree_with_the_sets(name: str) -> None:
    info, dataset = dataset_info(name), load_dataset(name)
    assert (info.classes, info.template) == (dataset.classes, dataset.template) and info.summary
    assert info.n_classes == len(dataset.classes)
    assert (info.train, info.val, info.test) == (len(dataset.train), len(dataset.val), len(dataset.test))


def test_a_set_from_outside_registers_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(catalogue, "_REGISTRY", dict(catalogue._REGISTRY))
    monkeypatch.delenv("DATA", raising=False)
    asked = []

    def maker(places: Places) -> Dataset:
        asked.append(places)
        return Dataset("toy", ("a", "b"), "a {}.", [Item("x", 0)], [], [Item("y", 1)], read=lambda key: Image.new("RGB", (2, 2)))

    info = DatasetInfo("toy", "two classes", ("a", "b"), "a {}.", 1, 0, 1)
    register_dataset("toy", maker, info)
    assert load_dataset("toy", cache=tmp_path).classes == ("a", "b") and asked == [Places(None, tmp_path)]
    assert "toy" in dataset_names() and dataset_info("toy") is info
    with pytest.raises(UsageError, match="already registered"):
        register_dataset("toy", maker, info)
    with pytest.raises(UsageError, match="must not be blank nor look like a path"):
        register_dataset("./toy", maker, info)
    with pytest.raises(UsageError, match="with the description of 'toy'"):
        register_dataset("other", maker, info)


@pytest.mark.parametrize(
    ("code", "unwanted"),
    [
        ("import mmrl.data", "numpy PIL torch torchvision matplotlib sklearn"),
        ("from mmrl.data import dataset_info, dataset_names; list(map(dataset_info, dataset_names()))", "torch torchvision scipy datasets"),
        ("from mmrl.data import load_dataset, draw_shots; draw_shots(load_dataset('mini:digits'), 4, 1)", "torch torchvision matplotlib"),
        ("from mmrl.data import to_rgb; import numpy; to_rgb(numpy.zeros((4, 4)))", "torch torchvision matplotlib sklearn"),
    ],
)
def test_nothing_heavy_is_imported_before_it_is_needed(code: str, unwanted: str) -> None:
    check = f"import sys; sys.path[:0] = {sys.path!r}; {code}; print(*sorted(set({unwanted.split()!r}) & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True).stdout.split() == []


def test_the_package_exports_what_it_says() -> None:
    import mmrl.data

    assert all(getattr(mmrl.data, name) is not None for name in mmrl.data.__all__) and dir(mmrl.data) == sorted(mmrl.data.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = mmrl.data.nothing
