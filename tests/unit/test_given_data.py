"""Labelled images that a program holds: each way of handing them over gives the same set, and what is wrong in one is said."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import mmrl
from mmrl.clip import load_clip
from mmrl.data import Dataset, draw_shots, load_dataset
from mmrl.data.given import given_dataset, with_held_out
from mmrl.errors import UsageError


def contents(dataset: Dataset, part: str = "train") -> list[tuple[str, bytes]]:
    """Class and pixels of every image, sorted."""
    return sorted((dataset.classes[item.label], dataset.image(item).tobytes()) for item in getattr(dataset, part))


@pytest.fixture
def rows(photos: Path) -> list[tuple[str, str]]:
    """Paths and class names."""
    dataset = load_dataset(photos)
    return [(str(photos / item.key), dataset.classes[item.label]) for item in dataset.train]


def test_every_form_gives_the_same_set(photos: Path, rows: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch) -> None:
    expected = contents(load_dataset(photos))
    paths, names = [path for path, _ in rows], [name for _, name in rows]
    pictures = [Image.open(path) for path in paths]
    arrays = np.stack([np.asarray(picture) for picture in pictures])
    forms: list[Any] = [
        photos, str(photos), load_dataset(photos), (paths, names), (np.array(paths), np.array(names)), (pictures, names), (arrays, names),
        ([Path(path).read_bytes() for path in paths], names),
        {name: [path for path, own in rows if own == name] for name in ("blue thing", "red thing")},
        {"blue thing": photos / "blue thing", "red_thing": f"{photos}/red_thing/*.jpg"},
        [{"path": path, "label": name} for path, name in rows],
        [{"image": picture, "class": name} for picture, name in zip(pictures, names)],
    ]  # fmt: skip
    for form in forms:
        dataset = given_dataset(form)
        assert contents(dataset) == expected and dataset.classes == ("blue thing", "red thing"), form
        assert dataset.rest_tests and not dataset.test and draw_shots(dataset, 2, 1).hash == draw_shots(given_dataset(form), 2, 1).hash
    monkeypatch.chdir(photos)
    assert contents(given_dataset({"blue thing": "blue thing", "red thing": "red_thing/*.jpg"})) == expected


def test_pandas_and_datasets(rows: list[tuple[str, str]], photos: Path) -> None:
    pandas, hf = pytest.importorskip("pandas"), pytest.importorskip("datasets")
    expected = contents(load_dataset(photos))
    frame = pandas.DataFrame(rows, columns=["path", "label"])
    assert contents(given_dataset(frame)) == expected
    assert contents(given_dataset((frame["path"], frame["label"]))) == expected
    names = ["blue thing", "red thing"]
    features = hf.Features({"image": hf.Image(), "label": hf.ClassLabel(names=names)})
    table = hf.Dataset.from_dict({"image": [path for path, _ in rows], "label": [names.index(name) for _, name in rows]}, features=features)
    assert contents(given_dataset(table)) == expected
    parts = hf.DatasetDict({"train": table.select(range(8, 16)).select(range(2)), "test": table.select(range(4))})
    with pytest.raises(UsageError, match="the table: 'test/0' in test has class 'blue thing' .label 0., which has no training image"):
        given_dataset(parts)
    parts["train"] = table.select([0, 15])
    dataset = given_dataset(parts)
    four = sorted((name, Image.open(path).tobytes()) for path, name in rows[:4])
    assert len(dataset.train) == 2 and contents(dataset, "test") == four
    picture = dataset.image(dataset.train[0])
    in_memory = hf.Dataset.from_dict({"image": [picture], "label": [0]}, features=features)
    assert given_dataset(in_memory).image(given_dataset(in_memory).train[0]).tobytes() == picture.tobytes()


def test_neither_pandas_nor_datasets_is_needed(rows: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("pandas", "datasets"):
        monkeypatch.setitem(sys.modules, name, None)
    given_dataset([{"path": path, "label": name} for path, name in rows])


def test_splits(rows: list[tuple[str, str]]) -> None:
    records = [{"path": path, "label": name, "split": "training" if at % 2 else "Test"} for at, (path, name) in enumerate(rows)]
    dataset = given_dataset(records)
    assert not dataset.rest_tests and (len(dataset.train), len(dataset.val), len(dataset.test)) == (8, 0, 8)
    validated = given_dataset([{**record, "split": "val" if record["split"] == "Test" else "train"} for record in records])
    assert (validated.train, validated.test) == (dataset.train, dataset.test)
    alone = given_dataset([{**record, "split": "test"} for record in records])
    assert not alone.train and len(alone.test) == 16
    with pytest.raises(UsageError, match="the list, row 0: split is 'tset'; it must be train, val or test"):
        given_dataset([{**records[0], "split": "tset"}])


def test_what_is_wrong_is_said(rows: list[tuple[str, str]]) -> None:
    path = rows[0][0]
    cases: dict[str, Any] = {
        "there are 2 images and 1 labels; every image needs one": ([path, path], ["a"]),
        "label number 1 is 1, and a label is the name of a class": ([path, rows[1][0]], ["a", np.int64(1)]),
        "image '.*' is there twice": ([path, path], ["a", "a"]),
        "class 'a' has no image": {"a": []},
        "the images of 'a' must be a list, and is a bytes": {"a": b"x"},
        "the list, row 0 has where, kind; it needs path .or image": [{"where": path, "kind": "a"}],
        "the list, row 0: 'label' is blank": [{"path": path, "label": float("nan")}],
        "data is a list of 1 .str, ....; give a folder": [path],
        "data is a NoneType": None,
        "the pair .images, labels. has no image": ([], []),
        "an image must be a path": ([object()], ["a"]),
    }
    for message, data in cases.items():
        with pytest.raises(UsageError, match=message):
            given_dataset(data)


def test_other_data_may_test(photos: Path, rows: list[tuple[str, str]], tmp_path: Path) -> None:
    picture = np.asarray(Image.open(rows[0][0]))
    dataset = with_held_out(load_dataset(photos), given_dataset(([picture, picture[::-1]], ["Red_Thing", "blue thing"])))
    assert len(dataset.train) == 16 and [dataset.classes[item.label] for item in dataset.test] == ["red thing", "blue thing"]
    assert dataset.image(dataset.test[0]).tobytes() == picture.tobytes()
    assert dataset.image(dataset.train[0]).tobytes() == load_dataset(photos).image(dataset.train[0]).tobytes()
    gone = with_held_out(load_dataset(photos), given_dataset({"red thing": [tmp_path / "gone.jpg"]}))
    assert gone.absent([*gone.train, *gone.test]) == gone.test
    with pytest.raises(UsageError, match="the images held out are of owl, which 'photos.*' does not have: blue thing, red thing"):
        with_held_out(load_dataset(photos), given_dataset(([picture], ["owl"])))
    with pytest.raises(UsageError, match="has its own test images, so no others can be held out"):
        with_held_out(dataset, dataset)


@pytest.mark.filterwarnings("ignore")
def test_arrays_train_and_test(rows: list[tuple[str, str]]) -> None:
    arrays, names = np.stack([np.asarray(Image.open(path)) for path, _ in rows]), [name for _, name in rows]
    clip = load_clip("tiny", device="cpu")
    classifier = mmrl.fit((arrays, names), method="linear-probe", holdout=0.25, progress=False, backbone=clip)
    assert classifier.classes == ("blue thing", "red thing") and classifier.report is not None
    assert classifier.report.held_out is not None and classifier.report.held_out.count == 4
    assert classifier.report.record.trained.images == 12 and classifier.score(arrays, names) >= 0.75
    tested = mmrl.fit((arrays, names), method="linear-probe", holdout=(arrays[:2], names[:2]), shots=2, backbone=clip)
    assert tested.report is not None and tested.report.held_out is not None and tested.report.held_out.count == 2
