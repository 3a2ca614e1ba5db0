"""Reading existing few-shot draws: `draw.json` of a run, or CoOp's pickles in `split_fewshot/`, as single files or in a folder.

Unpickling can run arbitrary code. The pickles are only parsed here (`mmrl.pickles`), and one that names anything but CoOp's record type is
rejected.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from itertools import takewhile
from pathlib import Path
from typing import Any

from mmrl.data.benchmark.entries import ENTRIES
from mmrl.data.draws import Draw, draw_shots, labels_drawn
from mmrl.data.records import Dataset, Item, Which, relabel
from mmrl.errors import UsageError
from mmrl.files import read_regular, user_path
from mmrl.names import name_key, spoken
from mmrl.pickles import Call, ForbiddenName, Name, read_notes

LISTS = "preprocessed.pkl"  # CoOp's lists of all images, in the order that its draws follow
FEW_SHOT = "split_fewshot"  # CoOp's folder of draws
RECORD = Name("dassl.data.datasets.base_dataset", "Datum")
LARGEST = 64 * 2**20  # bytes; the largest of CoOp's draws, ImageNet with 16 shots, has about 3 MB
MOST_LABELS = 2**31  # a pickle may have numbers of any length, and Python prints at most 4300 digits
LARGEST_LISTS = 2**30  # bytes of lists of all images; ImageNet's have about 200 MB


def read_draw(path: Path | str, dataset: Dataset, classes: Which | str) -> Draw:
    """The few-shot draw in a file: `draw.json` of a run, or one of CoOp's pickles (`.pkl`). A draw of all classes is cut to `classes`.

    Raises:
        UsageError: it is of another data set or of other classes, or has images that are not training (validation) images here.
        MmrlError: it is damaged.
    """
    path = user_path(path)
    if path.suffix == ".pkl":
        return read_coop_draw(path, dataset, classes=classes)
    return fitted(Draw.load(path), path, dataset, classes)


def fitted(draw: Draw, path: Path, dataset: Dataset, classes: Which | str) -> Draw:
    """`draw`, loaded from `path`, cut to `classes` of `dataset`. Raises UsageError as `read_draw`."""
    whole, part, ids = labels_drawn(dataset, classes)
    if draw.dataset != whole.name or draw.classes not in ("all", part):
        raise UsageError(f"{path} is a draw of '{draw.dataset}', {draw.classes} classes; this run needs '{whole.name}', {part} classes.")
    if draw.classes != part:
        draw = replace(draw, classes=part, train=relabel(draw.train, ids), val=relabel(draw.val, ids))
    here = whole.restrict(part)
    for items, known, what in ((draw.train, here.train, "training"), (draw.val, here.val, "validation")):
        strange = sorted(set(items) - set(known))
        if strange:
            raise UsageError(
                f"{path} has '{strange[0].key}' and {len(strange) - 1} more that are not {what} images of '{whole.name}' here."
            )
    return draw


class GivenDraws:
    """A folder of draws of one or more data sets.

    It may contain `*draw*.json` files of runs (also those of a results folder), and for each data set a folder named as in `$DATA` with
    CoOp's `split_fewshot/shot_16-seed_1.pkl`, or the `preprocessed.pkl` with the lists that CoOp draws from.

    Raises:
        UsageError: it is not a folder.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = user_path(folder)
        if not self.folder.is_dir():
            raise UsageError(
                f"folder of draws {self.folder} does not exist or is not a folder. It should have draw.json files or CoOp's pickles."
            )
        self._json: dict[Path, Draw] | None = None
        self._ordered: dict[str, Dataset] = {}

    def draw(self, dataset: Dataset, shots: int, seed: int, classes: Which | str) -> Draw | None:
        """The draw of `shots` images per class with `seed`; None if the folder has no draws of the data set.

        Raises:
            UsageError: the folder has draws of the data set, but not this one, or it does not fit the images here.
            MmrlError: it is damaged.
        """
        name, part = dataset.name, labels_drawn(dataset, classes)[1]
        written = {path: draw for path, draw in self._written().items() if draw.dataset == name}
        for path, draw in written.items():
            if (draw.shots, draw.seed) == (shots, seed) and draw.classes in ("all", part):
                return fitted(draw, path, dataset, classes)
        pickled = [path for place in self._places(name) for path in sorted(place.glob("shot_*-seed_*.pkl"))]
        for path in pickled:
            if path.name == f"shot_{shots}-seed_{seed}.pkl":
                return read_coop_draw(path, dataset, classes=classes)
        lists = next((place / LISTS for place in self._places(name) if (place / LISTS).is_file()), None)
        if lists is not None:
            if name not in self._ordered:
                self._ordered[name] = read_coop_lists(lists, dataset)
            return draw_shots(self._ordered[name], shots, seed, part, allow_fewer=True)
        if written or pickled:
            raise UsageError(
                f"{self.folder} has {len(written) + len(pickled)} draws of '{name}', but none of {shots} shots with seed {seed} of {part} "
                "classes. Add it, use one that exists, or remove the draws of this data set to have them drawn here."
            )
        return None

    def _written(self) -> dict[Path, Draw]:
        if self._json is None:
            found = (path for pattern in ("*draw*.json", "*/*draw*.json", "work/*/draw.json") for path in self.folder.glob(pattern))
            self._json = {path: Draw.load(path) for path in sorted(set(found))}
        return self._json

    def _places(self, name: str) -> Iterator[Path]:
        """Folders that may contain pickles of the data set: below this one, or this one if it has the data set's name."""
        names = {name, *({ENTRIES[name].folder} if name in ENTRIES else ())}
        homes = [self.folder / each for each in sorted(names)]
        if self.folder.name in names:
            homes.append(self.folder)
        if self.folder.name == FEW_SHOT and self.folder.parent.name in names:
            homes.append(self.folder.parent)
        for home in homes:
            yield from (home, home / FEW_SHOT)


def read_coop_draw(
    path: Path | str, dataset: Dataset, *, shots: int | None = None, seed: int | None = None, classes: Which | str = "all"
) -> Draw:
    """The draw in a file like `split_fewshot/shot_16-seed_1.pkl`, for `dataset`.

    The file has absolute paths of the machine on which it was made. Each is matched to the image of `dataset` that has the same
    file name and shares most of the last folders; label and class name must be the same.

    Args:
        shots, seed: by default from the file name.
        classes: the draw is of all classes; "base" or "novel" cuts it, as in `draw_shots`.

    Raises:
        UsageError: the file is missing, too large, damaged or not such a draw (the message says what was found), its name does not
            give shots and seed, or its images are not training (validation) images of `dataset`.
    """
    path = user_path(path)
    shots, seed = _numbers(path, shots, seed)
    whole, part, ids = labels_drawn(dataset, classes)
    content = _load(path, LARGEST)
    if not isinstance(content, dict) or "train" not in content or not set(content) <= {"train", "val"}:
        raise UsageError(f"{path} is not a few-shot draw: it contains a {type(content).__name__}, not the lists 'train' and 'val'.")
    train = _items(path, content["train"], whole, whole.train, "train")
    val = _items(path, content.get("val", []), whole, whole.val, "val")
    label, most = max(Counter(item.label for item in train).items(), key=lambda pair: pair[1], default=(0, 0))
    if not 0 < most <= shots:
        raise UsageError(f"{path} has {most} training images of class '{whole.classes[label]}', not {shots}. Is it the draw you mean?")
    return Draw(whole.name, shots, seed, part, relabel(train, ids), relabel(val, ids))


def read_coop_lists(path: Path | str, dataset: Dataset) -> Dataset:
    """`dataset` with its training and validation images in the order of a file like `preprocessed.pkl`.

    CoOp lists ImageNet's files in the order of the disk and keeps the list in that file; with it, its draws can be reproduced here.

    Raises:
        UsageError: as `read_coop_draw`, or the lists do not have every training image.
    """
    path, whole = user_path(path), dataset.source or dataset
    content = _load(path, LARGEST_LISTS)
    if not isinstance(content, dict) or "train" not in content or not set(content) <= {"train", "val", "test"}:
        raise UsageError(f"{path} has no lists of images: it contains a {type(content).__name__}, not 'train', 'val' and 'test'.")
    train = _items(path, content["train"], whole, whole.train, "train")
    val = _items(path, content["val"], whole, whole.val, "val") if content.get("val") else whole.val
    if len(train) != len(whole.train):
        here = f"'{whole.name}' has {len(whole.train):,} here"
        raise UsageError(f"{path} lists {len(train):,} training images; {here}. Is it of other images?")
    return replace(whole, train=train, val=val)


def _numbers(path: Path, shots: int | None, seed: int | None) -> tuple[int, int]:
    named = re.search(r"shot_(\d+)-seed_(\d+)", path.name)
    shots = int(named[1]) if shots is None and named else shots
    seed = int(named[2]) if seed is None and named else seed
    if shots is None or seed is None:
        raise UsageError(f"the name of {path} is not like shot_16-seed_1.pkl, so pass shots= and seed=.")
    return shots, seed


def _load(path: Path, most: int) -> Any:
    content = read_regular(path, what="few-shot draw", most=most)
    try:
        return read_notes(content, allowed=(RECORD,))
    except ForbiddenName as error:
        raise UsageError(f"{path} refers to {error}, which no few-shot draw needs; it was not run. Do not trust this file.") from error
    except Exception as error:  # a damaged pickle raises errors of any kind
        why = f"{type(error).__name__} {error}"
        raise UsageError(f"few-shot draw {path} is damaged, or is not a pickle: {why}. Replace the file.") from error


def _items(path: Path, records: Any, dataset: Dataset, known: list[Item], part: str) -> list[Item]:
    """The items of `known` that match `records`, in the order of `records`."""
    if not isinstance(records, list):
        raise UsageError(f"{path} is not a few-shot draw: its '{part}' is a {type(records).__name__}, not a list.")
    rows = [_row(path, record, part) for record in records]
    named: dict[str, list[Item]] = {steps[-1]: [] for steps, _, _ in rows}  # by file name, only of files in the draw
    for item in known:
        name = item.key.rpartition("/")[2]
        if name in named:
            named[name].append(item)
    found = []
    for steps, label, name in rows:
        meant, place = _nearest(steps, named[steps[-1]]), "/".join(steps)
        if meant is None:
            raise UsageError(
                f"{path}: '{place}' is not a {part} image of '{dataset.name}' here. The draw was made from another split: "
                "use the split file that it was made with."
            )
        if meant.label != label or name_key(spoken(dataset.classes[label])) != name_key(spoken(name)):
            raise UsageError(
                f"{path}: '{place}' is of class '{name}' (label {label}) there, but of '{dataset.classes[meant.label]}' "
                f"(label {meant.label}) in '{dataset.name}' here. Is it the draw of another data set?"
            )
        found.append(meant)
    if len(set(found)) < len(found):
        raise UsageError(f"{path} has an image twice in '{part}'.")
    return found


def _row(path: Path, record: Any, part: str) -> tuple[list[str], int, str]:
    """The parts of a record's path, its label and its class name."""
    fields = record.state if isinstance(record, Call) and isinstance(record.state, dict) else {}
    place, label, name = (fields.get(field) for field in ("_impath", "_label", "_classname"))
    if not isinstance(place, str) or type(label) is not int or abs(label) > MOST_LABELS or not isinstance(name, str):
        raise UsageError(f"{path} is not a few-shot draw: '{part}' has an entry that is not an image with path, label and class name.")
    return place.replace("\\", "/").split("/"), label, name


def _nearest(steps: list[str], items: list[Item]) -> Item | None:
    """The item whose key shares most parts with the end of a path, preferring a key that matches as a whole; None on a tie."""

    def agreement(item: Item) -> tuple[int, bool]:
        own = item.key.split("/")
        same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(reversed(own), reversed(steps))))
        return same, same == len(own)

    ranked = sorted(((agreement(item), i) for i, item in enumerate(items)), reverse=True)
    if not ranked or (len(ranked) > 1 and ranked[0][0] == ranked[1][0]):
        return None
    return items[ranked[0][1]]
