"""Folders that the library `datasets` saved."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mmrl.data import draw_shots, load_dataset
from mmrl.data.records import Item
from mmrl.errors import UsageError

hf = pytest.importorskip("datasets")

NAMES = ["ant", "red_fox"]


def table(n: int, **extra: Any) -> Any:
    images = [Image.new("RGB", (4, 4), (i, i % 2, 0)) for i in range(n)]
    features = hf.Features({"picture": hf.Image(), "kind": hf.ClassLabel(names=NAMES), "id": hf.Value("int64"), **extra})
    columns = {"picture": images, "kind": [i % 2 for i in range(n)], "id": list(range(n))}
    return hf.Dataset.from_dict(columns | dict.fromkeys(extra, columns["kind"]), features=features)


@pytest.fixture(autouse=True)
def quiet() -> None:
    hf.disable_progress_bars()


def test_a_table_is_read(tmp_path: Path) -> None:
    table(20).save_to_disk(str(tmp_path / "bugs"))
    dataset = load_dataset(str(tmp_path / "bugs"))
    assert (dataset.name, dataset.classes) == ("bugs", ("ant", "red fox"))
    assert dataset.rest_tests and [len(part) for part in (dataset.train, dataset.val, dataset.test)] == [20, 0, 0]
    for item in dataset.train:
        assert dataset.image(item).getpixel((0, 0)) == (int(item.key.removeprefix("all/")), item.label, 0)
    assert len(draw_shots(dataset, 2, 1).train) == 4
    assert load_dataset(str(tmp_path / "bugs")).fingerprint == dataset.fingerprint


def test_splits_are_kept(tmp_path: Path) -> None:
    hf.DatasetDict({"train": table(8), "validation": table(4), "test": table(6)}).save_to_disk(str(tmp_path / "bugs"))
    dataset = load_dataset(str(tmp_path / "bugs"))
    assert [len(part) for part in (dataset.train, dataset.val, dataset.test)] == [8, 4, 6]
    assert dataset.test[5] == Item("test/5", 1) and dataset.image(dataset.test[5]).getpixel((0, 0)) == (5, 1, 0)
    hf.DatasetDict({"train": table(8), "validation": table(4)}).save_to_disk(str(tmp_path / "two"))
    dataset = load_dataset(str(tmp_path / "two"))
    assert [len(part) for part in (dataset.train, dataset.val, dataset.test)] == [8, 0, 4]
    hf.DatasetDict({"train": table(8)}).save_to_disk(str(tmp_path / "one"))
    dataset = load_dataset(str(tmp_path / "one"))
    assert dataset.rest_tests and dataset.image(Item("train/4", 0)).getpixel((0, 0)) == (4, 0, 0)
    with pytest.raises(UsageError, match="has its images inside its files; save it with a test split, or"):
        load_dataset(str(tmp_path / "one"), test=tmp_path)


def test_what_cannot_be_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cases = {
        "two labels": (table(4, other=hf.ClassLabel(names=NAMES)), "has the columns kind, other of type ClassLabel, where one is needed"),
        "no image": (table(4).remove_columns("picture"), "has no column of type Image, .* its columns are kind, id"),
        "odd": (hf.DatasetDict({"train": table(4), "extra": table(4)}), "has the split 'extra'"),
        "no train": (hf.DatasetDict({"test": table(4)}), "has no training image"),
        "unlabelled": (table(4).map(lambda row: {"kind": -1}), "image 0 has no label .-1."),
    }
    for name, (content, message) in cases.items():
        content.save_to_disk(str(tmp_path / name))
        with pytest.raises(UsageError, match=message):
            load_dataset(str(tmp_path / name))
    arrow = next((tmp_path / "no train" / "test").glob("*.arrow"))
    arrow.write_bytes(arrow.read_bytes()[:100])
    with pytest.raises(UsageError, match="cannot be read as a folder saved by 'datasets'"):
        load_dataset(str(tmp_path / "no train"))
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UsageError, match=r"not installed: pip install 'mmrl\[hf\]'"):
        load_dataset(str(tmp_path / "odd"))


def test_a_broken_image_is_named(tmp_path: Path) -> None:
    broken = table(4).cast_column("picture", hf.Image(decode=False))
    broken = broken.map(lambda row: {"picture": {"bytes": row["picture"]["bytes"][:40], "path": None} if row["id"] else None})
    broken.cast_column("picture", hf.Image()).save_to_disk(str(tmp_path / "bugs"))
    dataset = load_dataset(str(tmp_path / "bugs"))
    with pytest.raises(UsageError, match="bugs, image all/1: image of 40 bytes"):
        dataset.image(Item("all/1", 1))
    with pytest.raises(UsageError, match="image all/0 is not in the saved files"):
        dataset.image(Item("all/0", 0))
