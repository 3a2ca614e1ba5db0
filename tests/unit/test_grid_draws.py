"""Draws given to a grid: runs' own, CoOp's pickles, and the lists that CoOp drew from in the order of a disk."""

from __future__ import annotations

import pickle
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from mmrl.data import Dataset, Draw, GivenDraws, Item, draw_shots, given_draws, load_dataset, read_draw
from mmrl.errors import UsageError
from tests.trees import make_tree
from tests.unit.conftest import Cli

HOME = "/someone/DATA/imagenet/images"


@pytest.fixture
def record(monkeypatch: pytest.MonkeyPatch) -> Iterator[type]:
    """The family's record type, importable where pickles say it is, while the test writes them."""

    class Datum:
        def __init__(self, place: str, label: int, name: str) -> None:
            self._impath, self._label, self._domain, self._classname = place, label, 0, name

    parts = given_draws.RECORD.module.split(".")
    for i in range(len(parts)):
        monkeypatch.setitem(sys.modules, ".".join(parts[: i + 1]), ModuleType(".".join(parts[: i + 1])))
    Datum.__module__, Datum.__qualname__ = given_draws.RECORD
    sys.modules[given_draws.RECORD.module].Datum = Datum  # type: ignore[attr-defined]
    yield Datum


@pytest.fixture
def imagenet(tmp_path: Path) -> Dataset:
    """A miniature, with names as CLIP's list has them: two are "crane", in capitals or not."""
    folder = tmp_path / "data" / "imagenet"
    wnids = ["n01440764", "n02012849", "n03126707", "n04355933"]
    for split, count in (("train", 6), ("val", 2)):
        for wnid in wnids:
            place = folder / "images" / split / wnid
            place.mkdir(parents=True)
            for i in range(count):
                (place / f"{wnid}_{i}.JPEG").write_bytes(b"")
    names = ["tench", "Crane", "crane", "sunglasses"]
    (folder / "classnames.txt").write_text("\n".join(f"{wnid} {name}" for wnid, name in zip(wnids, names)))
    return load_dataset("imagenet", root=tmp_path / "data")


def as_theirs(record: Any, items: list[Item], names: tuple[str, ...]) -> list[Any]:
    return [record(f"{HOME}/{item.key}", item.label, names[item.label]) for item in items]


THEIRS = ("tench", "crane", "crane", "sunglasses")


def test_doubled_names_are_told_apart_and_read(record: type, imagenet: Dataset, tmp_path: Path) -> None:
    assert imagenet.classes == ("tench", "Crane", "crane (2)", "sunglasses")
    draw = draw_shots(imagenet, 2, 1)
    path = tmp_path / "shot_2-seed_1.pkl"
    path.write_bytes(pickle.dumps({"train": as_theirs(record, draw.train, THEIRS)}, pickle.HIGHEST_PROTOCOL))
    assert read_draw(path, imagenet, "all").train == draw.train
    wrong = as_theirs(record, draw.train, ("tench", "missile", "crane", "sunglasses"))
    path.write_bytes(pickle.dumps({"train": wrong}, pickle.HIGHEST_PROTOCOL))
    with pytest.raises(UsageError, match="of class 'missile' .label 1. there, but of 'Crane'"):
        read_draw(path, imagenet, "all")


def disk_order(dataset: Dataset) -> list[Item]:
    """As a disk might list them: class folders sorted by the family's code, the files in them not."""
    mixed = [item for label in range(4) for item in random.Random(label).sample([i for i in dataset.train if i.label == label], 6)]
    assert mixed != dataset.train
    return mixed


def test_lists_in_the_order_of_a_disk_give_its_draws(record: type, imagenet: Dataset, tmp_path: Path) -> None:
    order = disk_order(imagenet)
    folder = tmp_path / "draws" / "imagenet"
    folder.mkdir(parents=True)
    lists = {"train": as_theirs(record, order, THEIRS), "test": as_theirs(record, imagenet.test, THEIRS)}
    (folder / "preprocessed.pkl").write_bytes(pickle.dumps(lists, pickle.HIGHEST_PROTOCOL))
    generator = random.Random(3)  # what the family's code does with the list
    expected = [item for label in range(4) for item in generator.sample([i for i in order if i.label == label], 2)]
    for given in (tmp_path / "draws", folder):
        found = GivenDraws(given).draw(imagenet, 2, 3, "all")
        assert found is not None and found.train == expected != draw_shots(imagenet, 2, 3).train
    base = GivenDraws(tmp_path / "draws").draw(imagenet, 2, 3, "base")
    assert base is not None and base.train == [item for item in expected if item.label < 2]
    lists["train"] = lists["train"][:-1]
    (folder / "preprocessed.pkl").write_bytes(pickle.dumps(lists, pickle.HIGHEST_PROTOCOL))
    with pytest.raises(UsageError, match="lists 23 training images; 'imagenet' has 24 here"):
        GivenDraws(folder).draw(imagenet, 2, 3, "all")


def test_pickles_and_draw_files_are_found_by_data_set(record: type, imagenet: Dataset, tmp_path: Path) -> None:
    draw = draw_shots(imagenet, 2, 7)
    for place in ("a/imagenet/split_fewshot", "b/imagenet", "c/split_fewshot"):
        (tmp_path / place).mkdir(parents=True)
        content = {"train": as_theirs(record, draw.train, THEIRS)}
        (tmp_path / place / "shot_2-seed_1.pkl").write_bytes(pickle.dumps(content, pickle.HIGHEST_PROTOCOL))
    for place in ("a", "b", "b/imagenet", "a/imagenet/split_fewshot"):
        found = GivenDraws(tmp_path / place).draw(imagenet, 2, 1, "all")
        assert found is not None and found.train == draw.train
    assert GivenDraws(tmp_path / "c").draw(imagenet, 2, 1, "all") is None  # whose pickles are they?
    with pytest.raises(UsageError, match="has 1 draws of 'imagenet', but none of 4 shots with seed 1 of all classes"):
        GivenDraws(tmp_path / "a").draw(imagenet, 4, 1, "all")
    (tmp_path / "d" / "work" / "key").mkdir(parents=True)
    draw.save(tmp_path / "d" / "work" / "key" / "draw.json")
    Draw("dtd", 2, 7, "all", [], []).save(tmp_path / "d" / "other-draw.json")
    found = GivenDraws(tmp_path / "d").draw(imagenet, 2, 7, "base")
    assert found is not None and found.train == draw_shots(imagenet, 2, 7, "base").train and found.classes == "base"
    with pytest.raises(UsageError, match="folder of draws .*none does not exist"):
        GivenDraws(tmp_path / "none")


def test_a_grid_trains_on_the_draws_given(cli: Cli, tmp_path: Path) -> None:
    make_tree("eurosat", tmp_path / "data", raw=True)
    root = tmp_path / "data"
    dataset = load_dataset("eurosat", root=root)
    other = draw_shots(dataset, 1, 99)
    (tmp_path / "draws").mkdir()
    Draw("eurosat", 1, 1, "all", other.train, other.val).save(tmp_path / "draws" / "draw.json")
    quick = [word for key in ("epochs=1", "warmup_epochs=0", "rep_dim=8", "rep_tokens=1") for word in ("--set", key)]
    what = ("few-shot", "--datasets", "eurosat", "--methods", "mmrl", "--shots", 1, "--seeds", 1)
    bench = ("bench", *what, "--root", root, "--backbone", "tiny")
    out = tmp_path / "r"
    code, printed, err = cli(*bench, "--out", out, "--draws", tmp_path / "draws", *quick)
    assert code == 0 and f"draws of {tmp_path / 'draws'}: eurosat; the others are drawn here" in printed.replace("\n", ""), err
    (written,) = (out / "work").glob("*/draw.json")
    assert Draw.load(written).train == other.train
    code, printed, _ = cli(*bench, "--out", out, *quick, "--dry-run")
    assert code == 0 and "1 training and 0" in printed  # another draw is another training
