"""Labelled images that a program holds: pairs, dictionaries, tables of pandas and of `datasets`, or what a path or a name says."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from PIL import Image

from mmrl.data.catalogue import load_dataset
from mmrl.data.folder import SPLIT_OF, has_content
from mmrl.data.globs import image_files
from mmrl.data.images import file_content, to_rgb
from mmrl.data.records import Contents, Dataset, Item
from mmrl.data.saved import dataset_of_tables
from mmrl.data.splits import PARTS, class_name, undivided
from mmrl.errors import UsageError
from mmrl.names import listed, name_key
from mmrl.templates import DEFAULT_TEMPLATE


class Table(Protocol):
    """Of pandas or of `datasets`."""

    def __len__(self) -> int: ...

    def __getitem__(self, key: Any, /) -> Any: ...


Labelled = str | Path | Dataset | tuple[Any, Any] | Mapping[str, Any] | Sequence[Mapping[str, Any]] | Table

HELD_OUT = "held out/"
NAME = "given"  # of a data set that was handed over without one
IMAGE_COLUMNS = ("path", "image", "file", "file_name")
LABEL_COLUMNS = ("label", "class")
KINDS = (
    "a folder, a file that lists images, a name of `mmrl data list`, (images, labels), {name: images}, a list of dictionaries or a table "
    "with path and label, or a Dataset of mmrl or of the library 'datasets'"
)


def given_dataset(data: Labelled, *, root: Path | str | None = None) -> Dataset:
    """The data set in `data`.

    Args:
        data: as `load_dataset` takes it; a `Dataset`; a pair (images, labels); a mapping from class names to paths, folders, globs or
            images; a list of dictionaries or a pandas DataFrame with `path` (or `image`) and `label` and optionally `split`; or a Dataset
            or DatasetDict of the library `datasets`. Images are whatever `to_rgb` takes; relative paths are relative to the working
            folder. Labels are class names.
        root: as in `load_dataset`.

    Raises:
        UsageError: another kind of data, images and labels of different number, a label that is no name, no image, or as `load_dataset`.
    """
    if isinstance(data, Dataset):
        return data
    if isinstance(data, (str, Path)):
        return load_dataset(str(data), root=root)
    return _of_objects(data)


def _of_objects(data: Any) -> Dataset:
    if _is_hf(data):
        tables = dict(data) if isinstance(data, Mapping) else {"": data}
        return dataset_of_tables(tables, NAME)
    if hasattr(data, "columns") and hasattr(data, "to_dict"):
        return _of_records(data.to_dict("records"), "the table")
    if isinstance(data, Mapping):
        return _of_groups(data)
    if isinstance(data, tuple) and len(data) == 2:
        return _of_pairs(*data)
    if isinstance(data, Sequence) and data and all(isinstance(each, Mapping) for each in data):
        return _of_records(data, "the list")
    raise UsageError(f"data is {_kind(data)}; give {KINDS}.")


def _kind(data: Any) -> str:
    if isinstance(data, (list, tuple)):
        return f"a {type(data).__name__} of {len(data)}" + (f" ({type(data[0]).__name__}, ...)" if data else "")
    return f"a {type(data).__name__}"


def _is_hf(data: Any) -> bool:
    """Whether it is a table of `datasets`, or a dictionary of such."""
    tables = list(data.values()) if isinstance(data, Mapping) else [data]
    return bool(tables) and all(hasattr(table, "features") and hasattr(table, "cast_column") for table in tables)


def _of_pairs(images: Any, labels: Any) -> Dataset:
    sources, names = _listed(images, "images"), [_plain(label) for label in _listed(labels, "labels")]
    if len(sources) != len(names):
        raise UsageError(f"there are {len(sources)} images and {len(names)} labels; every image needs one.")
    return _dataset([(source, name, None) for source, name in zip(sources, names)], "the pair (images, labels)")


def _of_groups(groups: Mapping[Any, Any]) -> Dataset:
    rows: list[tuple[Any, Any, str | None]] = []
    for name, images in groups.items():
        one = isinstance(images, (str, Path))
        sources = image_files(images) if one else _listed(images, f"the images of '{name}'")
        if not sources:
            raise UsageError(f"class '{name}' has no image; add some, or leave it out.")
        rows += [(source, name, None) for source in sources]
    return _dataset(rows, "the dictionary", sort=False)


def _of_records(records: Iterable[Mapping[str, Any]], where: str) -> Dataset:
    rows = []
    for number, record in enumerate(records):
        at = f"{where}, row {number}"
        image, label = _field(record, IMAGE_COLUMNS, at), _field(record, LABEL_COLUMNS, at)
        rows.append((image, _plain(label), _split(record["split"], at) if "split" in record else None))
    return _dataset(rows, where)


def _field(record: Mapping[str, Any], names: Sequence[str], where: str) -> Any:
    found = [name for name in names if name in record]
    if not found:
        raise UsageError(f"{where} has {', '.join(map(str, record)) or 'nothing'}; it needs {names[0]} (or {', '.join(names[1:])}).")
    value = record[found[0]]
    if value is None or (isinstance(value, float) and value != value) or (isinstance(value, str) and not value.strip()):  # NaN in pandas
        raise UsageError(f"{where}: '{found[0]}' is blank.")
    return value


def _split(written: Any, where: str) -> str:
    part = SPLIT_OF.get(str(written).strip().lower())
    if part is None:
        raise UsageError(f"{where}: split is {written!r}; it must be train, val or test, in every row or in none.")
    return part


def _listed(values: Any, what: str) -> list[Any]:
    if isinstance(values, (str, bytes)) or not isinstance(values, Iterable):
        raise UsageError(f"{what} must be a list, and is {_kind(values)}.")
    return list(values)


def _plain(label: Any) -> Any:
    """A label of numpy's kind as Python's."""
    return label.item() if hasattr(label, "item") and not isinstance(label, str) else label


def _dataset(rows: Sequence[tuple[Any, Any, str | None]], where: str, *, sort: bool = True) -> Dataset:
    """From rows of image, class name and split. Classes are sorted by name, or come as they do."""
    if not rows:
        raise UsageError(f"{where} has no image.")
    for number, (_, label, _) in enumerate(rows):
        if not isinstance(label, str):
            raise UsageError(
                f"{where}: label number {number} is {label!r}, and a label is the name of a class, which CLIP reads. "
                "With numbers, give names[number] for each."
            )
    images = _keyed([source for source, _, _ in rows], where)
    named = [(key, class_name(label), split) for key, (_, label, split) in zip(images, rows)]
    names = list(dict.fromkeys(name for _, name, _ in named))
    names = sorted(names) if sort else names
    contents = _contents(named, names)
    return Dataset(
        NAME, contents.classes, DEFAULT_TEMPLATE, contents.train, contents.val, contents.test, read=GivenImages(images),
        rest_tests=contents.rest_tests,
    )  # fmt: skip


def _contents(rows: Sequence[tuple[str, str, str | None]], names: Sequence[str]) -> Contents:
    if all(split in (None, "train") for _, _, split in rows):
        groups: dict[str, list[str]] = {name: [] for name in names}
        for key, name, _ in rows:
            groups[name].append(key)
        return undivided(groups)
    labels = {name: label for label, name in enumerate(names)}
    parts: dict[str, list[Item]] = {part: [] for part in PARTS}
    for key, name, split in rows:
        parts[split or "train"].append(Item(key, labels[name]))
    if not parts["test"]:  # what validates tests where nothing else does, as in a folder
        parts["test"], parts["val"] = parts["val"], []
    return Contents(tuple(names), parts["train"], parts["val"], parts["test"])


def _keyed(sources: Sequence[Any], where: str) -> dict[str, Any]:
    """The images by key: a path as it was written; of others a number and what identifies the content, which draws and records hold."""
    out: dict[str, Any] = {}
    for number, source in enumerate(sources):
        if isinstance(source, (str, os.PathLike)):
            source = os.fspath(source)
            key = Path(source).as_posix()
            if key in out:
                raise UsageError(f"{where}: image '{key}' is there twice. Keep one of the two.")
        else:
            source = file_content(source) if hasattr(source, "read") else source
            key = f"{number:06}-{_digest(source)}"
        out[key] = source
    return out


def _digest(source: Any) -> str:
    """Of an image in memory; equal pixels of one kind have equal digests."""
    if isinstance(source, (bytes, bytearray)):
        content, about = bytes(source), "file"
    elif isinstance(source, Image.Image):
        content, about = source.tobytes(), f"{source.mode}{source.size}"
    else:
        array = source.detach().cpu().numpy() if hasattr(source, "detach") else source
        if not hasattr(array, "tobytes"):
            to_rgb(source)  # says what an image may be
        content, about = array.tobytes(), f"{array.dtype}{array.shape}"
    return hashlib.sha256(about.encode() + content).hexdigest()[:12]


def with_held_out(dataset: Dataset, other: Dataset) -> Dataset:
    """`dataset`, which has no test images, with all images of `other` as its test images, whose keys begin with "held out/".

    Raises:
        UsageError: `dataset` has test images, or not all classes of `other`.
    """
    if not dataset.rest_tests:
        raise UsageError(f"'{dataset.name}' has its own test images, so no others can be held out. Leave one of them out.")
    place = {name_key(name): label for label, name in enumerate(dataset.classes)}
    strange = [name for name in other.classes if name_key(name) not in place]
    if strange:
        raise UsageError(f"the images held out are of {listed(strange)}, which '{dataset.name}' does not have: {listed(dataset.classes)}.")
    items = [*other.train, *other.val, *other.test]
    test = [Item(f"{HELD_OUT}{item.key}", place[name_key(other.classes[item.label])]) for item in items]
    return replace(dataset, test=test, read=_Both(dataset.read, other.read), rest_tests=False)


class _Both:
    """Reads the images of two data sets, by keys of which the second's begin with "held out/"."""

    def __init__(self, first: Callable[[str], Image.Image], second: Callable[[str], Image.Image]) -> None:
        self.parts = (first, second)
        self.in_memory = all(getattr(part, "in_memory", False) for part in self.parts)

    def __call__(self, key: str) -> Image.Image:
        return self.parts[1](key.removeprefix(HELD_OUT)) if key.startswith(HELD_OUT) else self.parts[0](key)

    def absent(self, keys: Iterable[str]) -> list[str]:
        """Those of `keys` whose file is not there or empty."""
        keys = list(keys)
        out = []
        for part, mark, own in (
            (self.parts[0], "", [key for key in keys if not key.startswith(HELD_OUT)]),
            (self.parts[1], HELD_OUT, [key.removeprefix(HELD_OUT) for key in keys if key.startswith(HELD_OUT)]),
        ):
            told: Callable[[list[str]], list[str]] | None = getattr(part, "absent", None)
            out += [f"{mark}{key}" for key in told(own)] if told else []
        return out


class GivenImages:
    """Reads images by key from what was handed over: files, or images in memory."""

    def __init__(self, images: Mapping[str, Any]) -> None:
        self.images = images
        self.in_memory = not any(isinstance(each, str) for each in images.values())

    def __call__(self, key: str) -> Image.Image:
        return to_rgb(self.images[key])

    def stamp(self, keys: Iterable[str]) -> str:
        """Of files, where they are, their sizes and times; the keys of others have what decides their pixels."""
        return json.dumps([_stamp(self.images[key]) for key in keys])

    def absent(self, keys: Iterable[str]) -> list[str]:
        """Those of `keys` whose file is not there or empty."""
        return [key for key in keys if isinstance(self.images[key], str) and not has_content(Path(self.images[key]))]


def _stamp(source: Any) -> list[Any]:
    if not isinstance(source, str):
        return []
    try:
        found = os.stat(source)
    except OSError:
        return [os.path.abspath(source)]
    return [os.path.abspath(source), found.st_size, found.st_mtime_ns]
