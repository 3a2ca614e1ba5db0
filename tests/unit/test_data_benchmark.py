"""The 15 data sets on miniature trees: both layouts, names and labels, what is refused, sets from outside."""

from __future__ import annotations

import csv
import json
import os
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mmrl.data import Dataset, Entry, catalogue, dataset_info, draw_shots, load_dataset, register_benchmark
from mmrl.data.benchmark import imagenet, published
from mmrl.data.benchmark.entries import ENTRIES
from mmrl.data.benchmark.readers import class_folders
from mmrl.data.records import Item
from mmrl.data.splits import family_sizes
from mmrl.errors import UsageError
from tests.trees import NAMES, WNIDS, facts_of_tree, make_tree

VARIANTS = [name for name, entry in ENTRIES.items() if entry.same_classes_as]
PUBLISHED = [name for name, entry in ENTRIES.items() if entry.split]


def loaded(name: str, root: Path, *, raw: bool = False, per_class: int = 10) -> Dataset:
    make_tree(name, root, raw=raw, per_class=per_class)
    return load_dataset(name, root=root)


def truth(name: str, root: Path) -> dict[str, str]:
    """Class name by key, as the split file of the same tree has it."""
    make_tree(name, root)
    content = json.loads((ENTRIES[name].split_of(root) or root).read_text())
    return {key: written.replace("_", " ") for rows in content.values() for key, _, written in rows}


def test_every_set_of_the_tree_has_an_entry_and_a_description() -> None:
    assert tuple(ENTRIES) == NAMES
    for name, entry in ENTRIES.items():
        info = dataset_info(name)
        assert (info.n_classes, info.train, info.val, info.test) == (entry.classes, entry.train, entry.val, entry.test)
        assert info.needs_root and not info.classes and entry.source and entry.licence
    assert {ENTRIES[name].same_classes_as for name in VARIANTS} == {"imagenet"} and len(VARIANTS) == 4


@pytest.mark.parametrize("raw", [False, True], ids=["split", "raw"])
@pytest.mark.parametrize("name", NAMES)
def test_every_layout_is_read(tmp_path: Path, name: str, raw: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = loaded(name, tmp_path, raw=raw)
    entry = ENTRIES[name]
    assert (dataset.name, dataset.template, dataset.flip) == (name, entry.template, True)
    assert dataset.own_split == (name in PUBLISHED) == dataset.restrict("base").own_split  # a tree's file has the name, not the content
    if name in PUBLISHED and not raw:
        facts = facts_of_tree(name, tmp_path)
        monkeypatch.setattr(published, "all_facts", lambda: {name: facts})
        assert not load_dataset(name, root=tmp_path).own_split
    parts = (dataset.train, dataset.val, dataset.test)
    everything = [item for part in parts for item in part]
    assert len({item.key for item in everything}) == len(everything)
    assert all(dataset.image(item).size == (32, 32) for item in everything)
    assert {item.label for item in dataset.test} == set(range(len(dataset.classes)))
    if name in VARIANTS:
        assert not dataset.train and not dataset.val
    elif name == "imagenet":
        assert [len(part) for part in parts] == [50, 0, 15]
    else:
        held_out = 5 if raw and name in ("oxford_pets", "stanford_cars", "sun397", "ucf101") else 10  # a fifth of 7, or of 10
        assert [len(part) for part in parts] == [50 - 15 - held_out, held_out, 15]
    if not dataset.train:
        return
    assert {item.label for item in draw_shots(dataset, 3, 1, "base").train} == {0, 1, 2}
    assert {item.label for item in draw_shots(dataset, 3, 1, "novel").train} == {0, 1}


@pytest.mark.parametrize("name", PUBLISHED)
def test_raw_classes_and_labels_are_those_of_the_split_file(tmp_path: Path, name: str) -> None:
    names = truth(name, tmp_path / "split")
    listed, raw = load_dataset(name, root=tmp_path / "split"), loaded(name, tmp_path / "raw", raw=True)
    assert raw.classes == listed.classes
    for dataset in (raw, listed):
        for item in (*dataset.train, *dataset.val, *dataset.test):
            assert dataset.classes[item.label] == names[item.key]
    assert raw.fingerprint != listed.fingerprint


@pytest.mark.parametrize("name", ["oxford_pets", "stanford_cars", "sun397", "ucf101", "fgvc_aircraft"])
def test_the_authors_test_list_is_kept(tmp_path: Path, name: str) -> None:
    raw = loaded(name, tmp_path / "raw", raw=True)
    expected = truth(name, tmp_path / "split") if name in PUBLISHED else None
    if expected is None:
        lines = (tmp_path / "raw/fgvc_aircraft/images_variant_test.txt").read_text().splitlines()
        assert {item.key for item in raw.test} == {line.split()[0] + ".jpg" for line in lines}
    else:
        assert {item.key for item in raw.test} == {item.key for item in load_dataset(name, root=tmp_path / "split").test}


@pytest.mark.parametrize(
    ("name", "classes"),
    [
        ("caltech101", ("face", "leopard", "motorbike", "accordion", "airplane")),
        ("oxford_pets", ("abyssinian", "american bulldog", "american pit bull terrier", "basset hound", "beagle")),
        ("stanford_cars", ("2000 AM General Hummer SUV", "2012 Acura RL Sedan", "2012 Acura TL Sedan", "2008 Acura TL Type-S",
                           "2012 Aston Martin V8 Vantage Convertible")),
        ("sun397", ("abbey", "airplane cabin", "indoor apse", "exterior balcony", "interior balcony")),
        ("eurosat", ("Annual Crop Land", "Forest", "Herbaceous Vegetation Land", "Highway or Road", "Industrial Buildings")),
        ("ucf101", ("Apply Eye Makeup", "Apply Lipstick", "Archery", "Handstand Pushups", "Tai Chi")),
        ("imagenet", ("tench", "goldfish", "great white shark", "tiger shark", "hammerhead shark")),
        ("imagenet_a", ("tench", "great white shark", "hammerhead shark")),
    ],
)  # fmt: skip
def test_names_are_the_familys(tmp_path: Path, name: str, classes: tuple[str, ...]) -> None:
    assert loaded(name, tmp_path, raw=True).classes == classes


def test_raw_splits_have_the_published_counts() -> None:
    for name, n, classes in (("dtd", 120, 47), ("food101", 1000, 101)):
        train, val = family_sizes(n)
        assert (classes * train, classes * val, classes * (n - train - val)) == (ENTRIES[name].train, ENTRIES[name].val, ENTRIES[name].test)
    sizes = [(family_sizes(n), n) for n in range(1, 60)]
    assert all(train >= 1 and val >= 0 and train + val < max(n, 2) for (train, val), n in sizes)


def test_table_7_is_what_the_entries_say() -> None:
    table = Path(__file__).parents[2] / "src/mmrl/reports/paper/table7_datasets.csv"
    with table.open(encoding="utf-8", newline="") as file:
        rows = {row["dataset"]: row for row in csv.DictReader(file)}
    assert [entry.title for entry in ENTRIES.values()] == list(rows)
    for entry in ENTRIES.values():
        row = rows[entry.title]
        assert row["prompt"].replace("[CLASS]", "{}") == entry.template
        for field in ("classes", "train", "val", "test"):
            count = getattr(entry, field)
            short = f"{count / 1e6:.2f}M" if count and count > 10**6 else str(count or "~")
            assert row[field].replace(",", "") == short, (entry.name, field)


def test_a_raw_split_is_the_same_on_every_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = loaded("dtd", tmp_path, raw=True)
    listed = os.walk

    def shuffled(*given: object, **options: object):  # type: ignore[no-untyped-def]
        for path, folders, files in listed(*given, **options):  # type: ignore[call-overload]
            random.Random(path).shuffle(files)
            yield path, folders, files

    monkeypatch.setattr(os, "walk", shuffled)
    random.seed(7)
    assert load_dataset("dtd", root=tmp_path).fingerprint == one.fingerprint


def test_variants_are_labelled_by_the_classes_that_are_there(tmp_path: Path) -> None:
    dataset = loaded("imagenet_r", tmp_path)
    assert dataset.test[-1] == Item("n01494475/art_2.jpg", 2)
    folder = ENTRIES["imagenet_r"].images_of(tmp_path)
    (folder / ".DS_Store").write_bytes(b"x")
    (folder / ".hidden").mkdir()
    assert load_dataset("imagenet_r", root=tmp_path).fingerprint == dataset.fingerprint
    (folder / "n99999999").mkdir()
    with pytest.raises(UsageError, match=r"1 of 4 class folders of ImageNet-R have no name in .*classnames.txt, such as 'n99999999'"):
        load_dataset("imagenet_r", root=tmp_path)


def test_imagenetv2_folders_are_positions(tmp_path: Path) -> None:
    folder = make_tree("imagenetv2", tmp_path, classes=3)
    lines = (folder / "classnames.txt").read_text().splitlines()
    (folder / "classnames.txt").write_text("\n".join(reversed(lines)))  # sorted by the reader
    images = ENTRIES["imagenetv2"].images_of(tmp_path)
    (images / "1").rename(images / "7")
    dataset = load_dataset("imagenetv2", root=tmp_path)
    assert dataset.classes == ("tench", "great white shark", "rooster") and dataset.test[-1].key.startswith("7/")


def test_a_class_name_that_stands_twice_is_numbered(tmp_path: Path) -> None:
    folder = make_tree("imagenet_sketch", tmp_path)
    names = dict.fromkeys(WNIDS, "missile") | {"n01440764": "a", "n01443537": "b", "n01484850": "c", "n01496331": "d", "n01498041": "e"}
    names["n01514668"] = "f"
    (folder / "classnames.txt").write_text("".join(f"{wnid} {name}\n" for wnid, name in names.items()))
    assert load_dataset("imagenet_sketch", root=tmp_path).classes == ("a", "b", "c", "missile", "missile (2)")
    (folder / "classnames.txt").write_text("".join(f"{wnid} missile\n" for wnid in names))
    assert load_dataset("imagenet_sketch", root=tmp_path).classes == ("missile", *(f"missile ({number})" for number in range(2, 6)))


def test_large_listings_are_kept_outside_the_data_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, cache = tmp_path / "data", tmp_path / "cache"
    make_tree("imagenet", root)
    before = sorted(root.rglob("*"))
    first = load_dataset("imagenet", root=root, cache=cache)
    assert sorted(root.rglob("*")) == before and len(list(cache.iterdir())) == 2

    listed = []
    monkeypatch.setattr(imagenet, "_is_image", lambda name, real=imagenet._is_image: listed.append(name.split("_")[0]) or real(name))
    assert load_dataset("imagenet", root=root, cache=cache).fingerprint == first.fingerprint and not listed
    changed = ENTRIES["imagenet"].images_of(root) / "train" / "n01443537"
    (changed / "n01443537_1.JPEG").write_bytes(next(changed.iterdir()).read_bytes())
    os.utime(changed, ns=(1, 1))
    assert len(load_dataset("imagenet", root=root, cache=cache).train) == 51 and set(listed) == {"n01443537"}
    for file in cache.iterdir():
        file.write_text(file.read_text()[:50])
    assert len(load_dataset("imagenet", root=root, cache=cache).train) == 51


def test_the_data_root_comes_from_the_call_or_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_tree("dtd", tmp_path)
    monkeypatch.setenv("DATA", str(tmp_path))
    assert load_dataset("dtd").classes == load_dataset("dtd", root=str(tmp_path)).classes
    monkeypatch.delenv("DATA")
    with pytest.raises(UsageError, match=r"data set 'dtd' is read .* none was given. Pass it with --root .*environment variable DATA"):
        load_dataset("dtd")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=r"For the folder 'dtd' here, write \./dtd\."):
        load_dataset("dtd")
    with pytest.raises(UsageError, match="data root .*none does not exist"):
        load_dataset("dtd", root=tmp_path / "none")


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"'eurosat' is not in .*: there is no folder .*eurosat\. `mmrl data check eurosat`"):
        load_dataset("eurosat", root=tmp_path)
    folder = make_tree("oxford_flowers", tmp_path, raw=True)
    (folder / "imagelabels.mat").unlink()
    with pytest.raises(
        UsageError, match=r"is incomplete: missing .*imagelabels.mat \(with .*OxfordFlowers.json, only the images are needed\)"
    ):
        load_dataset("oxford_flowers", root=tmp_path)
    images = ENTRIES["dtd"].images_of(tmp_path)
    make_tree("dtd", tmp_path)
    images.rename(images.with_name("pictures"))
    with pytest.raises(UsageError, match="is incomplete: missing .*dtd/images. `mmrl data check dtd`"):
        load_dataset("dtd", root=tmp_path)


@pytest.mark.parametrize("place", ["eurosat", "eurosat/2750", "eurosat/2750/Forest"])
def test_folders_without_permission_are_named(tmp_path: Path, place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    make_tree("eurosat", tmp_path, raw=True)
    locked = tmp_path / place

    def refusing(real: Callable[..., Any], refused: Callable[[Path], bool]) -> Callable[..., Any]:
        def call(path: Any = ".", *given: Any, **options: Any) -> Any:
            if not isinstance(path, int) and refused(Path(path)):
                raise PermissionError(13, os.strerror(13), str(path))
            return real(path, *given, **options)

        return call

    for name in ("scandir", "listdir"):  # tests may run as root, whom no permission stops
        monkeypatch.setattr(os, name, refusing(getattr(os, name), lambda path: path == locked))
    monkeypatch.setattr(os, "stat", refusing(os.stat, lambda path: locked in path.parents))
    with pytest.raises(UsageError, match="Check its permissions") as caught:
        load_dataset("eurosat", root=tmp_path)
    assert str(locked) in str(caught.value)


def test_links_in_a_circle_are_no_folder(tmp_path: Path) -> None:
    folder = make_tree("dtd", tmp_path)
    (folder / "images").rename(folder / "elsewhere")
    (folder / "images").symlink_to(folder / "images")
    with pytest.raises(UsageError, match="is incomplete: missing .*dtd/images"):
        load_dataset("dtd", root=tmp_path)


def test_a_missing_image_is_named_when_it_is_read(tmp_path: Path) -> None:
    dataset = loaded("dtd", tmp_path)
    (ENTRIES["dtd"].images_of(tmp_path) / dataset.train[0].key).unlink()
    with pytest.raises(UsageError, match=f"{dataset.train[0].key} does not exist"):
        load_dataset("dtd", root=tmp_path).image(dataset.train[0])


def test_names_in_class_folders_must_be_utf8(tmp_path: Path) -> None:
    images = make_tree("imagenet_r", tmp_path) / "imagenet-r/n01440764"
    next(images.iterdir()).rename(images / os.fsdecode(b"\xe9.jpg"))
    with pytest.raises(UsageError, match=r"an image in .*n01440764 is not UTF-8: '\\xe9\.jpg'\. Rename it"):
        load_dataset("imagenet_r", root=tmp_path, cache=tmp_path / "cache")


def test_links_below_the_root_are_followed(tmp_path: Path) -> None:
    make_tree("dtd", tmp_path / "disk")
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "dtd").symlink_to(tmp_path / "disk" / "dtd")
    dataset = load_dataset("dtd", root=tmp_path / "root")
    assert dataset.image(dataset.test[0]).size == (32, 32)


@pytest.mark.parametrize(
    ("name", "file", "text", "message"),
    [
        ("oxford_pets", "annotations/trainval.txt", "Abyssinian_100 1", "the line 'Abyssinian_100 1' is not as the authors publish it"),
        ("fgvc_aircraft", "images_variant_test.txt", "../../x 707-320", r"test\[0\]: path '../../x.jpg' must stay inside"),
        ("oxford_pets", "annotations/trainval.txt", "Abyssinian_1 2 1 1", "which has no training image"),
        ("fgvc_aircraft", "images_variant_val.txt", "1025794 Concorde", "'1025794 Concorde' is not as .*KeyError"),
        ("sun397", "Training_01.txt", "/a/nowhere/sun_a.jpg", "'/a/nowhere/sun_a.jpg' is not as"),
        ("ucf101", "ucfTrainTestlist/classInd.txt", "one ApplyEyeMakeup", "'one ApplyEyeMakeup' is not as"),
        ("oxford_flowers", "cat_to_name.json", '{"1": "pink primrose"}', "must name every class of .*imagelabels.mat"),
        ("oxford_flowers", "cat_to_name.json", '{"1": "pink', "not valid JSON, or was cut short"),
        ("oxford_flowers", "imagelabels.mat", "text", "cannot be read as a MATLAB file"),
        ("stanford_cars", "devkit/cars_meta.mat", "", "cannot be read as a MATLAB file"),
        ("imagenet", "classnames.txt", "n01440764", "It needs lines like 'n01440764 tench'"),
    ],
)
def test_damaged_files_of_the_authors_are_named(tmp_path: Path, name: str, file: str, text: str, message: str) -> None:
    folder = make_tree(name, tmp_path, raw=True)
    (folder / file).write_text(text)
    with pytest.raises(UsageError, match=message) as caught:
        load_dataset(name, root=tmp_path)
    assert str(folder) in str(caught.value)


def test_a_set_from_outside_is_one_entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalogue, "_REGISTRY", dict(catalogue._REGISTRY))
    entry = Entry(
        name="birds", title="Birds", folder="birds-2", images="photos", summary="two birds", source="us, 2026", classes=2,
        raw=class_folders(leave_out=["nests"], rename={"blue_tit": "Blue tit"}),
    )  # fmt: skip
    register_benchmark(entry)
    photos = entry.images_of(tmp_path)
    photos.parent.mkdir()
    (make_tree("dtd", tmp_path, classes=3) / "images").rename(photos)
    for old, new in (("banded", "blue_tit"), ("blotchy", "wood_pigeon"), ("braided", "nests")):
        (photos / old).rename(photos / new)
    dataset = load_dataset("birds", root=tmp_path)
    assert dataset.classes == ("Blue tit", "wood pigeon")
    assert Counter(item.label for item in dataset.train) == {0: 5, 1: 5} and len(dataset.test) == 6


def test_fingerprints_tell_sets_apart(tmp_path: Path) -> None:
    dataset = loaded("dtd", tmp_path)
    again = load_dataset("dtd", root=tmp_path)
    assert dataset.fingerprint == again.fingerprint == again.restrict("novel").fingerprint and len(dataset.fingerprint) == 16
    assert dataset.fingerprint != Dataset(**{**_fields(dataset), "template": "a {}."}).fingerprint
    moved = {"train": dataset.train[:-1], "val": [*dataset.val, dataset.train[-1]]}
    assert dataset.fingerprint != Dataset(**{**_fields(dataset), **moved}).fingerprint


def _fields(dataset: Dataset) -> dict:
    return {name: getattr(dataset, name) for name in ("name", "classes", "template", "train", "val", "test", "read")}
