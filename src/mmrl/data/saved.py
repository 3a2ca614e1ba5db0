"""Data sets of the library `datasets`: tables in memory, and folders that its `save_to_disk` wrote."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from mmrl.data.folder import SPLIT_OF
from mmrl.data.images import to_rgb
from mmrl.data.records import Contents, Dataset
from mmrl.data.splits import Row, class_name, contents_of, test_of_val, undivided
from mmrl.errors import UsageError
from mmrl.templates import DEFAULT_TEMPLATE


def is_saved(path: Path) -> bool:
    """Whether `path` is such a folder, with or without splits."""
    return (path / "dataset_dict.json").is_file() or ((path / "dataset_info.json").is_file() and (path / "state.json").is_file())


def read_saved(path: Path) -> Dataset:
    """The data set in such a folder. Columns are found by type: one `Image` and one `ClassLabel`.

    Splits are recognised by name (without test, validation is the test set). Without splits, a run is tested on the images that it
    does not train on (`Dataset.rest_tests`). Keys are "split/number".

    Raises:
        UsageError: `datasets` is not installed, the folder is damaged, or it does not have exactly one column of either type.
    """
    try:
        import datasets
    except ImportError as error:
        raise UsageError(f"{path} was saved by the library 'datasets', which is not installed: pip install 'mmrl[hf]'.") from error
    try:
        loaded = datasets.load_from_disk(str(path))
        tables = dict(loaded) if isinstance(loaded, Mapping) else {"": loaded}
        return dataset_of_tables(tables, path.resolve().name, where=str(path), folder=path)
    except UsageError:
        raise
    except Exception as error:  # damaged files raise errors of any kind
        raise UsageError(f"{path} cannot be read as a folder saved by 'datasets': {error}. Save it again.") from error


def dataset_of_tables(tables: Mapping[str, Any], name: str, *, where: str = "the table", folder: Path | None = None) -> Dataset:
    """The data set in `tables` of `datasets`, by the names of their splits ('' for a table without); the library itself is not imported.

    Args:
        where: whose they are, in messages.
        folder: that they were loaded from, if any.

    Raises:
        UsageError: as `read_saved`.
    """
    if not tables:
        raise UsageError(f"{where} has no split. Save the data set again.")
    first = next(iter(tables.values()))
    image, label = _column(first, "Image", where), _column(first, "ClassLabel", where)
    names = first.features[label].names
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UsageError(f"{where} does not name its classes: the names of '{label}' are not strings. Save the data set again.")
    tables = {_part(split, where): table for split, table in tables.items()}
    undecoded = type(first.features[image])(decode=False)
    read = _Reader({part: table.cast_column(image, undecoded) for part, table in tables.items()}, image, where, folder)
    rows = {part: _rows(part, table[label], names, where) for part, table in tables.items()}
    contents = _undivided(next(iter(rows.values()))) if set(rows) in ({""}, {"train"}) else contents_of(test_of_val(rows), where)
    return Dataset(
        name, contents.classes, DEFAULT_TEMPLATE, contents.train, contents.val, contents.test, read=read, rest_tests=contents.rest_tests
    )


def _undivided(rows: list[Row]) -> Contents:
    groups: dict[str, list[str]] = {name: [] for _, name in sorted({row[1:] for row in rows})}
    for key, _, name in rows:
        groups[name].append(key)
    return undivided(groups)


def _part(split: str, where: str) -> str:
    if split and split.lower() not in SPLIT_OF:
        raise UsageError(f"{where} has the split '{split}'; splits are called {', '.join(SPLIT_OF)}. Rename or remove it.")
    return SPLIT_OF[split.lower()] if split else ""


def _column(table: Any, kind: str, where: str) -> str:
    found = [name for name, feature in table.features.items() if type(feature).__name__ == kind]
    if len(found) != 1:
        have = f"the columns {', '.join(found)}" if found else "no column"
        raise UsageError(f"{where} has {have} of type {kind}, where one is needed; its columns are {', '.join(table.features)}.")
    return found[0]


def _rows(part: str, labels: Any, names: list[str], where: str) -> list[Row]:
    rows = []
    for number, label in enumerate(labels):
        if label is None or not 0 <= label < len(names):
            raise UsageError(f"{where}: image {number}{f' of {part}' if part else ''} has no label ({label}). Leave it out.")
        rows.append((f"{part or 'all'}/{number}", label, class_name(names[label])))
    return rows


class _Reader:
    """Reads the image of a key 'split/number' from its table."""

    def __init__(self, tables: dict[str, Any], column: str, where: str, folder: Path | None) -> None:
        self.tables = {part or "all": table for part, table in tables.items()}
        self.column = column
        self.where = where
        self.folder = folder

    def stamp(self, keys: Iterable[str]) -> str:
        """The folder, and the sizes and times of its files; of tables in memory, the fingerprints that `datasets` keeps."""
        if self.folder is None:
            return json.dumps([self.column, {part: table._fingerprint for part, table in self.tables.items()}])
        files = [(str(path), path.stat()) for path in sorted(self.folder.rglob("*")) if path.is_file()]
        return json.dumps([str(self.folder.resolve()), self.column, [(name, found.st_size, found.st_mtime_ns) for name, found in files]])

    def __call__(self, key: str) -> Image.Image:
        part, _, number = key.partition("/")
        try:
            found = self.tables[part][int(number)][self.column] or {}
        except Exception as error:  # the file is damaged; it is read only now
            raise UsageError(f"{self.where}: image {key} cannot be read: {error}. Save the data set again.") from error
        content = found.get("bytes") or (found.get("path") if self.folder is None else None)
        if content is None:
            raise UsageError(f"{self.where}: image {key} is not in the saved files. Save the data set again, with its images.")
        try:
            return to_rgb(content)
        except UsageError as error:
            raise UsageError(f"{self.where}, image {key}: {error}") from error
