"""Few-shot draws: equal to the CoOp family's, hashed, saved, refused where they cannot be made."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mmrl.data.draws import Draw, draw_shots
from mmrl.data.records import Dataset, Item, class_ids
from mmrl.errors import MmrlError, UsageError

GOLDEN = Path(__file__).parents[1] / "golden"
PICKS = json.loads((GOLDEN / "few_shot_picks.json").read_text())


@pytest.fixture(scope="module")
def golden() -> Dataset:
    """The made-up split; class 3 has 10 training images, the others 25."""
    split = json.loads((GOLDEN / "few_shot_split.json").read_text())
    names = dict(sorted({label: name for part in split.values() for _, label, name in part}.items()))
    parts = {part: [Item(key, label) for key, label, _ in rows] for part, rows in split.items()}
    return Dataset(
        "golden", tuple(names.values()), "a photo of a {}.", parts["train"], parts["val"], parts["test"], read=lambda key: pytest.fail(key)
    )


@pytest.mark.parametrize("case", sorted(PICKS))
def test_draws_equal_the_familys(golden: Dataset, case: str) -> None:
    seed, shots, which = case.split("_")
    draw = draw_shots(golden, int(shots[5:]), int(seed[4:]), which.replace("new", "novel"), allow_fewer=True)
    assert [[item.key, item.label] for item in draw.train] == PICKS[case]["train"]
    assert [[item.key, item.label] for item in draw.val] == PICKS[case]["val"]


@pytest.mark.parametrize("which", ["base", "novel"])
def test_a_restricted_set_is_drawn_from_its_whole(golden: Dataset, which: str) -> None:
    part = golden.restrict(which)
    assert draw_shots(part, 4, 2) == draw_shots(golden, 4, 2, which)
    assert set(draw_shots(part, 4, 2).train) <= set(part.train)
    with pytest.raises(UsageError, match="already restricted"):
        draw_shots(part, 4, 2, "base")


def test_more_shots_than_images_names_the_class(golden: Dataset) -> None:
    with pytest.raises(UsageError, match=r"shots is 16, but class 'class 03' of 'golden' has 10"):
        draw_shots(golden, 16, 1)
    assert len(draw_shots(golden, 16, 1, "novel").train) == 3 * 16  # the small class is a base class


def test_no_shots_means_everything(golden: Dataset) -> None:
    draw = draw_shots(golden, 0, 1)
    assert draw.train == golden.train and draw.val == golden.val and draw.shots == 0
    assert draw_shots(golden, 0, 1, "base").train == golden.restrict("base").train
    with pytest.raises(UsageError, match="shots is -1; use 1 or more"):
        draw_shots(golden, -1, 1)


def test_hash_tells_draws_apart_and_survives_a_file(golden: Dataset, tmp_path: Path) -> None:
    draws = [draw_shots(golden, shots, seed) for shots in (1, 2) for seed in (0, 1)]
    assert len({draw.hash for draw in draws}) == 4
    draws[0].save(tmp_path / "draw.json")
    assert Draw.load(tmp_path / "draw.json") == draws[0]
    assert draw_shots(golden, 1, 0).hash == draws[0].hash


def test_an_edited_or_damaged_draw_is_refused(golden: Dataset, tmp_path: Path) -> None:
    path = tmp_path / "draw.json"
    content = draw_shots(golden, 2, 1).to_json()
    content["train"][0][1] += 1
    path.write_text(json.dumps(content))
    with pytest.raises(MmrlError, match="was edited"):
        Draw.load(path)
    del content["val"]
    path.write_text(json.dumps(content))
    with pytest.raises(MmrlError, match="is damaged"):
        Draw.load(path)
    path.write_text('{"train": [')
    with pytest.raises(UsageError, match="not valid JSON, or was cut short"):
        Draw.load(path)
    with pytest.raises(UsageError, match="does not exist"):
        Draw.load(tmp_path / "none.json")


def test_halves_partition_the_classes(golden: Dataset) -> None:
    for n in (1, 2, 7, 20):
        assert class_ids(n, "base") + class_ids(n, "novel") == class_ids(n, "all") == list(range(n))
        assert len(class_ids(n, "base")) - len(class_ids(n, "novel")) == n % 2
    base, novel = golden.restrict("base"), golden.restrict("novel")
    assert base.classes + novel.classes == golden.classes and golden.restrict("all") is golden
    assert len(base.test) + len(novel.test) == len(golden.test)
    assert {item.label for item in novel.test} == {0, 1, 2}
    truth = {item.key: golden.classes[item.label] for item in golden.test}
    assert all(novel.classes[item.label] == truth[item.key] for item in novel.test)
    with pytest.raises(UsageError, match="unknown classes 'new'"):
        golden.restrict("new")
    with pytest.raises(UsageError, match="already has only 4 of the 7"):
        base.restrict("base")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"template": "a photo"}, "exactly one {}"),
        ({"template": "{} {}"}, "exactly one {}"),
        ({"classes": ()}, "data set 'pets' is empty"),
        ({"classes": ("cat", " ")}, "number 2 of 2 in data set 'pets' is blank"),
        ({"classes": ("cat", "cat ")}, "class name 'cat' stands twice in data set 'pets'"),
        ({"test": [Item("x.png", 2)]}, r"'x.png' of 'pets' has label 2; labels go from 0 to 1"),
    ],
)
def test_bad_sets_are_refused(change: dict, message: str) -> None:
    whole = {"name": "pets", "classes": ("cat", "dog"), "template": "a {}.", "train": [], "val": [], "test": [], "read": lambda key: None}
    with pytest.raises(UsageError, match=message):
        Dataset(**{**whole, **change})
