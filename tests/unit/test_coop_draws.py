"""The CoOp family's pickled draws: read, mapped to the data set's images, and never run."""

from __future__ import annotations

import os
import pickle
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from mmrl.data import Dataset, Draw, Item, draw_shots, given_draws, read_coop_draw
from mmrl.errors import UsageError

HOME = "/home/someone/DATA/pets/images"
NAMES = ("Abyssinian cat", "beagle", "pug")


@pytest.fixture
def record(monkeypatch: pytest.MonkeyPatch) -> Iterator[type]:
    """A stand-in for the family's record type, importable where pickles say it is, while the test writes them."""

    class Datum:
        def __init__(self, place: str, label: int, name: str) -> None:
            self._impath, self._label, self._domain, self._classname = place, label, 0, name

    parts = given_draws.RECORD[0].split(".")
    for i in range(len(parts)):
        monkeypatch.setitem(sys.modules, ".".join(parts[: i + 1]), ModuleType(".".join(parts[: i + 1])))
    Datum.__module__, Datum.__qualname__ = given_draws.RECORD
    sys.modules[given_draws.RECORD[0]].Datum = Datum  # type: ignore[attr-defined]
    yield Datum


@pytest.fixture
def pets() -> Dataset:
    items = {
        part: [Item(f"{part}/{name[:3]}_{n}.jpg", label) for label, name in enumerate(NAMES) for n in range(6)] for part in ("train", "val")
    }
    return Dataset("pets", NAMES, "a {}.", items["train"], items["val"], [Item("test/Aby_0.jpg", 0)], read=lambda key: pytest.fail(key))


def draw_file(record: Any, folder: Path, draw: Draw, *, protocol: int = pickle.HIGHEST_PROTOCOL, home: str = HOME, **changes: Any) -> Path:
    """What the family would have written for `draw`, on another machine."""
    names = [name.replace(" ", "_") for name in NAMES]
    content = {
        part: [record(f"{home}/{item.key}", item.label, names[item.label]) for item in items]
        for part, items in (("train", draw.train), ("val", draw.val))
    }
    path = folder / f"shot_{draw.shots}-seed_{draw.seed}.pkl"
    path.write_bytes(pickle.dumps({**content, **changes}, protocol))
    return path


@pytest.mark.parametrize("protocol", [2, 3, 4, pickle.HIGHEST_PROTOCOL])
def test_a_draw_of_theirs_is_the_draw_made_here(record: type, pets: Dataset, tmp_path: Path, protocol: int) -> None:
    draw = draw_shots(pets, 2, 3)
    path = draw_file(record, tmp_path, draw, protocol=protocol)
    sys.modules.pop(given_draws.RECORD[0])  # as on a machine without the family's code
    assert read_coop_draw(path, pets) == draw
    for part in ("base", "novel"):
        assert read_coop_draw(path, pets, classes=part) == draw_shots(pets, 2, 3, part) == read_coop_draw(path, pets.restrict(part))


def test_paths_are_taken_by_their_longest_unique_end(record: type, pets: Dataset, tmp_path: Path) -> None:
    draw = draw_shots(pets, 2, 3)
    assert read_coop_draw(draw_file(record, tmp_path, draw, home="C:\\data"), pets).train == draw.train
    assert read_coop_draw(draw_file(record, tmp_path, draw, home="."), pets).train == draw.train
    short = [record(f"/elsewhere/{item.key.split('/')[1]}", item.label, NAMES[item.label]) for item in draw.train]  # type: ignore[call-arg]
    assert read_coop_draw(draw_file(record, tmp_path, draw, train=short), pets).train == draw.train
    nested = Dataset("pets", NAMES, "a {}.", [Item("pug.jpg", 2), Item("more/pug.jpg", 2)], [], [], read=lambda key: pytest.fail(key))
    both = [record(f"/x/{key}", 2, "pug") for key in ("more/pug.jpg", "less/pug.jpg")]  # type: ignore[call-arg]
    found = read_coop_draw(draw_file(record, tmp_path, draw, train=both, val=[]), nested)
    assert [item.key for item in found.train] == ["more/pug.jpg", "pug.jpg"]


def test_the_name_tells_shots_and_seed_or_the_caller_does(record: type, pets: Dataset, tmp_path: Path) -> None:
    draw = draw_shots(pets, 2, 3)
    path = draw_file(record, tmp_path, draw).rename(tmp_path / "mine.pkl")
    assert read_coop_draw(path, pets, shots=2, seed=3) == draw
    with pytest.raises(UsageError, match="mine.pkl is not like shot_16-seed_1.pkl, so pass shots= and seed="):
        read_coop_draw(path, pets)
    with pytest.raises(UsageError, match="has 2 training images of class 'Abyssinian cat', not 1"):
        read_coop_draw(path, pets, shots=1, seed=3)


class Runs:
    """Pickled as a call of `function`."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return self.call


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("name", ["os.system", "builtins.eval", "builtins.getattr", "shutil.rmtree", "mmrl.data.records.Item"])
def test_what_a_pickle_asks_for_is_refused_and_not_run(pets: Dataset, tmp_path: Path, name: str, protocol: int) -> None:
    module, _, function = name.rpartition(".")
    target = getattr(__import__(module, fromlist=[function]), function)
    touched = tmp_path / "touched"
    argument = f"touch {touched}" if name == "os.system" else f"open({str(touched)!r}, 'w')"
    path = tmp_path / "shot_2-seed_3.pkl"
    path.write_bytes(pickle.dumps({"train": [Runs(target, argument)]}, protocol))
    said = {"os": os.name, "builtins": "builtins|__builtin__"}.get(module, module).replace("posix", "posix|nt|os")
    with pytest.raises(UsageError, match=rf"refers to ({said})\.{function}, which no few-shot draw needs; it was not run"):
        read_coop_draw(path, pets)
    assert not touched.exists()


def test_a_pickle_cannot_change_the_reader(record: type, pets: Dataset, tmp_path: Path) -> None:
    module, name = given_draws.RECORD
    path = tmp_path / "shot_2-seed_3.pkl"
    path.write_bytes(f"c{module}\n{name}\n(N(V__setstate__\nVx\ndtb.".encode())  # sets an attribute of the class that it is given
    with pytest.raises(UsageError, match="it contains a Name, not the lists"):
        read_coop_draw(path, pets)
    assert read_coop_draw(draw_file(record, tmp_path, draw_shots(pets, 2, 3)), pets) == draw_shots(pets, 2, 3)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is damaged, or is not a pickle"),
        (b"no pickle", "is damaged, or is not a pickle"),
        (pickle.dumps({"train": ["x"] * 9})[:-5], "is damaged, or is not a pickle"),
        (b"\x80\x02]r\xff\xff\xff\x7f.", "it contains a list, not the lists"),  # no memo of that size is made
        (b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\x0f.", "is damaged, or is not a pickle"),
        (b"\x80\x02Pelsewhere\n.", "it contains a Reference, not the lists"),
        (pickle.dumps([1, 2]), "it contains a list, not the lists 'train' and 'val'"),
        (pickle.dumps({"train": [], "other": []}), "not the lists 'train' and 'val'"),
        (pickle.dumps({"train": "x"}), "its 'train' is a str, not a list"),
        (pickle.dumps({"train": [1]}), "'train' has an entry that is not an image"),
        (pickle.dumps({"train": []}), "has 0 training images"),
    ],
)
def test_damaged_files_and_other_pickles_are_refused(pets: Dataset, tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "shot_2-seed_3.pkl"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=message):
        read_coop_draw(path, pets)


def test_large_and_missing_files_are_refused(pets: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "shot_2-seed_3.pkl"
    with pytest.raises(UsageError, match="few-shot draw .* does not exist"):
        read_coop_draw(path, pets)
    monkeypatch.setattr(given_draws, "LARGEST", 2**20)
    path.write_bytes(b"x" * (2**20 + 1))
    with pytest.raises(UsageError, match="has 1,048,577 bytes; at most 1,048,576 are read"):
        read_coop_draw(path, pets)


@pytest.mark.parametrize(
    ("place", "label", "name", "message"),
    [
        (
            "x/train/Aby_9.jpg",
            0,
            "Abyssinian cat",
            "'x/train/Aby_9.jpg' is not a train image of 'pets' here. The draw was made from another split",
        ),
        ("x/test/Aby_0.jpg", 0, "beagle", "of class 'beagle'|is no train image"),
        ("x/train/Aby_0.jpg", 1, "Abyssinian_cat", "label 1. there, but of 'Abyssinian cat' .label 0."),
        ("x/train/Aby_0.jpg", 0, "pug", "is of class 'pug' .label 0. there, but of 'Abyssinian cat'"),
        (5, 0, "pug", "an entry that is not an image with path, label and class name"),
        ("x/train/Aby_0.jpg", "0", "pug", "an entry that is not an image with path, label and class name"),
    ],
)
def test_images_of_another_set_are_refused(
    record: Any, pets: Dataset, tmp_path: Path, place: Any, label: Any, name: str, message: str
) -> None:
    path = draw_file(record, tmp_path, draw_shots(pets, 2, 3), train=[record(place, label, name)])
    with pytest.raises(UsageError, match=message):
        read_coop_draw(path, pets)


def test_an_image_twice_is_refused(record: Any, pets: Dataset, tmp_path: Path) -> None:
    twice = [record(f"{HOME}/train/pug_0.jpg", 2, "pug")] * 2
    with pytest.raises(UsageError, match="has an image twice in 'train'"):
        read_coop_draw(draw_file(record, tmp_path, draw_shots(pets, 2, 3), train=twice), pets)
