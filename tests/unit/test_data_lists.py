"""Files that list images: CSV, JSONL and split files; what is read, and how what is wrong is named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mmrl.data import load_dataset
from mmrl.data.records import Item
from mmrl.errors import UsageError
from tests.trees import make_tree
from tests.unit.test_data_folder import photos

CLASSES = ("ant", "red fox")
KEYS = [f"{name}/{number}.png" for name in ("ant", "red_fox") for number in range(10)]


@pytest.fixture
def images(tmp_path: Path) -> Path:
    for name in ("ant", "red_fox"):
        photos(tmp_path / name, 10)
    return tmp_path


def write_csv(path: Path, header: str, rows: list[str]) -> str:
    path.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8-sig")
    return str(path)


def write_jsonl(path: Path, records: list[dict]) -> str:
    path.write_text("\n".join(map(json.dumps, records)) + "\n\n")
    return str(path)


def label_of(key: str) -> str:
    return key.split("/")[0]


def test_csv_and_jsonl_without_splits_divide_as_the_folder_does(images: Path) -> None:
    files = [
        write_csv(images / "list.csv", "path,label", [f"{key},{label_of(key)}" for key in reversed(KEYS)]),
        write_jsonl(images / "list.jsonl", [{"path": key, "label": label_of(key)} for key in KEYS]),
    ]
    folder = load_dataset(str(images))
    for file in files:
        dataset = load_dataset(file)
        assert (dataset.name, dataset.classes) == ("list", CLASSES)
        assert (dataset.train, dataset.val, dataset.test) == (folder.train, folder.val, folder.test)
        assert dataset.image(Item("red_fox/7.png", 1)).getpixel((0, 0)) == (7, 0, 0)


def test_splits_and_other_columns(images: Path) -> None:
    parts = ["Train"] * 6 + ["validation"] * 2 + ["test"] * 2
    rows = [f'{key},"{label_of(key)}, really",{part},x' for key, part in zip(KEYS, parts * 2)]
    dataset = load_dataset(write_csv(images / "list.csv", "path,label,split,note", rows))
    assert [len(part) for part in (dataset.train, dataset.val, dataset.test)] == [12, 4, 4]
    assert dataset.classes == ("ant, really", "red fox, really") and dataset.test[-1] == Item("red_fox/9.png", 1)
    records = [{"path": key, "label": i // 10, "split": part} for i, (key, part) in enumerate(zip(KEYS, (["train"] * 6 + ["val"] * 4) * 2))]
    dataset = load_dataset(write_jsonl(images / "list.jsonl", records))
    assert dataset.classes == ("0", "1") and [len(part) for part in (dataset.train, dataset.val, dataset.test)] == [12, 0, 8]


def test_the_image_folder_can_be_given(images: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    other = tmp_path_factory.mktemp("lists")
    file = write_csv(other / "list.csv", "path,label", [f"{key},{label_of(key)}" for key in KEYS])
    assert load_dataset(file, images=images).image(Item(KEYS[0], 0)).size == (4, 4)
    with pytest.raises(UsageError, match="0.png does not exist"):
        load_dataset(file).image(Item(KEYS[0], 0))
    with pytest.raises(UsageError, match="image folder .*none does not exist"):
        load_dataset(file, images=other / "none")
    for spec in (str(images), "dtd"):
        with pytest.raises(UsageError, match="images= is for files that list images"):
            load_dataset(spec, images=images)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no column 'path' and no column 'label'"),
        (
            "file,label\na.png,ant",
            "has no column 'path'. Its first line must be a header with path, label and optionally split, .*; it is 'file,label'",
        ),
        ("a.png,ant\nb.png,ant", "has no column 'path' and no column 'label'"),
        ("path,label\n", "lists no image"),
        ("path,label\na.png,ant\nb.png, ", "line 3: 'label' is missing or blank"),
        ("path,label\n,ant", "line 2: 'path' is missing or blank"),
        ("path,label\na.png", "line 2: 'label' is missing or blank"),
        ("path,label\na.png,ant,extra", "line 2: more fields than the header has"),
        ("path,label\na.png,ant\na.png,red fox", "line 3: image 'a.png' is already in line 2"),
        ("path,label\n/data/../a.png,ant", "line 2: path 'data/../a.png' must stay inside"),
        ("path,label\n../a.png,ant", "line 2: path '../a.png' must stay inside the image folder"),
        ("path,label,split\na.png,ant,train\nb.png,ant,", "line 3: split is ''; it must be train, val or test"),
        ("path,label,split\na.png,ant,holdout", "line 2: split is 'holdout'"),
        ("path,label,split\na.png,bee,train\nb.png,ant,test", "'b.png' in test has class 'ant' .label 0., which has no training image"),
        ('path,label\n"a.png,ant', "cannot be? read .*It must be CSV|cannot read"),
        (b"path,label\n\xff.png,ant", "cannot read .*It must be UTF-8"),
    ],
)
def test_bad_csv_is_refused_with_its_line(tmp_path: Path, text: str | bytes, message: str) -> None:
    (tmp_path / "list.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UsageError, match=message):
        load_dataset(str(tmp_path / "list.csv"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"path": "a.png", "label": "ant"}\n{"path": "b.p', "line 2 is not valid JSON, or was cut short"),
        ('["a.png", "ant"]', "line 1 is .*; expected {"),
        ('{"path": "a.png", "label": ["ant"]}', "line 1 is .*; expected {"),
        ('{"path": "a.png"}', "line 1: 'label' is missing or blank"),
        ('{"path": "a.png", "label": null}', "line 1"),
        ("\n", "lists no image"),
        (b"\xff", "It must be UTF-8"),
    ],
)
def test_bad_jsonl_is_refused_with_its_line(tmp_path: Path, text: str | bytes, message: str) -> None:
    (tmp_path / "list.jsonl").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UsageError, match=message):
        load_dataset(str(tmp_path / "list.jsonl"))


def test_a_split_file_anywhere(images: Path) -> None:
    split = {"train": [["ant/0.png", 0, "ant"], ["red_fox/0.png", 1, "red_fox"]], "test": [["ant/1.png", 0, "ant"]]}
    file = images / "split.json"
    file.write_text(json.dumps(split))
    dataset = load_dataset(str(file))
    assert dataset.classes == CLASSES and dataset.val == [] and dataset.test == [Item("ant/1.png", 0)]
    assert dataset.image(dataset.train[1]).size == (4, 4)


def test_a_split_file_finds_its_images_beside_it(tmp_path: Path) -> None:
    folder = make_tree("eurosat", tmp_path)
    named, file = load_dataset("eurosat", root=tmp_path), str(folder / "split_zhou_EuroSAT.json")
    dataset = load_dataset(file)
    assert (dataset.classes, dataset.train) == (named.classes, named.train) and dataset.image(dataset.test[0]).size == (32, 32)
    (folder / "copy").symlink_to(folder / "2750")
    with pytest.raises(UsageError, match=r"in more than one folder: .*2750, .*copy. Choose one with images="):
        load_dataset(file)
    assert load_dataset(file, images=folder / "copy").image(dataset.test[0]).size == (32, 32)


GOOD = {"train": [["a.png", 0, "ant"], ["b.png", 1, "bee"]], "val": [], "test": [["c.png", 0, "ant"]]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ([1], r"holds a list. Expected {\"train\""),
        ({"train": []}, r"has 'train'. Expected"),
        ({**GOOD, "extra": []}, "'extra'. Expected"),
        ({**GOOD, "train": {}}, "'train' is a dict, not a list"),
        ({**GOOD, "test": []}, "there is no test image"),
        ({**GOOD, "train": [], "test": []}, "there is no train image"),
        ({**GOOD, "test": [["c.png", 0]]}, r"test\[0\] is .*; expected \[path, label, class name\]"),
        ({**GOOD, "test": [["c.png", "0", "ant"]]}, r"test\[0\] is .*; expected a path, a label of 0 or more"),
        ({**GOOD, "test": [["c.png", True, "bee"]]}, r"test\[0\] is .*; expected a path"),
        ({**GOOD, "test": [["c.png", -1, "bee"]]}, r"test\[0\] is .*; expected a path"),
        ({**GOOD, "test": [["c.png", 0, " "]]}, r"test\[0\] is .*; expected a path"),
        ({**GOOD, "test": [["/home/me/c.png", 0, "ant"]]}, r"test\[0\]: path '/home/me/c.png' is absolute"),
        ({**GOOD, "test": [["C:/me/c.png", 0, "ant"]]}, r"path 'C:/me/c.png' is absolute"),
        ({**GOOD, "test": [["x/../../c.png", 0, "ant"]]}, r"test\[0\]: path 'x/../../c.png' must stay inside"),
        ({**GOOD, "test": [["x\\c.png", 0, "ant"]]}, r"'/' between folders"),
        ({**GOOD, "test": [["", 0, "ant"]]}, r"test\[0\]: the path of the image is ''"),
        ({**GOOD, "train": [["a.png", 0, "ant"], ["b.png", 2, "bee"]]}, "no image has label 1, but there are 2 classes up to label 2"),
        ({**GOOD, "train": [["a.png", 0, "ant"], ["b.png", 0, "bee"]]}, "label 0 is called both 'ant' and 'bee' .'b.png'."),
        ({**GOOD, "train": [["a.png", 0, "ant"], ["b.png", 1, "ant"]]}, "class 'ant' has both label 0 and label 1"),
        ({**GOOD, "test": [["c.png", 0, "cow"]]}, "label 0 is called both 'ant' and 'cow'"),
        ({**GOOD, "test": [["c.png", 2, "cow"]]}, "'c.png' in test has class 'cow' .label 2., which has no training image"),
    ],
)
def test_bad_split_files_are_refused(tmp_path: Path, change: object, message: str) -> None:
    (tmp_path / "split.json").write_text(json.dumps(change))
    with pytest.raises(UsageError, match=message) as caught:
        load_dataset(str(tmp_path / "split.json"))
    assert str(tmp_path / "split.json") in str(caught.value)


def test_split_files_that_are_no_json(tmp_path: Path) -> None:
    for text in (json.dumps(GOOD)[:-20], "", "[" * 100_000):
        (tmp_path / "split.json").write_text(text)
        with pytest.raises(UsageError, match="not valid JSON, or was cut short"):
            load_dataset(str(tmp_path / "split.json"))
    for spec in (str(tmp_path / "none.json"), "none.csv"):
        with pytest.raises(UsageError, match=f"{Path(spec).name} does not exist"):
            load_dataset(spec)
