"""Train, validation and test lists: read from a split file, or divided here if there is none.

Split files are those of CoOp: JSON with lists of [path, label, class name] under train, val and test.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmrl.data.records import Contents, Item, check_utf8
from mmrl.errors import UsageError
from mmrl.files import parse_json, read_regular

PARTS = ("train", "val", "test")
Row = tuple[str, int, str]  # key, label, class name
_SHAPE = 'Expected {"train": [["forest/1.jpg", 0, "forest"], ...], "val": [...], "test": [...]}.'


def class_name(written: str) -> str:
    """The class name of a folder or list entry: underscores become spaces."""
    return written.replace("_", " ").strip()


def check_key(key: str, where: str) -> str:
    """`key`, if it is a relative path with forward slashes that stays inside the folder it is relative to.

    Only the text is checked; symbolic links are followed.

    Raises:
        UsageError: it is blank, absolute, contains '..' or a backslash, or is not UTF-8; `where` starts the message.
    """
    if not key.strip(" ./"):
        raise UsageError(f"{where}: the path of the image is '{key}'. Give a path relative to the image folder.")
    if re.match(r"/|[A-Za-z]:[/\\]", key):
        raise UsageError(f"{where}: path '{key}' is absolute. Give it relative to the image folder.")
    if ".." in key.split("/") or "\\" in key or "\0" in key:
        raise UsageError(f"{where}: path '{key}' must stay inside the image folder: no '..', and '/' between folders.")
    return check_utf8(key, f"{where}: the path of the image")


def contents_of(rows: Mapping[str, Iterable[Row]], where: str) -> Contents:
    """The contents with the given rows of "train", "test" and optionally "val".

    Raises:
        UsageError: `check_key` fails, a label has two names or a name two labels, labels have a gap, a class has no training
            image, or there is no test image at all; `where` starts the message.
    """
    names: dict[int, str] = {}
    labels: dict[str, int] = {}
    parts: dict[str, list[Item]] = {part: [] for part in PARTS}
    for part in PARTS:
        for number, (key, label, written) in enumerate(rows.get(part, ())):
            name = class_name(written)
            if part != "train" and label not in names:
                raise UsageError(f"{where}: '{key}' in {part} has class '{name}' (label {label}), which has no training image.")
            if names.setdefault(label, name) != name:
                raise UsageError(f"{where}: label {label} is called both '{names[label]}' and '{name}' ('{key}'). Give it one name.")
            if labels.setdefault(name, label) != label:
                raise UsageError(f"{where}: class '{name}' has both label {labels[name]} and label {label} ('{key}'). Give it one label.")
            parts[part].append(Item(check_key(key, f"{where}, {part}[{number}]"), label))
    for part in ("train", "test"):
        if not parts[part]:
            raise UsageError(f"{where}: there is no {part} image.")
    gap = next((label for label in range(len(names)) if label not in names), None)
    if gap is not None:
        raise UsageError(f"{where}: no image has label {gap}, but there are {len(names)} classes up to label {max(names)}. Count from 0.")
    return Contents(tuple(names[label] for label in range(len(names))), parts["train"], parts["val"], parts["test"])


def read_split(path: Path) -> Contents:
    """The contents of a split file. "val" may be missing.

    Raises:
        UsageError: it is missing, not valid JSON, has another structure, or `contents_of` fails.
    """
    content = json_of_user(path, "split file")
    if not isinstance(content, dict) or not {"train", "test"} <= set(content) or not set(content) <= set(PARTS):
        what = f"has {', '.join(map(repr, content)) or 'nothing'}" if isinstance(content, dict) else f"holds a {type(content).__name__}"
        raise UsageError(f"split file {path} {what}. {_SHAPE}")
    return contents_of({part: _rows(path, part, rows) for part, rows in content.items()}, f"split file {path}")


def json_of_user(path: Path, what: str) -> Any:
    """Content of a JSON file given by the user. Raises UsageError if it is missing or not valid JSON."""
    content = read_regular(path, what=what)
    try:
        return parse_json(content)
    except ValueError as error:
        raise UsageError(f"{what} {path} is not valid JSON, or was cut short: {error}. Replace the file.") from error


def _rows(path: Path, part: str, rows: Any) -> list[Row]:
    if not isinstance(rows, list):
        raise UsageError(f"split file {path}: '{part}' is a {type(rows).__name__}, not a list. {_SHAPE}")
    return [_row(row, f"split file {path}, {part}[{number}]") for number, row in enumerate(rows)]


def _row(row: Any, where: str) -> Row:
    if not isinstance(row, list) or len(row) != 3:
        raise UsageError(f"{where} is {row!r:.80}; expected [path, label, class name].")
    key, label, name = row
    if not isinstance(key, str) or type(label) is not int or not isinstance(name, str) or label < 0 or not name.strip():
        raise UsageError(f"{where} is {row!r:.80}; expected a path, a label of 0 or more, and a class name.")
    return key, label, name


def divide(groups: Mapping[str, Sequence[str]], sizes: Callable[[int], tuple[int, int]]) -> Contents:
    """Shuffle each class's keys with a generator seeded by the class's name, and cut them into train, val and test.

    Args:
        groups: keys by class name, in the order of the labels.
        sizes: from the number of a class's keys to the sizes of train and val; the rest is test.
    """
    parts: dict[str, list[Item]] = {part: [] for part in PARTS}
    for label, (name, keys) in enumerate(groups.items()):
        shuffled = sorted(keys)
        random.Random(name).shuffle(shuffled)
        train, val = sizes(len(keys))
        cuts = (shuffled[:train], shuffled[train : train + val], shuffled[train + val :])
        for part, chosen in zip(PARTS, cuts):
            parts[part].extend(Item(key, label) for key in sorted(chosen))
    return Contents(tuple(groups), parts["train"], parts["val"], parts["test"])


def family_sizes(n: int) -> tuple[int, int]:
    """Sizes of train and val for 50/20/30, rounded as CoOp does, but a class of two or three also has a test image."""
    train = max(1, round(n * 0.5))
    return train, max(0, min(round(n * 0.2), n - train - 1))


def undivided(groups: Mapping[str, Iterable[str]]) -> Contents:
    """Contents without a test split (`rest_tests`), from keys by class name, in the order of the labels."""
    train = [Item(key, label) for label, keys in enumerate(groups.values()) for key in sorted(keys)]
    return Contents(tuple(groups), train, [], [], rest_tests=True)


def test_of_val(parts: Mapping[str, list[Row]]) -> dict[str, list[Row]]:
    """`parts`, with what validates as the test set where there is no other."""
    if parts.get("test"):
        return dict(parts)
    return {"train": parts.get("train", []), "test": parts.get("val", [])}


test_of_val.__test__ = False  # type: ignore[attr-defined]  # pytest would collect it by its name


def hold_out(rows: Iterable[Row]) -> dict[str, list[Row]]:
    """Move a fifth of each class's training rows to "val"; at least one row per class stays in "train"."""
    groups: dict[tuple[int, str], list[Row]] = {}
    for row in sorted(rows):
        groups.setdefault(row[1:], []).append(row)
    parts: dict[str, list[Row]] = {"train": [], "val": []}
    for (_, name), group in sorted(groups.items()):
        shuffled = list(group)
        random.Random(name).shuffle(shuffled)
        held = min(round(len(group) * 0.2), len(group) - 1)
        parts["val"] += sorted(shuffled[:held])
        parts["train"] += sorted(shuffled[held:])
    return parts
