"""`mmrl data prepare`: archives as their authors pack them, made from miniature trees, become the layout that is read."""

from __future__ import annotations

import shutil
import tarfile
import zipfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import torchvision
from scipy.io import savemat
from typer.testing import CliRunner

from mmrl.cli.main import app
from mmrl.data.benchmark import prepare as prepare_module
from mmrl.data.benchmark.check import check_dataset
from mmrl.data.benchmark.entries import ENTRIES
from mmrl.data.benchmark.prepare import prepare_dataset
from mmrl.data.benchmark.sources import SOURCES
from mmrl.data.benchmark.unpack import unpack
from mmrl.errors import MmrlError, UsageError
from tests.trees import NAMES, SPLIT_FILES, WNIDS, make_tree

V2 = "imagenetv2-matched-frequency-format-val"
# archive -> {folder or file of the tree: its name in the archive}
PACKED: dict[str, dict[str, dict[str, str]]] = {
    "caltech101": {"101_ObjectCategories.tar.gz": {"101_ObjectCategories": "101_ObjectCategories"}},
    "oxford_pets": {"images.tar.gz": {"images": "images"}, "annotations.tar.gz": {"annotations": "annotations"}},
    "stanford_cars": {
        "cars_train.tgz": {"cars_train": "cars_train"},
        "cars_test.tgz": {"cars_test": "cars_test"},
        "car_devkit.tgz": {"devkit": "devkit"},
    },
    "oxford_flowers": {"102flowers.tgz": {"jpg": "jpg"}},
    "food101": {"food-101.tar.gz": {"images": "food-101/images", "meta": "food-101/meta"}},
    "fgvc_aircraft": {
        "fgvc-aircraft-2013b.tar.gz": {
            name: f"fgvc-aircraft-2013b/data/{name}"
            for name in ("images", "variants.txt", "images_variant_train.txt", "images_variant_val.txt", "images_variant_test.txt")
        }
    },
    "sun397": {
        "SUN397.tar.gz": {"SUN397": "SUN397"},
        "Partitions.zip": {name: name for name in ("ClassName.txt", "Training_01.txt", "Testing_01.txt")},
    },
    "dtd": {"dtd-r1.0.1.tar.gz": {"images": "dtd/images"}},
    "eurosat": {"EuroSAT.zip": {"2750": "2750"}},
    "ucf101": {
        "UCF-101-midframes.zip": {"UCF-101-midframes": "UCF-101-midframes"},
        "UCF101TrainTestSplits-RecognitionTask.zip": {"ucfTrainTestlist": "ucfTrainTestlist"},
    },
    "imagenetv2": {"imagenetv2-matched-frequency.tar.gz": {V2: V2}},
    "imagenet_sketch": {"ImageNet-Sketch.zip": {"images": "sketch"}},
    "imagenet_a": {"imagenet-a.tar": {"imagenet-a": "imagenet-a"}},
    "imagenet_r": {"imagenet-r.tar": {"imagenet-r": "imagenet-r"}},
}


def pack(archive: Path, members: Iterable[tuple[Path, str]]) -> None:
    archive.parent.mkdir(parents=True, exist_ok=True)
    if archive.suffix == ".zip":
        with zipfile.ZipFile(archive, "w") as file:
            for path, name in members:
                for each in [path] if path.is_file() else sorted(path.rglob("*")):
                    file.write(each, name if path.is_file() else f"{name}/{each.relative_to(path).as_posix()}")
    else:
        with tarfile.open(archive, "w:gz" if archive.suffix in (".gz", ".tgz") else "w") as tar:
            for path, name in members:
                tar.add(path, name)


def downloads(name: str, tree: Path, into: Path) -> Path:
    """What a user who downloaded data set `name` would have in the folder `into`, from the tree of a whole one."""
    into.mkdir(parents=True, exist_ok=True)
    for archive, places in PACKED[name].items():
        pack(into / archive, [(tree / place, inside) for place, inside in places.items()])
    for file in ("imagelabels.mat", "cat_to_name.json", "cars_test_annos_withlabels.mat", "classnames.txt", SPLIT_FILES.get(name, "-")):
        if (tree / file).is_file():
            shutil.copy(tree / file, into / file)
    return into


def imagenet_downloads(tree: Path, into: Path) -> Path:
    """ILSVRC2012's archives: one of archives to train, a flat one to validate, and the kit with the classes of the flat one."""
    for folder in (tree / "images/train").iterdir():
        pack(into / f"inner/{folder.name}.tar", [(image, image.name) for image in sorted(folder.iterdir())])
    pack(into / "ILSVRC2012_img_train.tar", [(inner, inner.name) for inner in sorted((into / "inner").iterdir())])
    shutil.rmtree(into / "inner")
    images = sorted((tree / "images/val").rglob("*.JPEG"), key=lambda path: path.name)
    numbered = [(image, f"ILSVRC2012_val_{number:08}.JPEG") for number, image in enumerate(images, 1)]
    pack(into / "ILSVRC2012_img_val.tar", numbered)
    ids = {wnid: number for number, wnid in enumerate(reversed(WNIDS), 1)}  # not in the order of the WordNet ids
    write_kit(into, ids, [ids[image.parent.name] for image in images])
    shutil.copy(tree / "classnames.txt", into / "classnames.txt")
    return into


def write_kit(into: Path, ids: dict[str, int], truth: list[int]) -> None:
    fields = [(name, object) for name in ("ILSVRC2012_ID", "WNID", "words", "gloss")]
    rows = np.array([(number, wnid, "words", "gloss") for wnid, number in ids.items()], dtype=fields)
    savemat(into / "meta.mat", {"synsets": rows[:, None]})
    (into / "truth.txt").write_text("".join(f"{number}\n" for number in truth))
    kit = [("meta.mat", "meta.mat"), ("truth.txt", "ILSVRC2012_validation_ground_truth.txt")]
    pack(into / "ILSVRC2012_devkit_t12.tar.gz", [(into / name, f"ILSVRC2012_devkit_t12/data/{inside}") for name, inside in kit])


def files_below(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize(("name", "raw"), [*((name, True) for name in PACKED), *((name, False) for name in SPLIT_FILES)])
def test_archives_become_the_layout(name: str, raw: bool, tmp_path: Path):
    tree = make_tree(name, tmp_path / "whole", raw=True, per_class=4, classes=2)
    if not raw:
        split_tree = make_tree(name, tmp_path / "split", per_class=4, classes=2)
        shutil.copy(split_tree / SPLIT_FILES[name], tree)
    given = downloads(name, tree, tmp_path / "downloads")
    root = tmp_path / "data"
    root.mkdir()
    report = prepare_dataset(ENTRIES[name], root, source=given)
    assert report.ready, report
    assert files_below(root) == files_below(tmp_path / "whole")
    assert not [path for path in (root / tree.name).iterdir() if path.name.startswith(".")]


def test_imagenet_from_its_archives(tmp_path: Path):
    tree = make_tree("imagenet", tmp_path / "whole", per_class=4, classes=3)
    given = imagenet_downloads(tree, tmp_path / "downloads")
    root = tmp_path / "data"
    root.mkdir()
    kit = given / "ILSVRC2012_devkit_t12.tar.gz"
    kit.rename(tmp_path / "kit")
    lines: list[str] = []
    assert not prepare_dataset(ENTRIES["imagenet"], root, source=given, say=lines.append).ready
    assert any("ILSVRC2012_devkit_t12.tar.gz" in line for line in lines)
    (tmp_path / "kit").rename(kit)
    flat = root / "imagenet/images/val"
    flat.mkdir()
    (flat / "ILSVRC2012_val_00000293.JPEG").touch()
    assert "Move val/ away" in prepare_dataset(ENTRIES["imagenet"], root, source=given).problems[0]
    flat.rename(tmp_path / "flat")
    assert prepare_dataset(ENTRIES["imagenet"], root, source=given).ready
    made, whole = files_below(root / "imagenet"), files_below(tree)
    assert {name: data for name, data in made.items() if "/val/" not in name} == {
        name: whole[name] for name in whole if "/val/" not in name
    }
    images, wanted = (sorted((name.split("/")[2], data) for name, data in files.items() if "/val/" in name) for files in (made, whole))
    assert images == wanted  # each in its class; the numbers of the archive are others


@pytest.mark.parametrize(
    ("ids", "truth", "message"),
    [
        ({"../../evil": 1, "n01440764": 2}, [1, 2], "no WordNet id"),
        ({"n01440764": 1, "n01443537": 2}, [1, 3], "not the development kit"),
        ({"n01440764": 1, "n01443537": 2}, [2], "knows the classes of 1 images"),
    ],
)
def test_kits_that_do_not_fit(ids: dict[str, int], truth: list[int], message: str, tmp_path: Path):
    given = tmp_path / "downloads"
    images = sorted(make_tree("imagenet", tmp_path / "whole", per_class=4, classes=2).glob("images/val/*/*"))
    pack(given / "ILSVRC2012_img_val.tar", [(image, f"ILSVRC2012_val_{number:08}.JPEG") for number, image in enumerate(images, 1)])
    write_kit(given, ids, truth)
    root = tmp_path / "data"
    root.mkdir()
    with pytest.raises(MmrlError, match=message):
        prepare_dataset(ENTRIES["imagenet"], root, source=given)
    assert [path.name for path in root.rglob("*")] == ["imagenet"]


def test_classnames_come_from_imagenet(tmp_path: Path):
    make_tree("imagenet", tmp_path)
    given = downloads("imagenet_r", make_tree("imagenet_r", tmp_path / "whole"), tmp_path / "downloads")
    (given / "classnames.txt").unlink()
    assert prepare_dataset(ENTRIES["imagenet_r"], tmp_path, source=given).ready


@pytest.mark.parametrize(("name", "raw"), [("oxford_pets", True), ("stanford_cars", False), ("sun397", True), ("dtd", False)])
def test_what_is_missing_is_added_and_what_is_there_stays(name: str, raw: bool, tmp_path: Path):
    folder = make_tree(name, tmp_path, raw=raw, per_class=5, classes=2)
    given = tmp_path / "downloads"
    for archive, places in PACKED[name].items():
        pack(given / archive, [(folder / place, inside) for place, inside in places.items() if (folder / place).exists()])
    images = sorted(ENTRIES[name].image_folders_of(tmp_path)[0].rglob("*.jpg"))
    before = files_below(folder)
    images[0].unlink()
    images[1].write_bytes(images[2].read_bytes())
    changed = images[1].relative_to(folder).as_posix()
    report = check_dataset(ENTRIES[name], tmp_path)
    assert (report.state, report.missing) == ("partly", [str(images[0])])
    lines: list[str] = []
    assert prepare_dataset(ENTRIES[name], tmp_path, source=given, say=lines.append).ready
    assert files_below(folder) == before | {changed: images[2].read_bytes()}
    assert any("1 added" in line and "kept" in line for line in lines)


def test_lists_first_then_the_images_they_lack(tmp_path: Path):
    tree = make_tree("oxford_pets", tmp_path / "whole", raw=True)
    given = downloads("oxford_pets", tree, tmp_path / "downloads")
    root = tmp_path / "data"
    shutil.copytree(tree / "images", root / "oxford_pets/images")
    (root / "oxford_pets/images/beagle_1.jpg").unlink()
    assert prepare_dataset(ENTRIES["oxford_pets"], root, source=given).ready


def test_archives_in_the_data_sets_own_folder_and_one_in_another(tmp_path: Path):
    tree = make_tree("caltech101", tmp_path / "whole", raw=True, per_class=4, classes=2)
    root = tmp_path / "data"
    downloads("caltech101", tree, tmp_path / "inner")
    pack(root / "caltech-101/Caltech-101.zip", [(tmp_path / "inner", "caltech-101"), (tmp_path / "inner", "__MACOSX/caltech-101")])
    assert prepare_dataset(ENTRIES["caltech101"], root).ready
    assert not (root / "caltech-101/__MACOSX").exists()


def test_a_ready_one_is_left_alone(tmp_path: Path):
    make_tree("dtd", tmp_path)
    before = files_below(tmp_path)
    assert prepare_dataset(ENTRIES["dtd"], tmp_path, source=tmp_path).ready
    assert files_below(tmp_path) == before


def test_an_unpacked_folder_is_pointed_at(tmp_path: Path):
    given = make_tree("eurosat", tmp_path / "given", raw=True)
    lines: list[str] = []
    assert prepare_dataset(ENTRIES["eurosat"], tmp_path, source=given, say=lines.append).state == "absent"
    assert lines == [f"{given / '2750'} is unpacked already: move it, or link to it, at {tmp_path / 'eurosat/2750'}"]


def test_an_archive_cut_short(tmp_path: Path):
    given = downloads("food101", make_tree("food101", tmp_path / "whole", raw=True), tmp_path / "downloads")
    archive = given / "food-101.tar.gz"
    archive.write_bytes(archive.read_bytes()[:-2000])
    root = tmp_path / "data"
    root.mkdir()
    with pytest.raises(MmrlError, match="cannot be unpacked"):
        prepare_dataset(ENTRIES["food101"], root, source=given)
    assert not list((root / "food-101").iterdir())


@pytest.mark.parametrize("stop", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_stopped_in_the_middle_leaves_whole_parts_only(stop: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    given = downloads("stanford_cars", make_tree("stanford_cars", tmp_path / "whole", raw=True), tmp_path / "downloads")
    root = tmp_path / "data"
    root.mkdir()

    def stopping(archive: Path, into: Path) -> None:
        unpack(archive, into)
        if archive.name == "cars_test.tgz":
            raise stop

    with monkeypatch.context() as patched:
        patched.setattr(prepare_module, "unpack", stopping)
        with pytest.raises((KeyboardInterrupt, MmrlError)):
            prepare_dataset(ENTRIES["stanford_cars"], root, source=given)
    assert [path.name for path in (root / "stanford_cars").iterdir()] == ["cars_train"]
    (root / "stanford_cars/.prepare-killed").mkdir()  # what a run leaves that had no time to clear up
    report = prepare_dataset(ENTRIES["stanford_cars"], root, source=given)
    assert report.ready and any(".prepare-killed" in note for note in report.notes)


# torchvision's own layout: (folder of the tree, where torchvision has it)
IN_TORCHVISION = {
    "caltech101": [("101_ObjectCategories", "caltech101/101_ObjectCategories")],
    "oxford_pets": [("images", "oxford-iiit-pet/images"), ("annotations", "oxford-iiit-pet/annotations")],
    "oxford_flowers": [("jpg", "flowers-102/jpg"), ("imagelabels.mat", "flowers-102/imagelabels.mat")],
    "food101": [("images", "food-101/images"), ("meta", "food-101/meta")],
    "fgvc_aircraft": [(".", "fgvc-aircraft-2013b/data")],
    "sun397": [("SUN397", "SUN397"), ("ClassName.txt", "SUN397/ClassName.txt")],
    "dtd": [("images", "dtd/dtd/images")],
    "eurosat": [("2750", "eurosat/2750")],
}


@pytest.mark.parametrize("name", IN_TORCHVISION)
def test_download(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    assert SOURCES[name].torchvision is not None and hasattr(torchvision.datasets, SOURCES[name].torchvision)
    tree = make_tree(name, tmp_path / "whole", raw=True, per_class=4, classes=2)

    def fake(*, root: str, download: bool) -> None:
        assert download
        for place, inside in IN_TORCHVISION[name]:
            if (tree / place).is_dir():
                shutil.copytree(tree / place, Path(root) / inside)
            else:
                shutil.copy(tree / place, Path(root) / inside)

    monkeypatch.setattr(torchvision.datasets, SOURCES[name].torchvision, fake)
    root = tmp_path / "data"
    root.mkdir()
    report = prepare_dataset(ENTRIES[name], root, download=True)
    missing = {"oxford_flowers": ["cat_to_name.json"], "sun397": ["Training_01.txt", "Testing_01.txt"]}.get(name, [])
    assert report.missing == [str(root / tree.name / file) for file in missing]
    assert report.ready == (not missing)


def test_downloads_that_fail_or_cannot_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def failing(**_: object) -> None:
        raise RuntimeError("no route to host")

    monkeypatch.setattr(torchvision.datasets, "DTD", failing)
    with pytest.raises(MmrlError, match="DTD was not downloaded: no route to host"):
        prepare_dataset(ENTRIES["dtd"], tmp_path, download=True)
    assert not list((tmp_path / "dtd").iterdir())
    with pytest.raises(UsageError, match="'stanford_cars' cannot be downloaded from here; the address"):
        prepare_dataset(ENTRIES["stanford_cars"], tmp_path, download=True)
    assert set(SOURCES) == set(NAMES) and {name for name in NAMES if SOURCES[name].torchvision} == set(IN_TORCHVISION)


def test_on_the_command_line(tmp_path: Path):
    given = downloads("dtd", make_tree("dtd", tmp_path / "whole", raw=True), tmp_path / "downloads")

    def run(*words: str | Path) -> tuple[int, str]:
        result = CliRunner().invoke(app, ["data", "prepare", *map(str, words)])
        return (2, str(result.exception)) if isinstance(result.exception, UsageError) else (result.exit_code, result.stdout)

    code, text = run("dtd", "--root", tmp_path)
    assert code == 1 and "get dtd-r1.0.1.tar.gz" in text
    code, text = run("dtd", "--root", tmp_path, "--from", given)
    assert code == 0 and f"unpacking {given / 'dtd-r1.0.1.tar.gz'}" in text and text.endswith(f"dtd is ready in {tmp_path / 'dtd'}\n")
    assert run("dtd", "--root", tmp_path, "--from", tmp_path / "none")[0] == 2
    assert run("dt", "--root", tmp_path)[0] == 2
