"""Miniature trees of the 15 benchmark datasets: real folder, file and class names and real file formats, few and tiny images."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.io import savemat

from mmrl.data.benchmark.published import Facts

WNIDS = {
    "n01440764": "tench", "n01443537": "goldfish", "n01484850": "great white shark", "n01491361": "tiger shark",
    "n01494475": "hammerhead shark", "n01496331": "electric ray", "n01498041": "stingray", "n01514668": "rooster",
}  # fmt: skip
SPLIT_FILES = {
    "caltech101": "split_zhou_Caltech101.json",
    "oxford_pets": "split_zhou_OxfordPets.json",
    "stanford_cars": "split_zhou_StanfordCars.json",
    "oxford_flowers": "split_zhou_OxfordFlowers.json",
    "food101": "split_zhou_Food101.json",
    "sun397": "split_zhou_SUN397.json",
    "dtd": "split_zhou_DescribableTextures.json",
    "eurosat": "split_zhou_EuroSAT.json",
    "ucf101": "split_zhou_UCF101.json",
}


@dataclass
class Tree:
    """One dataset being written: `photo` makes images and notes their place in the split."""

    folder: Path
    raw: bool  # the authors' own files; otherwise a split JSON
    per_class: int
    classes: int
    keys_below: str = ""  # where the split's keys start, relative to `folder`
    split: dict[str, list[tuple[str, int, str]]] = field(default_factory=lambda: {"train": [], "val": [], "test": []})

    @property
    def tested(self) -> int:
        return max(1, round(self.per_class * 0.3))

    def image(self, path: str, label: int, number: int) -> None:
        """A 32 x 32 JPEG whose hue tells the class, brightness and noise the image."""
        shades = np.random.default_rng([label, number]).integers(0, 60, (32, 32, 3))
        shades[:16, :, label % 3] += 120 + 5 * (number % 12)
        shades[:, 16:, (label // 3) % 3] += 70
        place = self.folder / path
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(shades.astype(np.uint8)).save(place, format="JPEG", quality=80)

    def class_images(self, label: int, name: str, path: Callable[[int], str]) -> dict[str, list[str]]:
        """Images number 1 to `per_class` at `path(number)`, 20 % of them in val and 30 % in test. Returns the paths by split."""
        out: dict[str, list[str]] = {"train": [], "val": [], "test": []}
        validated = round(self.per_class * 0.2)
        for number in range(1, self.per_class + 1):
            held_out = "val" if number <= self.tested + validated else "train"
            split = "test" if number <= self.tested else held_out
            self.image(path(number), label, number)
            out[split].append(path(number))
            self.split[split].append((path(number).removeprefix(self.keys_below), label, name))
        return out

    def text(self, path: str, lines: Iterable[str]) -> None:
        place = self.folder / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def imagenet(tree: Tree) -> None:
    tree.text("classnames.txt", (f"{wnid} {name}" for wnid, name in WNIDS.items()))
    for label, wnid in enumerate(list(WNIDS)[: tree.classes]):
        for number in range(tree.per_class):
            tree.image(f"images/train/{wnid}/{wnid}_{10026 + number}.JPEG", label, number)
        for number in range(tree.tested):
            tree.image(f"images/val/{wnid}/ILSVRC2012_val_{293 + 100 * number + label:08}.JPEG", label, 100 + number)


def caltech101(tree: Tree) -> None:
    names = {"Faces": "face", "Leopards": "leopard", "Motorbikes": "motorbike", "accordion": "accordion", "airplanes": "airplane",
             "anchor": "anchor", "ant": "ant", "barrel": "barrel"}  # fmt: skip
    tree.keys_below = "101_ObjectCategories/"
    for label, folder in enumerate(list(names)[: tree.classes]):
        tree.class_images(label, names[folder], lambda n, folder=folder: f"101_ObjectCategories/{folder}/image_{n:04}.jpg")
    for number in range(3):
        tree.image(f"101_ObjectCategories/BACKGROUND_Google/image_{number + 1:04}.jpg", 7, number)
        tree.image(f"101_ObjectCategories/Faces_easy/image_{number + 1:04}.jpg", 8, number)


def oxford_pets(tree: Tree) -> None:
    names = ["Abyssinian", "american_bulldog", "american_pit_bull_terrier", "basset_hound", "beagle", "Bengal", "Birman", "Bombay"]
    lists: dict[str, list[str]] = {"trainval": [], "test": []}
    tree.keys_below = "images/"
    for label, breed in enumerate(names[: tree.classes]):
        kind = f"{1 if breed[0].isupper() else 2} {label + 1}"
        made = tree.class_images(label, breed.lower(), lambda n, breed=breed: f"images/{breed}_{n}.jpg")
        for split, paths in made.items():
            lists["test" if split == "test" else "trainval"] += [f"{Path(path).stem} {label + 1} {kind}" for path in paths]
    (tree.folder / "images/Abyssinian_100.mat").write_bytes(b"MATLAB 5.0 MAT-file")  # the authors' archive holds some, too
    if tree.raw:
        tree.text("annotations/list.txt", ["#Image CLASS-ID SPECIES BREED ID", *lists["trainval"], *lists["test"]])
        for name, lines in lists.items():
            tree.text(f"annotations/{name}.txt", lines)


def stanford_cars(tree: Tree) -> None:
    names = ["AM General Hummer SUV 2000", "Acura RL Sedan 2012", "Acura TL Sedan 2012", "Acura TL Type-S 2008",
             "Aston Martin V8 Vantage Convertible 2012", "Audi R8 Coupe 2012", "BMW X6 SUV 2012",
             "smart fortwo Convertible 2012"]  # fmt: skip
    annotations: dict[str, list[tuple[object, ...]]] = {"train": [], "test": []}
    for label, name in enumerate(names[: tree.classes]):
        *words, year = name.split()
        new_name = " ".join([year, *words])
        made = tree.class_images(
            label, new_name, lambda n, label=label: f"cars_{'test' if n <= tree.tested else 'train'}/{label * tree.per_class + n:05}.jpg"
        )
        for split, paths in made.items():
            box = tuple(np.uint16(value) for value in (1, 2, 30, 31))
            rows = [(*box, np.uint8(label + 1), Path(path).name) for path in paths]
            annotations["test" if split == "test" else "train"] += rows
    if tree.raw:
        fields = [(name, object) for name in ("bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2", "class", "fname")]
        (tree.folder / "devkit").mkdir()
        for place, rows in (("devkit/cars_train_annos.mat", annotations["train"]), ("cars_test_annos_withlabels.mat", annotations["test"])):
            savemat(tree.folder / place, {"annotations": np.array([rows], dtype=fields)})
        cells = np.empty((1, tree.classes), dtype=object)
        cells[0, :] = names[: tree.classes]
        savemat(tree.folder / "devkit/cars_meta.mat", {"class_names": cells})


def oxford_flowers(tree: Tree) -> None:
    names = ["pink primrose", "hard-leaved pocket orchid", "canterbury bells", "sweet pea", "english marigold", "tiger lily",
             "moon orchid", "bird of paradise"]  # fmt: skip
    tree.keys_below = "jpg/"
    labels = np.zeros(tree.classes * tree.per_class, np.uint8)
    for label, name in enumerate(names[: tree.classes]):
        numbers = range(label + 1, len(labels) + 1, tree.classes)  # classes take turns, so the labels matter
        tree.class_images(label, name, lambda n, numbers=numbers: f"jpg/image_{numbers[n - 1]:05}.jpg")
        labels[label :: tree.classes] = label + 1
    if tree.raw:
        savemat(tree.folder / "imagelabels.mat", {"labels": labels[None]})
        known = {str(label + 1): name for label, name in enumerate(names[: tree.classes])}
        (tree.folder / "cat_to_name.json").write_text(json.dumps(dict(sorted(known.items(), reverse=True))))


def food101(tree: Tree) -> None:
    names = ["apple_pie", "baby_back_ribs", "baklava", "beef_carpaccio", "beef_tartare", "beet_salad", "beignets", "bibimbap"]
    tree.keys_below = "images/"
    meta: dict[str, dict[str, list[str]]] = {"train": {}, "test": {}}
    for label, name in enumerate(names[: tree.classes]):
        made = tree.class_images(label, name, lambda n, name=name, label=label: f"images/{name}/{1005649 + 1000 * label + n}.jpg")
        short = {split: [path.removeprefix("images/").removesuffix(".jpg") for path in paths] for split, paths in made.items()}
        meta["train"][name], meta["test"][name] = short["train"] + short["val"], short["test"]
    if tree.raw:
        tree.text("meta/classes.txt", names[: tree.classes])
        for split, content in meta.items():
            tree.text(f"meta/{split}.txt", (key for keys in content.values() for key in keys))
            (tree.folder / f"meta/{split}.json").write_text(json.dumps(content))


def fgvc_aircraft(tree: Tree) -> None:
    names = ["707-320", "737-200", "A300B4", "Challenger 600", "F-16A/B", "Spitfire", "Tu-134", "Yak-42"]
    lists: dict[str, list[str]] = {"train": [], "val": [], "test": []}
    for label, name in enumerate(names[: tree.classes]):
        made = tree.class_images(label, name, lambda n, label=label: f"images/{1025794 - 1000 * label + n:07}.jpg")
        for split, paths in made.items():
            lists[split] += [f"{Path(path).stem} {name}" for path in paths]
    tree.text("variants.txt", names[: tree.classes])
    for split, lines in lists.items():
        tree.text(f"images_variant_{split}.txt", sorted(lines))


def sun397(tree: Tree) -> None:
    folders = ["a/abbey", "a/airplane_cabin", "a/apse/indoor", "b/balcony/exterior", "b/balcony/interior", "c/control_tower/outdoor",
               "c/coast", "y/youth_hostel"]  # fmt: skip
    tree.keys_below = "SUN397/"
    lists: dict[str, list[str]] = {"Training_01": [], "Testing_01": []}
    for label, folder in enumerate(folders[: tree.classes]):
        name = " ".join(reversed(folder.split("/")[1:]))
        code = "".join(chr(97 + label * 3 % 26) for _ in range(12))
        made = tree.class_images(label, name, lambda n, folder=folder, code=code: f"SUN397/{folder}/sun_{code}{n:04}.jpg")
        for split, paths in made.items():
            lists["Testing_01" if split == "test" else "Training_01"] += [path.removeprefix("SUN397") for path in paths]
    if tree.raw:
        tree.text("ClassName.txt", (f"/{folder}" for folder in folders[: tree.classes]))
        for name, lines in lists.items():
            tree.text(f"{name}.txt", lines)


def dtd(tree: Tree) -> None:
    names = ["banded", "blotchy", "braided", "bubbly", "bumpy", "chequered", "cobwebbed", "zigzagged"]
    tree.keys_below = "images/"
    for label, name in enumerate(names[: tree.classes]):
        tree.class_images(label, name, lambda n, name=name: f"images/{name}/{name}_{n + 1:04}.jpg")


def eurosat(tree: Tree) -> None:
    names = {"AnnualCrop": "Annual Crop Land", "Forest": "Forest", "HerbaceousVegetation": "Herbaceous Vegetation Land",
             "Highway": "Highway or Road", "Industrial": "Industrial Buildings", "Pasture": "Pasture Land",
             "PermanentCrop": "Permanent Crop Land", "River": "River"}  # fmt: skip
    tree.keys_below = "2750/"
    for label, folder in enumerate(list(names)[: tree.classes]):
        tree.class_images(label, names[folder], lambda n, folder=folder: f"2750/{folder}/{folder}_{n}.jpg")


def ucf101(tree: Tree) -> None:
    actions = ["ApplyEyeMakeup", "ApplyLipstick", "Archery", "HandstandPushups", "TaiChi", "TennisSwing", "UnevenBars", "YoYo"]
    tree.keys_below = "UCF-101-midframes/"
    lists: dict[str, list[str]] = {"trainlist01": [], "testlist01": []}
    for label, action in enumerate(actions[: tree.classes]):
        name = "_".join(re.findall("[A-Z][a-z]*", action))
        video = f"v_{action.replace('Handstand', 'HandStand')}"  # the authors spell this one in two ways
        made = tree.class_images(label, name, lambda n, name=name, video=video: f"UCF-101-midframes/{name}/{video}_g{n:02}_c01.jpg")
        videos = {split: [f"{action}/{Path(path).stem}.avi" for path in paths] for split, paths in made.items()}
        lists["trainlist01"] += [f"{each} {label + 1}" for each in videos["train"] + videos["val"]]
        lists["testlist01"] += videos["test"]
    if tree.raw:
        tree.text("ucfTrainTestlist/classInd.txt", (f"{label + 1} {action}" for label, action in enumerate(actions[: tree.classes])))
        for name, lines in lists.items():
            tree.text(f"ucfTrainTestlist/{name}.txt", lines)


def _shifted(tree: Tree, images: str, file: str, *, numbered: bool = False, every: int = 1) -> None:
    """A variant of ImageNet: `every` second (third, ...) of its classes, in folders of wnids, or numbered as in ImageNet."""
    tree.text("classnames.txt", (f"{wnid} {name}" for wnid, name in WNIDS.items()))
    for label, wnid in list(enumerate(WNIDS))[: tree.classes : every]:
        for number in range(tree.tested):
            tree.image(f"{images}/{label if numbered else wnid}/{file.format(number)}", label, 200 + number)
    if every > 1:
        tree.text(f"{images}/README.txt", ["Some of the classes of ImageNet."])


LAYOUTS: dict[str, tuple[str, Callable[[Tree], None]]] = {
    "imagenet": ("imagenet", imagenet),
    "caltech101": ("caltech-101", caltech101),
    "oxford_pets": ("oxford_pets", oxford_pets),
    "stanford_cars": ("stanford_cars", stanford_cars),
    "oxford_flowers": ("oxford_flowers", oxford_flowers),
    "food101": ("food-101", food101),
    "fgvc_aircraft": ("fgvc_aircraft", fgvc_aircraft),
    "sun397": ("sun397", sun397),
    "dtd": ("dtd", dtd),
    "eurosat": ("eurosat", eurosat),
    "ucf101": ("ucf101", ucf101),
    "imagenetv2": ("imagenetv2", lambda tree: _shifted(tree, "imagenetv2-matched-frequency-format-val", "{:040x}.jpeg", numbered=True)),
    "imagenet_sketch": ("imagenet-sketch", lambda tree: _shifted(tree, "images", "sketch_{}.JPEG")),
    "imagenet_a": ("imagenet-adversarial", lambda tree: _shifted(tree, "imagenet-a", "0.00{}_fox squirrel _ monarch_0.86.jpg", every=2)),
    "imagenet_r": ("imagenet-rendition", lambda tree: _shifted(tree, "imagenet-r", "art_{}.jpg", every=2)),
}
NAMES = tuple(LAYOUTS)


def make_tree(name: str, root: Path, *, raw: bool = False, per_class: int = 10, classes: int = 5) -> Path:
    """Write the dataset `name` below the data root `root`, as its authors publish it (`raw`) or with the split JSON.

    Of each class's `per_class` images 30 % test and 20 % validate; raw layouts whose authors draw no validation set have
    them in their training list. ImageNet has `per_class` training images; it and its variants have 30 % as many to test.
    FGVC-Aircraft, ImageNet and its variants have no split JSON and are the same either way.

    Args:
        classes: 2 to 8.

    Returns:
        The dataset's folder.
    """
    folder, write = LAYOUTS[name]
    tree = Tree(root / folder, raw, per_class, classes)
    tree.folder.mkdir(parents=True)
    write(tree)
    if not raw and name in SPLIT_FILES:
        for items in tree.split.values():
            random.Random(0).shuffle(items)
        (tree.folder / SPLIT_FILES[name]).write_text(json.dumps(tree.split))
    return tree.folder


def make_trees(root: Path, *, raw: bool = False, per_class: int = 10, classes: int = 5) -> Path:
    """All 15 datasets below `root`, which is returned."""
    for name in NAMES:
        make_tree(name, root, raw=raw, per_class=per_class, classes=classes)
    return root


def facts_of_tree(name: str, root: Path) -> Facts:
    """What would be known of the tree's split file if it were the published one: its counts, and every fifth entry of two lists."""
    content = json.loads((root / LAYOUTS[name][0] / SPLIT_FILES[name]).read_text())
    counts = {"classes": len({label for rows in content.values() for _, label, _ in rows})}
    counts |= {part: len(rows) for part, rows in content.items()}
    train, val = (tuple((at, *row) for at, row in enumerate(content[part]) if at % 5 == 0) for part in ("train", "val"))
    return Facts("a tree of the tests", counts, train, val)
