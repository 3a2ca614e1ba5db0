"""Files that list images with their labels: CSV (with a header), JSONL, and the CoOp family's split files."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmrl.data.folder import SPLIT_OF, dataset_of, subfolders
from mmrl.data.records import Contents, Dataset
from mmrl.data.splits import PARTS, Row, check_key, class_name, contents_of, read_split, test_of_val, undivided
from mmrl.errors import UsageError
from mmrl.files import parse_json, read_regular

LIST_ENDINGS = (".csv", ".jsonl", ".json")
_NEEDED = ("path", "label")


def read_list(path: Path, *, images: Path | None = None) -> Dataset:
    """The data set that a CSV, JSONL or split file lists; paths in it are relative to the folder `images`, and stay inside it.

    By default that is the file's own folder; for a split file (JSON) it may also be the one folder beside it that has the
    first training image, as in the CoOp family's layout.

    CSV and JSONL have an image a line: its `path`, its `label` (the class's name) and, if they like, its `split`. Classes
    are sorted by name; underscores in names become spaces. The split is train, val or test (where there is no test, val is
    the test set); without that column the images that a training does not draw test it (`Dataset.rest_tests`).

    Raises:
        UsageError: the file is missing, empty or damaged, lacks a column, or a line of it is blank where it must not be,
            names an image twice or one outside the folder, or a split that is none; the line is named.
    """
    if images is not None and not images.is_dir():
        raise UsageError(f"image folder {images} does not exist. Check images=.")
    if path.suffix.lower() == ".json":
        contents = read_split(path)
        return dataset_of(contents, path.stem, images or _image_folder(path, contents.train[0].key))
    return dataset_of(_read_table(path), path.stem, images or path.parent)


def _image_folder(path: Path, key: str) -> Path:
    """The folder that has the image of `key`: that of the split file, or one in it."""
    home = path.parent
    try:
        found = [folder for folder in (home, *(home / name for name in subfolders(home))) if (folder / key).is_file()]
    except OSError as error:  # a name that no file can have
        raise UsageError(f"{path}: the first image, '{key}', cannot be looked for: {error.strerror or error}. Correct it.") from error
    if len(found) > 1 and found[0] != home:
        names = ", ".join(str(folder) for folder in found)
        raise UsageError(f"image '{key}' of {path} is in more than one folder: {names}. Say which one with images=.")
    return found[0] if found else home


def _read_table(path: Path) -> Contents:
    rows = list(_checked(path))
    if not rows:
        raise UsageError(f"{path} lists no image. Expected a line an image, with {' and '.join(_NEEDED)}.")
    names = sorted({name for _, name, _ in rows})
    if all(split in (None, "train") for _, _, split in rows):
        groups: dict[str, list[str]] = {name: [] for name in names}
        for key, name, _ in rows:
            groups[name].append(key)
        return undivided(groups)
    labels = {name: label for label, name in enumerate(names)}
    parts: dict[str, list[Row]] = {part: [] for part in PARTS}
    for key, name, split in rows:
        parts[split or "train"].append((key, labels[name], name))
    return contents_of(test_of_val(parts), str(path))


def _checked(path: Path) -> Iterator[tuple[str, str, str | None]]:
    """Key, class name and split of every line; the split is None in all or in none."""
    lines: dict[str, int] = {}
    splits = None
    for number, record in _csv(path) if path.suffix.lower() == ".csv" else _jsonl(path):
        where = f"{path}, line {number}"
        for column in _NEEDED:
            if not str(record.get(column) if record.get(column) is not None else "").strip():
                raise UsageError(f"{where}: '{column}' is missing or blank. Every line needs {' and '.join(_NEEDED)}.")
        key = check_key(str(record["path"]).strip(), where)
        if lines.setdefault(key, number) != number:
            raise UsageError(f"{where}: image '{key}' stands in line {lines[key]} already. Keep one of the two.")
        splits = "split" in record if splits is None else splits
        yield key, class_name(str(record["label"])), _split(record.get("split"), where) if splits else None


def _split(written: Any, where: str) -> str:
    part = SPLIT_OF.get(str(written).strip().lower())
    if part is None:
        raise UsageError(f"{where}: split is {written!r}; it must be train, val or test, in every line or in none.")
    return part


def _text(path: Path) -> str:
    try:
        return read_regular(path, what="list of images").decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(f"cannot read {path}: {error}. It must be UTF-8.") from error


def _csv(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    reader = csv.DictReader(io.StringIO(_text(path), newline=""), strict=True)
    try:
        header = reader.fieldnames or []
        missing = [name for name in _NEEDED if name not in header]
        if missing:
            raise UsageError(
                f"{path} has no column {' and no column '.join(map(repr, missing))}. Its first line must be a header with "
                f"{', '.join(_NEEDED)} and perhaps split; it is '{','.join(header):.80}'."
            )
        for record in reader:
            if None in record:
                raise UsageError(f"{path}, line {reader.line_num}: more fields than the header has. Put names with a comma in quotes.")
            yield reader.line_num, record
    except csv.Error as error:
        raise UsageError(f"cannot read {path}: {error}. It must be CSV.") from error


def _jsonl(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(_text(path).split("\n"), 1):
        if not line.strip():
            continue
        try:
            record = parse_json(line)
        except ValueError as error:
            raise UsageError(f"{path}, line {number} is no JSON, or was cut short: {error}.") from error
        if not isinstance(record, dict) or any(not isinstance(record.get(name, ""), (str, int)) for name in _NEEDED):
            raise UsageError(f'{path}, line {number} is {line:.80}; expected {{"path": "cat/1.jpg", "label": "cat"}}.')
        yield number, record
