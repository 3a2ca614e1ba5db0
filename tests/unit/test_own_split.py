"""A split is the published one only where its content is: the file's name says nothing. Tests of results carry what was found."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mmrl.data import draw_shots, load_dataset
from mmrl.data.benchmark import published
from mmrl.data.benchmark.entries import ENTRIES
from mmrl.data.benchmark.published import Facts, Split, all_facts, facts_of, known_split, lists_hash, split_of
from mmrl.data.records import Contents, Item
from mmrl.data.splits import PARTS
from mmrl.engine import Bench, Context
from tests.trees import SPLIT_FILES, facts_of_tree, make_tree
from tests.unit.colours import smallest_clip
from tests.unit.grids import compute, contents, jobs_of, planned

Rows = dict[str, list[list[Any]]]
EVEN = {name: [ENTRIES[name].train // ENTRIES[name].classes] * ENTRIES[name].classes for name in ("dtd", "food101", "sun397")}
EVEN["eurosat"] = [1500, 1500, 1500, 1250, 1250, 1000, 1250, 1500, 1250, 1500]  # half of 3000, 2500 or 2000 images of a class


def known(facts: Facts, part: str) -> list[list[Any]]:
    return [list(row) for row in getattr(facts, part)]


def full_split(name: str) -> Rows:
    """A split file with the counts and the known entries of the published one, and other entries made up, class after class."""
    facts, entry = all_facts()[name], ENTRIES[name]
    names = {label: f"class {label}" for label in range(entry.classes)}
    names |= {label: written for part in ("train", "val") for _, _, label, written in known(facts, part)}
    split: Rows = {}
    for part in PARTS:
        labels = [at * entry.classes // facts.counts[part] for at in range(facts.counts[part])]
        if name == "eurosat" and part != "test":
            labels = [label for label, size in enumerate(EVEN[name]) for _ in range(size if part == "train" else size * 2 // 5)]
        split[part] = [[f"made up/{part}-{at}.jpg", label, names[label]] for at, label in enumerate(labels)]
        for at, key, label, written in known(facts, part) if part != "test" else ():
            split[part][at] = [key, label, written]
    return split


def write(name: str, root: Path, split: Rows) -> None:
    entry = ENTRIES[name]
    for folder in entry.image_folders_of(root):
        folder.mkdir(parents=True, exist_ok=True)
    path = entry.split_of(root)
    assert path is not None
    path.write_text(json.dumps(split))


def test_facts_are_of_the_published_files_and_agree_with_table_7() -> None:
    assert set(all_facts()) == set(SPLIT_FILES) == {name for name, entry in ENTRIES.items() if entry.split}
    for name, facts in all_facts().items():
        entry = ENTRIES[name]
        assert facts.counts == {what: getattr(entry, what) for what in ("classes", *PARTS)}
        assert facts.source == f"linzhiqiu/cross_modal_adaptation: indices/{name}/shot_1-seed_1.json"
        for part in ("train", "val"):
            rows = known(facts, part)
            places = [at for at, *_ in rows]
            assert len(rows) == 8 and places == sorted(set(places)) and places[-1] < facts.counts[part]
            assert len({key for _, key, _, _ in rows}) == 8 and all(key.endswith(".jpg") for _, key, _, _ in rows)
            assert all(0 <= label < entry.classes for _, _, label, _ in rows)


@pytest.mark.parametrize("name", EVEN)
def test_known_entries_are_those_that_coops_protocol_draws(name: str, tmp_path: Path) -> None:
    """They were drawn with seed 1, one of a class, from lists whose classes have known sizes; the same draw here must meet them."""
    write(name, tmp_path, full_split(name))
    dataset = load_dataset(name, root=tmp_path)
    draw = draw_shots(dataset, 1, 1)
    for part in ("train", "val"):
        drawn = {item.label: item.key for item in getattr(draw, part)}
        assert all(drawn[label] == key for _, key, label, _ in known(all_facts()[name], part))


def swap(part: str) -> Callable[[Rows, Facts], None]:
    def change(split: Rows, facts: Facts) -> None:
        (one, *_), (other, *_) = known(facts, part)[:2]
        rows = split[part]
        rows[one], rows[other] = rows[other], rows[one]

    return change


def renamed(split: Rows, facts: Facts) -> None:
    _, _, label, _ = known(facts, "train")[0]
    for rows in split.values():
        for row in rows:
            row[2] = "something else" if row[1] == label else row[2]


def relabelled(split: Rows, facts: Facts) -> None:
    """The same images and names, the first class numbered as the second and the other way round."""
    for rows in split.values():
        for row in rows:
            row[1] = {0: 1, 1: 0}.get(row[1], row[1])


CHANGES: dict[str, Callable[[Rows, Facts], Any]] = {
    "two training entries swapped": swap("train"),
    "two validation entries swapped": swap("val"),
    "one test image less": lambda split, facts: split["test"].pop(),
    "one training image more": lambda split, facts: split["train"].append(["made up/more.jpg", *split["train"][-1][1:]]),
    "a class renamed": renamed,
    "two classes with each other's labels": relabelled,
}


@pytest.mark.parametrize("name", SPLIT_FILES)
def test_the_known_content_is_published(name: str, tmp_path: Path) -> None:
    write(name, tmp_path, full_split(name))
    dataset = load_dataset(name, root=tmp_path)
    assert not dataset.own_split and known_split(name, dataset)
    assert str(split_of(name, ENTRIES[name].split, True, dataset)) == f"published (lists' hash {lists_hash(dataset)})"


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("name", ["dtd", "oxford_flowers"])
def test_other_content_is_not(name: str, change: str, tmp_path: Path) -> None:
    split, facts = full_split(name), all_facts()[name]
    CHANGES[change](split, facts)
    write(name, tmp_path, split)
    dataset = load_dataset(name, root=tmp_path)
    assert dataset.own_split and dataset.restrict("base").own_split and not known_split(name, dataset)
    found = split_of(name, ENTRIES[name].split, True, dataset)
    assert found.kind == "other" and found.differences


def test_what_differs_is_told(tmp_path: Path) -> None:
    split = full_split("dtd")
    (one, *_), (other, *_) = known(all_facts()["dtd"], "train")[:2]
    split["train"][one][0] = "banded/banded_0001.jpg"
    write("dtd", tmp_path, split)
    dataset = load_dataset("dtd", root=tmp_path)
    text = str(split_of("dtd", "split_zhou_DescribableTextures.json", True, dataset))
    assert text == (
        f"split_zhou_DescribableTextures.json is not the published one (lists' hash {lists_hash(dataset)}; 1 known entry or count differs, "
        "the first: train[8] is 'banded/banded_0001.jpg' (label 0, 'banded'), not 'banded/banded_0117.jpg' (label 0, 'banded')): "
        "results do not compare with the paper's"
    )
    del split["train"][other:], split["test"][-1]
    split["train"] += [[f"made up/{label}.jpg", label, row[2]] for label, row in {row[1]: row for row in split["test"]}.items()]
    write("dtd", tmp_path, split)
    found = split_of("dtd", "x.json", True, load_dataset("dtd", root=tmp_path))
    assert found.differences[:2] == [f"{other + 47:,} training images, not 2,820", "1,691 test images, not 1,692"]
    assert "train[1253] is nothing, not 'knitted/knitted_0096.jpg' (label 20, 'knitted')" in found.differences


def test_the_hash_is_of_the_three_lists_in_order() -> None:
    items = [Item("a.jpg", 0), Item("b.jpg", 1)]
    base = Contents(("x", "y"), items, [], items)
    assert len(lists_hash(base)) == 16 and int(lists_hash(base), 16) >= 0
    others = [
        Contents(("x", "y"), items[::-1], [], items), Contents(("x", "y"), items, items, []), Contents(("x", "z"), items, [], items),
        Contents(("x", "y"), items, items[:1], items[1:]), Contents(("x", "y"), [Item("a.jpg", 1), Item("b.jpg", 1)], [], items),
    ]  # fmt: skip
    assert len({lists_hash(each) for each in (base, *others)}) == 1 + len(others)
    assert lists_hash(Contents(("x", "y"), list(items), [], list(items))) == lists_hash(base)


def test_sets_without_a_published_split() -> None:
    contents = Contents(("x",), [Item("a.jpg", 0)], [], [Item("b.jpg", 0)])
    hashed = lists_hash(contents)
    assert facts_of("fgvc_aircraft") is None and not known_split("fgvc_aircraft", contents)
    assert split_of("fgvc_aircraft", None, False, contents) == Split("as given", None, hashed)
    assert str(split_of("birds", "birds.json", True, contents)) == f"as birds.json says (lists' hash {hashed})"
    drawn = split_of("birds", "birds.json", False, contents)
    assert str(drawn) == f"drawn here, as there is no birds.json (lists' hash {hashed}): results do not compare with the paper's"


@pytest.mark.parametrize("kind", ["published", "other", "raw"])
def test_a_test_says_whether_the_split_is_the_published_one(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_tree("dtd", tmp_path / "data", raw=kind == "raw", per_class=4, classes=2)
    if kind == "published":
        facts = facts_of_tree("dtd", tmp_path / "data")
        monkeypatch.setattr(published, "all_facts", lambda: {"dtd": facts})
    context = Context(Bench("smallest", root=tmp_path / "data"), smallest_clip())
    cells = planned(Path("dtd"), methods=("zero-shot",))
    compute(jobs_of(context, cells), context, tmp_path / "results")
    own = kind != "published"
    (run,) = contents(tmp_path / "results", "runs").values()
    assert [test["own_split"] for test in run["tests"]] == [own, own]  # base and novel
