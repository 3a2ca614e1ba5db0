"""Readers of the raw layouts, used if the published split file is missing.

Each takes (entry, data root, cache folder or None) and returns the contents. If the authors' files do not define the split, or a part of
it, it is drawn here from sorted lists with a generator seeded by the class's name. Such a split is the same on every machine and has the
counts of the published one, but not its images, so results differ.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from mmrl.data.benchmark.entry import Entry, Reader
from mmrl.data.benchmark.matlab import read_variable
from mmrl.data.folder import class_names, images_below, subfolders
from mmrl.data.records import Contents
from mmrl.data.splits import Row, class_name, contents_of, divide, family_sizes, hold_out, json_of_user
from mmrl.errors import UsageError
from mmrl.files import read_regular

LARGEST_MAT = 2**25  # bytes; the largest of the 15 has some 200 kB


def class_folders(*, leave_out: Iterable[str] = (), rename: Mapping[str, str] | None = None) -> Reader:
    """A reader of one folder per class, split 50/20/30; `rename` maps folders to class names."""
    skipped, names = set(leave_out), rename or {}

    def read(entry: Entry, root: Path, cache: Path | None) -> Contents:
        images = entry.images_of(root)
        folders = [folder for folder in subfolders(images) if folder not in skipped]
        classes = class_names((names.get(folder, folder) for folder in folders), images)
        keys = (images_below(images, images / folder) for folder in folders)
        return divide(dict(zip(classes, keys)), family_sizes)

    return read


def pet_lists(entry: Entry, root: Path, cache: Path | None) -> Contents:
    """Lines `Abyssinian_100 1 1 1`: image, class from 1, species, breed. The class name is the image's name without its number."""

    def row(line: str) -> Row:
        image, number, _species, _breed = line.split()
        return f"{image}.jpg", int(number) - 1, image.rsplit("_", 1)[0].lower()

    trainval, test = (list(_rows(path, row)) for path in entry.needs_of(root))
    return contents_of({**hold_out(trainval), "test": test}, str(entry.folder_of(root)))


def aircraft_lists(entry: Entry, root: Path, cache: Path | None) -> Contents:
    """Lines `1025794 707-320` in one file per split; the label is the variant's line in variants.txt."""
    variants, *parts = entry.needs_of(root)
    labels = {name: label for label, name in enumerate(_lines(variants))}

    def row(line: str) -> Row:
        image, name = line.split(maxsplit=1)
        return f"{image}.jpg", labels[name], name

    return contents_of({part: list(_rows(path, row)) for part, path in zip(("train", "val", "test"), parts)}, str(entry.folder_of(root)))


def scene_lists(entry: Entry, root: Path, cache: Path | None) -> Contents:
    """Lines `/a/abbey/sun_x.jpg`; the label is the line in ClassName.txt. `/c/control_tower/outdoor` is "outdoor control tower"."""
    names, training, testing = entry.needs_of(root)
    labels = {folder: label for label, folder in enumerate(_lines(names))}

    def row(line: str) -> Row:
        folder = line.rpartition("/")[0]
        return line.removeprefix("/"), labels[folder], " ".join(reversed(folder.split("/")[2:]))

    return contents_of({**hold_out(_rows(training, row)), "test": list(_rows(testing, row))}, str(entry.folder_of(root)))


def action_lists(entry: Entry, root: Path, cache: Path | None) -> Contents:
    """Lines `ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.avi 1`, in the test list without the number; labels are those of classInd.txt."""
    index, training, testing = entry.needs_of(root)

    def entry_of(line: str) -> tuple[str, int]:
        number, action = line.split()
        return action, int(number) - 1

    labels = dict(_rows(index, entry_of))

    def row(line: str) -> Row:
        action, video = line.split()[0].split("/")
        folder = "_".join(re.findall("[A-Z][^A-Z]*", action))
        return f"{folder}/{Path(video).stem}.jpg", labels[action], folder

    return contents_of({**hold_out(_rows(training, row)), "test": list(_rows(testing, row))}, str(entry.folder_of(root)))


def flower_labels(entry: Entry, root: Path, cache: Path | None) -> Contents:
    """imagelabels.mat has the classes, from 1, of image_00001.jpg, ...; cat_to_name.json has their names. Split 50/20/30 per class."""
    labels_file, names_file = entry.needs_of(root)
    labels = _whole_numbers(labels_file, "labels")
    names = json_of_user(names_file, "list of class names")
    try:
        groups: dict[str, list[str]] = {class_name(names[str(label)]): [] for label in sorted(set(labels))}
        for number, label in enumerate(labels, 1):
            groups[class_name(names[str(label)])].append(f"image_{number:05d}.jpg")
    except (KeyError, TypeError, AttributeError) as error:
        raise UsageError(
            f"{names_file} must name every class of {labels_file}, as {{'1': 'pink primrose', ...}}; {error} is missing or invalid."
        ) from error
    return divide(groups, family_sizes)


def car_annotations(entry: Entry, root: Path, cache: Path | None) -> Contents:
    """Classes, from 1, and file names in .mat files; the year moves to the front of the class name."""
    meta, train, test = entry.needs_of(root)
    names = _mat(meta, "class_names")

    def rows(path: Path, folder: str) -> Iterator[Row]:
        for car in _mat(path, "annotations"):
            try:
                label, key = int(car["class"]) - 1, f"{folder}/{car['fname'].strip()}"
                model, _, year = names[label].rpartition(" ")
            except (LookupError, ValueError, TypeError, AttributeError, OverflowError) as error:
                raise UsageError(f"{path} is not as the authors of {entry.title} publish it: {error!r}. Download it again.") from error
            yield key, label, f"{year} {model}"

    parts = {**hold_out(rows(train, "cars_train")), "test": list(rows(test, "cars_test"))}
    return contents_of(parts, str(entry.folder_of(root)))


def _mat(path: Path, name: str) -> list[Any]:
    """The variable `name` of a MATLAB file, flattened. Raises UsageError if the file is damaged or does not have it."""
    read_regular(path, what="MATLAB file", most=LARGEST_MAT)
    try:
        return read_variable(path, name)
    except ValueError as error:
        raise UsageError(f"{path} cannot be read as a MATLAB file: {error}. Download it again.") from error


def _whole_numbers(path: Path, name: str) -> list[int]:
    found = _mat(path, name)
    if not all(isinstance(value, (int, float)) and float(value).is_integer() for value in found):
        raise UsageError(f"'{name}' of {path} has a value that is not an integer. Download it again.")
    return [int(value) for value in found]


def _lines(path: Path) -> Iterator[str]:
    """All lines but blank ones, stripped."""
    try:
        text = read_regular(path, what="list").decode("utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(f"cannot read {path}: {error}. Download it again.") from error
    yield from (line.strip() for line in text.splitlines() if line.strip())


def _rows(path: Path, parse: Callable[[str], Any]) -> Iterator[Any]:
    """`parse` of every line. Raises UsageError with the first line that cannot be parsed."""
    for line in _lines(path):
        try:
            row = parse(line)
        except (ValueError, KeyError, IndexError) as error:
            raise UsageError(
                f"{path}: the line '{line:.80}' is not as the authors publish it ({error!r}). Download the file again."
            ) from error
        yield row
