"""The CoOp family's own few-shot draws: pickles under `split_fewshot/`, read without running what a pickle can run.

A pickle is a program. It is not run here but read (`mmrl.pickles`), and one that names anything but the record type of that family is
refused.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from itertools import takewhile
from pathlib import Path
from typing import Any

from mmrl.data.draws import Draw, labels_drawn
from mmrl.data.records import Dataset, Item, Which, relabel
from mmrl.errors import UsageError
from mmrl.files import read_regular, user_path
from mmrl.names import name_key, spoken
from mmrl.pickles import Call, ForbiddenName, Name, read_notes

RECORD = Name("dassl.data.datasets.base_dataset", "Datum")
LARGEST = 64 * 2**20  # bytes; the largest of the family, ImageNet with 16 shots, has about 3 MB
MOST_LABELS = 2**31  # a pickle has numbers of any length, and Python writes none of more than 4300 digits
LARGEST_LISTS = 2**30  # bytes of lists of all images; ImageNet's have about 200 MB


def read_coop_draw(
    path: Path | str, dataset: Dataset, *, shots: int | None = None, seed: int | None = None, classes: Which | str = "all"
) -> Draw:
    """The draw in a file like `split_fewshot/shot_16-seed_1.pkl`, for `dataset`.

    The file has absolute paths of the machine it was made on. Each is taken for the image of `dataset` with the same file
    name that agrees with it in most of the last folders, and must have the same label and class name there.

    Args:
        shots, seed: by default as the file's name says.
        classes: the draw is of all classes; "base" or "novel" cuts it, as `draw_shots` does.

    Raises:
        UsageError: the file is missing, too large, damaged or holds anything but such a draw (what was found is named), its
            name does not tell shots and seed, or its images are not training (validation) images of `dataset`.
    """
    path = user_path(path)
    shots, seed = _numbers(path, shots, seed)
    whole, part, ids = labels_drawn(dataset, classes)
    content = _load(path, LARGEST)
    if not isinstance(content, dict) or "train" not in content or not set(content) <= {"train", "val"}:
        raise UsageError(f"{path} is no few-shot draw: it holds a {type(content).__name__}, not the lists 'train' and 'val'.")
    train = _items(path, content["train"], whole, whole.train, "train")
    val = _items(path, content.get("val", []), whole, whole.val, "val")
    label, most = max(Counter(item.label for item in train).items(), key=lambda pair: pair[1], default=(0, 0))
    if not 0 < most <= shots:
        raise UsageError(f"{path} has {most} training images of class '{whole.classes[label]}', not {shots}. Is it the draw you mean?")
    return Draw(whole.name, shots, seed, part, relabel(train, ids), relabel(val, ids))


def read_coop_lists(path: Path | str, dataset: Dataset) -> Dataset:
    """`dataset` with its training and validation images in the order of a file like `preprocessed.pkl`, which draws follow.

    The CoOp family lists ImageNet's files in the order of the disk and keeps that list; with it, its draws are had here.

    Raises:
        UsageError: as `read_coop_draw`, or the lists do not have every training image.
    """
    path, whole = user_path(path), dataset.source or dataset
    content = _load(path, LARGEST_LISTS)
    if not isinstance(content, dict) or "train" not in content or not set(content) <= {"train", "val", "test"}:
        raise UsageError(f"{path} holds no lists of images: it holds a {type(content).__name__}, not 'train', 'val' and 'test'.")
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
        raise UsageError(f"the name of {path} is not like shot_16-seed_1.pkl, so give shots= and seed=.")
    return shots, seed


def _load(path: Path, most: int) -> Any:
    content = read_regular(path, what="few-shot draw", most=most)
    try:
        return read_notes(content, allowed=(RECORD,))
    except ForbiddenName as error:
        raise UsageError(f"{path} asks for {error}, which no few-shot draw needs; it was not run. Do not trust this file.") from error
    except Exception as error:  # a damaged pickle can make the reader stumble on anything
        why = f"{type(error).__name__} {error}"
        raise UsageError(f"few-shot draw {path} is damaged, or is no pickle: {why}. Get it again.") from error


def _items(path: Path, records: Any, dataset: Dataset, known: list[Item], part: str) -> list[Item]:
    """The items of `known` that `records` mean, in the order of `records`."""
    if not isinstance(records, list):
        raise UsageError(f"{path} is no few-shot draw: its '{part}' is a {type(records).__name__}, not a list.")
    rows = [_row(path, record, part) for record in records]
    named: dict[str, list[Item]] = {steps[-1]: [] for steps, _, _ in rows}  # by file name, of the files in the draw alone
    for item in known:
        name = item.key.rpartition("/")[2]
        if name in named:
            named[name].append(item)
    found = []
    for steps, label, name in rows:
        meant, place = _nearest(steps, named[steps[-1]]), "/".join(steps)
        if meant is None:
            raise UsageError(
                f"{path}: '{place}' is no {part} image of '{dataset.name}' here. The draw was made from another split: "
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
    """The steps of a record's path, its label and its class's name."""
    fields = record.state if isinstance(record, Call) and isinstance(record.state, dict) else {}
    place, label, name = (fields.get(field) for field in ("_impath", "_label", "_classname"))
    if not isinstance(place, str) or type(label) is not int or abs(label) > MOST_LABELS or not isinstance(name, str):
        raise UsageError(f"{path} is no few-shot draw: '{part}' has something that is no image with path, label and class name.")
    return place.replace("\\", "/").split("/"), label, name


def _nearest(steps: list[str], items: list[Item]) -> Item | None:
    """The item whose key agrees with the end of a path in most steps, a key that agrees as a whole before others; None on a tie."""

    def agreement(item: Item) -> tuple[int, bool]:
        own = item.key.split("/")
        same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(reversed(own), reversed(steps))))
        return same, same == len(own)

    ranked = sorted(((agreement(item), i) for i, item in enumerate(items)), reverse=True)
    if not ranked or (len(ranked) > 1 and ranked[0][0] == ranked[1][0]):
        return None
    return items[ranked[0][1]]
