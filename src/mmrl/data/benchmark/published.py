"""Which split files are the published ones: told by what is in them.

The name tells nothing: where the file is missing, the CoOp family's code draws a split and writes it under the same name.
`published.json` has, for each data set with a published split file, how many images Table 7 counts in each list, and some
entries of the training and validation lists with their places. They come from few-shot draws that were made from the published
files and made public with the images' places in them; `source` names where. No entry of a test list is known: it is only counted.
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

Row = tuple[int, str, int, str]  # place in its list, key, label, class name as the file writes it
_WORDS = {"classes": "classes", "train": "training images", "val": "validation images", "test": "test images"}
_APART = "results do not stand beside the paper's"


@dataclass(frozen=True)
class Facts:
    """What is known of one published split file.

    Attributes:
        source: where `train` and `val` come from.
        counts: classes, and images of each list, as Table 7 has them.
        train, val: entries and their places, from 0.
    """

    source: str
    counts: dict[str, int]
    train: tuple[Row, ...]
    val: tuple[Row, ...]


@cache
def all_facts() -> dict[str, Facts]:
    """What `published.json` says, by data set."""
    written = json.loads(files(__package__).joinpath("published.json").read_text(encoding="utf-8"))

    def rows(known: list[list[Any]]) -> tuple[Row, ...]:
        return tuple((at, key, label, of) for at, key, label, of in known)

    return {name: Facts(known["source"], known["counts"], rows(known["train"]), rows(known["val"])) for name, known in written.items()}


def facts_of(name: str) -> Facts | None:
    """What is known of the data set's published split file; None where none is published, or the set is not the paper's."""
    return all_facts().get(name)


def known_split(name: str, contents: Contents | Dataset) -> bool:
    """Whether these lists are the published ones, as far as known: all counts are right, and every known entry is in its place."""
    return facts_of(name) is not None and not differences(name, contents)


def differences(name: str, contents: Contents | Dataset) -> list[str]:
    """What is otherwise in `contents` than in the published split, a line for each known count and entry."""
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
    """16 hex digits of a SHA-256 over the three lists: each image's key, label and class name, in order."""
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
        kind: "published"; "other", a split file that is not the published one; "drawn here", as there is no split file; "as given",
            where none is published: the lists or folders of the data set's authors, or a set from outside this package.
        file: name of the split file, whether it is there or not; None for a set without one.
        lists: hash of the three lists.
        differences: for "other", what is known to be otherwise, a line each.
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
    """Where `contents` come from.

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
