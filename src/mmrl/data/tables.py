"""Files that list images with their labels: CSV (with a header), JSONL, and the CoOp family's split files."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path, PurePath
from typing import Any

from mmrl.data.folder import SPLIT_OF, dataset_of, subfolders
from mmrl.data.formats import EXTRA, lacks_extra, listed_litter, say_skipped
from mmrl.data.records import Contents, Dataset, Item
from mmrl.data.splits import PARTS, Row, check_key, class_name, contents_of, read_split, test_of_val, undivided
from mmrl.errors import UsageError
from mmrl.files import parse_json, read_regular

LIST_ENDINGS = (".csv", ".tsv", ".jsonl", ".json")
DELIMITERS = (",", ";", "\t")
_NEEDED = ("path", "label")


def read_list(path: Path, *, images: Path | None = None) -> Dataset:
    """The data set listed in a CSV, JSONL or split file, with paths relative to the folder `images`.

    The default of `images` is the file's own folder; for a split file (JSON) it may also be the one folder beside it that has
    the first training image, as in CoOp's layout.

    CSV (with commas, semicolons or tabs) and JSONL have one image per line: its `path`, its `label` (the class name) and optionally its
    `split`. Paths may be absolute. Classes are sorted by name; underscores in names become spaces. The split is train, val or test
    (without test, val is the test set); without that column a run is tested on the images that it does not train on
    (`Dataset.rest_tests`), and where no line trains there is nothing to train on. What systems leave beside photos is skipped.

    Warns:
        Notice: HEIC photos were skipped, as the library that reads them is not installed.

    Raises:
        UsageError: the file is missing, empty or damaged, lacks a column, or a line has an empty field, a repeated path, a path
            with '..' or an unknown split, or a class has only photos that are skipped; the message names the line or class.
    """
    if images is not None and not images.is_dir():
        raise UsageError(f"image folder {images} does not exist. Check images=.")
    if path.suffix.lower() == ".json":
        contents = read_split(path)
        return dataset_of(contents, path.stem, images or _image_folder(path, contents.train[0].key))
    return dataset_of(_read_table(path, images or path.parent), path.stem, images or path.parent)


def _image_folder(path: Path, key: str) -> Path:
    """The folder that has the image of `key`: the split file's own folder, or one beside the file."""
    home = path.parent
    try:
        found = [folder for folder in (home, *(home / name for name in subfolders(home))) if (folder / key).is_file()]
    except OSError as error:  # a name that no file can have
        raise UsageError(f"{path}: the first image, '{key}', is not a valid path: {error.strerror or error}. Correct it.") from error
    if len(found) > 1 and found[0] != home:
        names = ", ".join(str(folder) for folder in found)
        raise UsageError(f"image '{key}' of {path} is in more than one folder: {names}. Choose one with images=.")
    return found[0] if found else home


def _read_table(path: Path, images: Path) -> Contents:
    listed = list(_checked(path, images))
    rows = [row for row in listed if not lacks_extra(PurePath(row[0]).name)]
    if not listed:
        raise UsageError(f"{path} lists no image. Expected one line per image, with {' and '.join(_NEEDED)}.")
    names = sorted({name for _, name, _ in rows})
    bare = sorted({name for _, name, _ in listed} - {*names})
    if bare:
        raise UsageError(f"class '{bare[0]}' of {path} has only .HEIC photos. To read them: {EXTRA}")
    say_skipped((key for key, _, _ in listed if lacks_extra(PurePath(key).name)), path)
    if all(split in (None, "train") for _, _, split in rows):
        groups: dict[str, list[str]] = {name: [] for name in names}
        for key, name, _ in rows:
            groups[name].append(key)
        return undivided(groups)
    labels = {name: label for label, name in enumerate(names)}
    parts: dict[str, list[Row]] = {part: [] for part in PARTS}
    for key, name, split in rows:
        parts[split or "train"].append((key, labels[name], name))
    if not parts["train"]:
        val, test = ([Item(key, label) for key, label, _ in parts[part]] for part in ("val", "test"))
        return Contents(tuple(names), [], val if test else [], test or val)
    return contents_of(test_of_val(parts), str(path))


def _checked(path: Path, images: Path) -> Iterator[tuple[str, str, str | None]]:
    """Key, class name and split of every line whose file a person made; the split is None in all lines or in none."""
    lines: dict[str, int] = {}
    splits = None
    for number, record in _jsonl(path) if path.suffix.lower() == ".jsonl" else _csv(path):
        where = f"{path}, line {number}"
        for column in _NEEDED:
            if not str(record.get(column) if record.get(column) is not None else "").strip():
                raise UsageError(f"{where}: '{column}' is missing or blank. Every line needs {' and '.join(_NEEDED)}.")
        key = _key(str(record["path"]).strip(), images, where)
        if listed_litter(key):
            continue
        if lines.setdefault(key, number) != number:
            raise UsageError(f"{where}: image '{key}' is already in line {lines[key]}. Keep one of the two.")
        splits = "split" in record if splits is None else splits
        yield key, class_name(str(record["label"])), _split(record.get("split"), where) if splits else None


def _key(written: str, images: Path, where: str) -> str:
    """The key of a path: one below `images` is relative to it, however it is written, so that a draw holds where the folder is moved to."""
    place = PurePath(written)
    if not place.is_absolute():
        return check_key(written, where)
    for above in (images.absolute(), images.resolve()):
        if place.is_relative_to(above):
            return check_key(place.relative_to(above).as_posix(), where)
    check_key(place.relative_to(place.anchor).as_posix(), where)
    return place.as_posix()


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
    text = _text(path)
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True, delimiter=_delimiter(text))
    try:
        header = reader.fieldnames or []
        missing = [name for name in _NEEDED if name not in header]
        if missing:
            raise UsageError(
                f"{path} has no column {' and no column '.join(map(repr, missing))}. Its first line must be a header with "
                f"{', '.join(_NEEDED)} and optionally split, with commas, semicolons or tabs between; it is '{','.join(header):.80}'."
            )
        for record in reader:
            if None in record:
                raise UsageError(f"{path}, line {reader.line_num}: more fields than the header has. Quote names that contain a delimiter.")
            yield reader.line_num, record
    except csv.Error as error:
        raise UsageError(f"cannot read {path}: {error}. It must be CSV.") from error


def _delimiter(text: str) -> str:
    """What the columns of a table are divided by: that with which its header has the columns needed; a comma where none gives them."""
    header = text.partition("\n")[0].partition("\r")[0]
    for delimiter in DELIMITERS:
        if {*_NEEDED} <= {*next(csv.reader([header], delimiter=delimiter), [])}:
            return delimiter
    return ","


def _jsonl(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(_text(path).split("\n"), 1):
        if not line.strip():
            continue
        try:
            record = parse_json(line)
        except ValueError as error:
            raise UsageError(f"{path}, line {number} is not valid JSON, or was cut short: {error}.") from error
        if not isinstance(record, dict) or any(not isinstance(record.get(name, ""), (str, int)) for name in _NEEDED):
            raise UsageError(f'{path}, line {number} is {line:.80}; expected {{"path": "cat/1.jpg", "label": "cat"}}.')
        yield number, record
