"""Recognising the published split files by their content.

The file name is not enough: if the file is missing, CoOp's code draws a split and writes it under the same name. For each data set with a
published split file, `published.json` has the sizes of its lists as in Table 7, and some entries of the training and validation lists with
their positions. They come from few-shot draws made from the published files and published with those positions; `source` says where. No
entry of a test list is known, so only its size is checked.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from typing import Any, Literal

from mmrl.data.records import Contents, Dataset
from mmrl.data.splits import PARTS, class_name

Row = tuple[int, str, int, str]  # position in its list, key, label, class name as in the file
_WORDS = {"classes": "classes", "train": "training images", "val": "validation images", "test": "test images"}
_APART = "results do not compare with the paper's"


@dataclass(frozen=True)
class Facts:
    """What is known of one published split file.

    Attributes:
        source: where `train` and `val` come from.
        counts: number of classes, and of images in each list, as in Table 7.
        train, val: entries with their positions, from 0.
    """

    source: str
    counts: dict[str, int]
    train: tuple[Row, ...]
    val: tuple[Row, ...]


@cache
def all_facts() -> dict[str, Facts]:
    """Content of `published.json`, by data set."""
    written = json.loads(files(__package__).joinpath("published.json").read_text(encoding="utf-8"))

    def rows(known: list[list[Any]]) -> tuple[Row, ...]:
        return tuple((at, key, label, of) for at, key, label, of in known)

    return {name: Facts(known["source"], known["counts"], rows(known["train"]), rows(known["val"])) for name, known in written.items()}


def facts_of(name: str) -> Facts | None:
    """What is known of the data set's published split file; None if none is published, or the set is not one of the paper's."""
    return all_facts().get(name)


def known_split(name: str, contents: Contents | Dataset) -> bool:
    """Whether these lists are the published ones, as far as known: all counts and all known entries agree."""
    return facts_of(name) is not None and not differences(name, contents)


def differences(name: str, contents: Contents | Dataset) -> list[str]:
    """Differences between `contents` and the published split, one line for each known count or entry."""
    facts = facts_of(name)
    if facts is None:
        return []
    sizes = {what: len(getattr(contents, what)) for what in facts.counts}
    found = [f"{sizes[what]:,} {_WORDS[what]}, not {count:,}" for what, count in facts.counts.items() if sizes[what] != count]
    for part in PARTS[:2]:
        items = getattr(contents, part)
        for at, key, label, written in getattr(facts, part):
            known, here = _entry(key, label, class_name(written)), "nothing"
            if at < len(items):
                here = _entry(items[at].key, items[at].label, contents.classes[items[at].label])
            if here != known:
                found.append(f"{part}[{at}] is {here}, not {known}")
    return found


def _entry(key: str, label: int, name: str) -> str:
    return f"'{key}' (label {label}, '{name}')"


def lists_hash(contents: Contents | Dataset) -> str:
    """16 hex digits of the SHA-256 of the three lists: key, label and class name of each image, in order."""
    digest = hashlib.sha256()
    for part in PARTS:
        items = getattr(contents, part)
        digest.update(f"{part} {len(items)}\0".encode())
        for item in items:
            digest.update(f"{item.key}\0{item.label}\0{contents.classes[item.label]}\0".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()[:16]


@dataclass(frozen=True)
class Split:
    """Where the lists of a data set come from.

    Attributes:
        kind: "published"; "other", a split file that is not the published one; "drawn here", if the split file is missing; "as given",
            if none is published: the authors' lists or folders, or a set registered from outside this package.
        file: name of the split file, whether it exists or not; None for a set without one.
        lists: hash of the three lists.
        differences: for "other", the known differences, one line each.
    """

    kind: Literal["published", "other", "drawn here", "as given"]
    file: str | None
    lists: str
    differences: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        hashed = f"lists' hash {self.lists}"
        if self.kind == "other":
            n = len(self.differences)
            differ = f"{n} known {'entries or counts differ' if n > 1 else 'entry or count differs'}, the first: {self.differences[0]}"
            return f"{self.file} is not the published one ({hashed}; {differ}): {_APART}"
        if self.kind == "drawn here":
            return f"drawn here, as there is no {self.file} ({hashed}): {_APART}"
        given = f"as {self.file} says" if self.file else "as its authors give it"
        return f"{'published' if self.kind == 'published' else given} ({hashed})"


def split_of(name: str, file: str | None, there: bool, contents: Contents | Dataset) -> Split:
    """The `Split` of `contents`.

    Args:
        name: of the data set.
        file: name of its split file, None for a set without one.
        there: whether `contents` were read from that file.
    """
    lists = lists_hash(contents)
    if file is None or (there and facts_of(name) is None):
        return Split("as given", file, lists)
    if not there:
        return Split("drawn here", file, lists)
    found = differences(name, contents)
    return Split("other", file, lists, found) if found else Split("published", file, lists)
