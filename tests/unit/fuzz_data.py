"""Readers of data sets, draws, images and prompts, each as a function of a generator that damages a file and has it read."""

from __future__ import annotations

import json
import os
import pickle
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from random import Random
from types import ModuleType
from typing import Any

import numpy as np
from PIL import Image

from mmrl.clip import Clip, load_clip
from mmrl.data import Dataset, Draw, draw_shots, given_draws, load_dataset, read_draw, to_rgb
from mmrl.data.benchmark import imagenet
from mmrl.data.benchmark.entries import ENTRIES
from mmrl.data.benchmark.entry import read_benchmark
from mmrl.data.folder import tested_on
from mmrl.data.images import as_published
from mmrl.data.mini.sets import MINI_SETS, SPLITS
from mmrl.data.mini.store import Store
from mmrl.names import check_names, name_key
from mmrl.templates import fill
from tests.trees import make_tree
from tests.unit.colours import read
from tests.unit.fuzzing import LETTERS, damaged, damaged_json, damaged_pickle, gadget, json_bytes

Once = Callable[[Random], object]
KEYS = [f"{name}/{number}.png" for name in ("ant", "red_fox", "Zebra") for number in range(4)]
COLOUR = {"ant": "red", "red_fox": "green", "Zebra": "blue"}


def photos(folder: Path) -> Path:
    """Three classes of four pictures."""
    for key in KEYS:
        (folder / key).parent.mkdir(parents=True, exist_ok=True)
        read(f"{COLOUR[key.split('/')[0]]}/{key.split('/')[1][0]}").save(folder / key)
    return folder


def check_dataset(dataset: Dataset) -> Dataset:
    """That it is one: a training can be drawn from it, and what its files are asked for lies below their folder."""
    check_names(dataset.classes)
    assert dataset.train or dataset.test
    for item in (*dataset.train, *dataset.val, *dataset.test):
        assert 0 <= item.label < len(dataset.classes)
        assert not item.key.startswith("/") and ".." not in item.key.split("/") and item.key.encode(), item
    assert len(dataset.fingerprint) == 16
    for part in ("all", "base"):
        draw = draw_shots(dataset, 1, 1, part, allow_fewer=True)
        assert Draw.from_json(json.loads(json.dumps(draw.to_json()))) == draw
    return dataset


def listed(ending: str) -> Callable[[Path], Once]:
    """CSV, JSONL and split files."""

    def make(folder: Path) -> Once:
        photos(folder)
        splits = ("train", "train", "val", "test") * 3
        rows = [{"path": key, "label": key.split("/")[0], "split": split} for key, split in zip(KEYS, splits)]
        parts: dict[str, list[Any]] = {"train": [], "val": [], "test": []}
        for i, row in enumerate(rows):
            parts[row["split"]].append([row["path"], i // 4, row["label"]])
        path = folder / f"list{ending}"

        def once(random: Random) -> object:
            if ending == ".json":
                content = damaged_json(random, parts)
            elif ending == ".csv":
                header = random.choice(("path,label,split", "path,label", "label,path,split,more"))
                lines = [",".join(row.get(name, "x") for name in header.split(",")) for row in rows]
                content = damaged(random, "\r\n".join([header, *lines]).encode())
            else:
                written = [json_bytes(row) for row in rows]
                written[random.randrange(12)] = damaged_json(random, rows[0])
                content = damaged(random, b"\n".join(written)) if random.random() < 0.4 else b"\n".join(written)
            path.write_bytes(content)
            dataset = check_dataset(load_dataset(path, images=folder if random.random() < 0.3 else None))
            return dataset.image(dataset.train[0])

        return once

    return make


ODD_NAMES = (
    *(b"a b", b"a_b", b"A_B", b"train", b"TRAIN", b"val", b"test", b"valid", b"caf\xe9", b"caf\xc3\xa9", b"\xed\xa0\x80"),
    *(b"x" * 255, b"...", b".hidden", b"-", b"--help", b"\n", b" ", b"_", b"\x01", b"\xe2\x80\xae", b"{}", b"%s", b"~", b"*"),
    *(b"$HOME", b"(2)", b"a (2)", b"\\", b"a\\b", b"C:", b"nul", b"1.jpg", b"list.csv", b"\xf0\x9f\xa6\x8a" * 60, b"<end_of_text>"),
    *(b"dataset_dict.json", b"[red]"),
)


def odd_folders(folder: Path) -> Once:
    """Folders of photos with names, links and kinds of files that nobody expects."""
    picture = BytesIO()
    read("red/1").save(picture, "PNG")
    count = [0]

    def entry(random: Random, place: bytes, depth: int) -> None:
        kind = random.random()
        if kind < 0.45 and depth < 3:
            os.makedirs(place, exist_ok=True)
            for _ in range(random.randrange(4)):
                add(random, place, depth + 1)
        elif kind < 0.85:
            with open(place + random.choice((b".png", b".JPG", b".txt", b"")), "xb") as file:  # not a pipe of that name
                file.write(picture.getvalue() if random.random() < 0.8 else b"")
        elif kind < 0.93:
            os.symlink(random.choice((b".", b"..", b"nowhere", os.path.basename(place), b"/dev/zero")), place)
        else:
            os.mkfifo(place + b".png")

    def add(random: Random, place: bytes, depth: int) -> None:
        name = random.choice(ODD_NAMES)[: random.choice((255, 250))]
        with suppress(OSError):  # there already, or too long
            entry(random, os.path.join(place, name), depth)

    def once(random: Random) -> object:
        count[0] += 1
        root = os.fsencode(folder / str(count[0]))
        os.makedirs(os.path.join(root, b"first"))
        with open(os.path.join(root, b"first", b"1.png"), "wb") as file:
            file.write(picture.getvalue())
        for _ in range(random.randrange(1, 7)):
            add(random, root, 1)
        place = Path(os.fsdecode(root if random.random() < 0.8 else os.path.join(root, random.choice(ODD_NAMES))))
        dataset = check_dataset(load_dataset(place, test_share=random.choice((None, 0.3))))
        if random.random() < 0.3:
            tested_on(dataset, place, place)
        return dataset.image(dataset.train[0])

    return once


def drawn(folder: Path) -> Once:
    """draw.json, as it is and with the hash that its content asks for."""
    whole = load_dataset(photos(folder))
    path, plain = folder / "draw.json", draw_shots(whole, 2, 1).to_json()

    def once(random: Random) -> object:
        plain["classes"] = random.choice(("all", "base", "novel"))
        content = damaged_json(random, plain)
        if random.random() < 0.6:
            with suppress(ValueError, TypeError, KeyError, RecursionError):
                written = json.loads(content)
                train, val = ([_Row(*row) for row in written[part]] for part in ("train", "val"))
                content = json.dumps({**written, "hash": Draw("", 0, 0, "", train, val).hash}).encode()  # type: ignore[arg-type]
        path.write_bytes(content)
        loaded = Draw.load(path)
        assert len(loaded.hash) == 64
        loaded.save(folder / "again.json")
        assert Draw.load(folder / "again.json") == loaded
        return check_draw(read_draw(path, whole, random.choice(("all", "base", "novel"))), whole)

    return once


class _Row:
    """An item with whatever stands in the file."""

    def __init__(self, key: Any, label: Any) -> None:
        self.key, self.label = key, label


def check_draw(draw: Draw, whole: Dataset) -> Draw:
    """That it is one of `whole`."""
    part = whole.restrict(draw.classes)
    assert set(draw.train) <= set(part.train) and set(draw.val) <= {*part.val, *part.train}
    assert draw.hash and isinstance(draw.shots, int) and isinstance(draw.seed, int)
    return draw


def coop_pickles(folder: Path) -> Once:
    """Draws and lists of the CoOp family."""
    whole = load_dataset(photos(folder))
    module, name = given_draws.RECORD
    parts = module.split(".")
    stand_ins = {".".join(parts[: i + 1]): ModuleType(".".join(parts[: i + 1])) for i in range(len(parts))}
    record = type(name, (), {"__module__": module, "__qualname__": name})
    setattr(stand_ins[module], name, record)
    sys.modules.update(stand_ins)
    try:
        contents = [_pickled(record, whole, protocol) for protocol in (2, 4)]
    finally:
        for each in stand_ins:
            del sys.modules[each]
    trap, path = gadget(folder / "sprung"), folder / "shot_4-seed_1.pkl"

    def once(random: Random) -> object:
        path.write_bytes(damaged_pickle(random, random.choice(contents), trap))
        if random.random() < 0.3:
            return check_dataset(given_draws.read_coop_lists(path, whole))
        return check_draw(read_draw(path, whole, random.choice(("all", "base", "novel"))), whole)

    return once


def _pickled(record: type, whole: Dataset, protocol: int) -> bytes:
    rows = []
    for item in whole.train:
        rows.append(record())
        vars(rows[-1]).update(_impath=f"/home/x/{item.key}", _label=item.label, _domain=0, _classname=whole.classes[item.label])
    return pickle.dumps({"train": rows, "val": []}, protocol)


RAW = "oxford_pets fgvc_aircraft sun397 ucf101 food101 imagenet imagenetv2 imagenet_a".split()
MATLAB = ("oxford_flowers", "stanford_cars")  # each file is read in a process of its own, which takes a second


def raw_layouts(names: Sequence[str], folder: Path) -> Once:
    """The authors' own lists of the data sets that have some, text and MATLAB files."""
    files = {}
    for name in names:
        make_tree(name, folder, raw=True, per_class=4, classes=3)
        files[name] = {path: path.read_bytes() for path in ENTRIES[name].needs_of(folder) if path.is_file()}

    def once(random: Random) -> object:
        name = random.choice([name for name in names if files[name]])
        path = random.choice(list(files[name]))
        try:
            path.write_bytes(damaged(random, files[name][path]))
            return check_benchmark(read_benchmark(ENTRIES[name], folder))
        finally:
            path.write_bytes(files[name][path])

    return once


def check_benchmark(dataset: Dataset) -> None:
    """A set of the 15; a variant of ImageNet has nothing to train on."""
    check_names(dataset.classes)
    assert dataset.test and len(dataset.fingerprint) == 16
    if dataset.train:
        check_dataset(dataset)


def pictures(folder: Path) -> Once:
    """The file that keeps the drawn pictures of a mini set."""
    mini = replace(MINI_SETS["mini:digits"], sizes=dict.fromkeys(SPLITS, (1,) * 10))
    key = mini.key("val", 3, 0)
    right = Store(mini, folder).pixels(key)
    path = Store(mini, folder).file("val")
    whole = path.read_bytes()

    def once(random: Random) -> object:
        path.write_bytes(damaged(random, whole))
        assert np.array_equal(Store(mini, folder).pixels(key), right)
        return None

    return once


def listings(folder: Path) -> Once:
    """The file that keeps the names of ImageNet's images."""
    names = ("n01440764", "n01443537")
    for name in names:
        (folder / "images" / name).mkdir(parents=True)
        for number in range(3):
            (folder / "images" / name / f"{number}.JPEG").touch()
    truth = imagenet.list_classes(folder / "images", list(names), folder / "cache")
    (path,) = (folder / "cache").iterdir()
    written = json.loads(path.read_text())

    def once(random: Random) -> object:
        path.write_bytes(damaged_json(random, written))
        assert imagenet.list_classes(folder / "images", list(names), folder / "cache") == truth
        return None

    return once


def _images(folder: Path) -> list[bytes]:
    picture = read("red/3").resize((40, 30))
    grey = Image.fromarray(np.arange(1200, dtype=np.uint16).reshape(30, 40) * 50)
    clear = picture.convert("RGBA")
    clear.putalpha(100)
    turned = Image.Exif()
    turned[0x0112], turned[0x010F] = 6, "maker"
    saved: list[tuple[Image.Image, str, dict[str, Any]]] = [
        (picture, "JPEG", {"exif": turned}), (picture, "JPEG", {"progressive": True}), (picture.convert("CMYK"), "JPEG", {}),
        (picture, "PNG", {"exif": turned}), (grey, "PNG", {}), (clear, "PNG", {}), (picture.convert("P"), "PNG", {"transparency": 0}),
        (picture.convert("P"), "GIF", {}), (picture, "BMP", {}), (picture.convert("P"), "BMP", {}), (picture, "PPM", {}), (grey, "PPM", {}),
        (picture, "TIFF", {}), (picture, "TIFF", {"compression": "tiff_lzw"}), (picture, "TIFF", {"compression": "jpeg"}),
        (grey, "TIFF", {"compression": "tiff_adobe_deflate"}), (picture.convert("1"), "TIFF", {"compression": "group4"}),
        (picture, "WEBP", {}), (clear, "WEBP", {"lossless": True, "exif": turned}), (picture, "ICO", {}), (picture, "TGA", {}),
        (picture.convert("F"), "TIFF", {}), (picture, "PCX", {}), (picture, "SGI", {}), (picture, "JPEG2000", {}), (picture, "AVIF", {}),
        (picture, "DDS", {}), (picture, "EPS", {}), (picture, "ICNS", {}), (picture, "MSP", {}), (picture, "PDF", {}), (picture, "IM", {}),
    ]  # fmt: skip
    out = []
    for image, kind, more in saved:
        file = BytesIO()
        try:
            image.save(file, kind, **more)
        except (KeyError, OSError, ValueError):  # this Pillow was built without it
            continue
        out.append(file.getvalue())
    return out


def images(folder: Path) -> Once:
    """Pictures of the usual kinds and the less usual ones, decoded in both ways."""
    contents, path = _images(folder), folder / "x.jpg"

    def once(random: Random) -> object:
        content = damaged(random, random.choice(contents))
        path.write_bytes(content)
        published = random.random() < 0.4
        image = as_published(path) if published else to_rgb(content if random.random() < 0.5 else path)
        assert image.mode == "RGB" and min(image.size) > 0
        assert np.asarray(image).dtype == np.uint8
        return image

    return once


def tiny() -> Clip:
    return load_clip("tiny", device="cpu")


def prompts(folder: Path) -> Once:
    """Class names and templates, filled and made tokens."""
    clip = tiny()
    words = (*("cat", "a photo of a {}.", "{}", "<end_of_text>", "<start_of_text>", "crane (2)", "&amp;", "n" * 70, "ab" * 3000), *LETTERS,
             "\udce9", "\ud800")  # fmt: skip

    def text(random: Random) -> str:
        times = (1, 1, 1, 1, 2, 40, random.choice((1, 1, 1, 1, 3000)))
        return "".join(random.choice(words) * random.choice(times) for _ in range(random.randrange(5)))

    def once(random: Random) -> object:
        names = check_names([text(random) for _ in range(random.randrange(4))])
        templates = [text(random) + random.choice(("{}", "{} ", "a {}.", "{}", "")) for _ in range(random.randrange(1, 3))]
        filled = fill(templates if random.random() < 0.5 else templates[0], names)
        assert len({name_key(name) for name in names}) == len(names)
        tokens, end = clip.tokenize(filled)
        assert tokens.shape == (len(filled), clip.context_length) and bool((end > 0).all()) and bool((end < clip.context_length).all())
        return tokens

    return once
