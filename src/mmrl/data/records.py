"""What a data set is: class names, a prompt, three lists of items, and a way to get an item's image."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from math import ceil
from typing import Literal

from PIL import Image

from mmrl.errors import UsageError, unknown
from mmrl.names import check_names
from mmrl.templates import Template, check_template

Which = Literal["all", "base", "novel"]
SUBSETS: tuple[Which, ...] = ("all", "base", "novel")


@dataclass(frozen=True, order=True, slots=True)
class Item:
    """One image of a data set: its key there (a path relative to the set's folder, or a generated name) and its label."""

    key: str
    label: int


@dataclass(frozen=True)
class Contents:
    """What a reader finds: class names by label, and the items of each part, in a fixed order."""

    classes: tuple[str, ...]
    train: list[Item]
    val: list[Item]
    test: list[Item]


@dataclass(frozen=True, eq=False)
class Dataset:
    """A labelled set of images.

    Attributes:
        name: as in results.
        classes: names, by label.
        template: prompt with one `{}` for the class name, or several, which are averaged.
        train, val, test: items, in a fixed order.
        read: the image of a key; safe to call from several threads.
        flip: whether a mirror image still shows its class (not so for digits and letters).
        kept: for each label its label in `source`, when this set is a part of another.
        source: the whole set that this one is a part of, or None.
        own_split: whether a split is published for it and this is another: results do not stand beside published ones.

    Raises:
        UsageError: a template without exactly one `{}`, no class, a name twice or not UTF-8, or a label outside the classes.
    """

    name: str
    classes: tuple[str, ...]
    template: Template
    train: list[Item]
    val: list[Item]
    test: list[Item]
    read: Callable[[str], Image.Image] = field(repr=False)
    flip: bool = True
    kept: tuple[int, ...] | None = None
    source: Dataset | None = field(default=None, repr=False)
    own_split: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "template", check_template(self.template, of=f" of '{self.name}'"))  # frozen for everyone else
        check_utf8(self.name, "the name of the data set")
        check_names(self.classes, of=f"data set '{self.name}'")
        for name in self.classes:
            check_utf8(name, f"the name of a class of '{self.name}'")
        for item in (*self.train, *self.val, *self.test):
            if not 0 <= item.label < len(self.classes):
                raise UsageError(f"item '{item.key}' of '{self.name}' has label {item.label}; labels go from 0 to {len(self.classes) - 1}.")

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits of a SHA-256 over name, classes, template and the three lists of the whole set; not over the pixels."""
        if self.source is not None:
            return self.source.fingerprint
        digest = hashlib.sha256(json.dumps([self.name, self.classes, self.template]).encode())
        for part in (self.train, self.val, self.test):
            digest.update(json.dumps([len(part)]).encode())
            for item in part:
                digest.update(f"{item.label} {item.key}\0".encode("utf-8", "surrogateescape"))
        return digest.hexdigest()[:16]

    def image(self, item: Item) -> Image.Image:
        """The image of `item`, RGB.

        Raises:
            UsageError: the file is missing, broken or truncated.
        """
        return self.read(item.key)

    def restrict(self, which: Which | str) -> Dataset:
        """The part with the base or the novel classes, labels from 0; "all" is the set itself.

        Raises:
            UsageError: `which` is none of these, this set is already a part, or the part would have no class.
        """
        if which == "all":
            return self
        if self.source is not None:
            part = f"{len(self.classes)} of the {len(self.source.classes)} classes"
            raise UsageError(f"'{self.name}' already has only {part}; restrict the whole set instead.")
        ids = class_ids(len(self.classes), which)
        if not ids:
            raise UsageError(f"'{self.name}' has one class, so it has no novel classes.")
        train, val, test = (relabel(items, ids) for items in (self.train, self.val, self.test))
        names = tuple(self.classes[i] for i in ids)
        return dataclasses.replace(self, classes=names, train=train, val=val, test=test, kept=tuple(ids), source=self)


def check_utf8(name: str, what: str) -> str:
    """`name`, which must be UTF-8, as the files that will hold it are.

    Raises:
        UsageError: it is not; `what` starts the message, in which other bytes stand escaped, as \\xe9.
    """
    try:
        name.encode()
    except UnicodeEncodeError as error:
        shown = re.sub("[\udc80-\udcff]", lambda byte: f"\\x{ord(byte[0]) - 0xDC00:02x}", f"{what} is not UTF-8: '{name}'. Rename it.")
        raise UsageError(shown.encode(errors="backslashreplace").decode()) from error
    return name


def class_ids(n: int, which: Which | str) -> list[int]:
    """Labels of all, the base or the novel ones of `n` classes: base are the first ceil(n / 2), as in CoOp.

    Raises:
        UsageError: `which` is none of `SUBSETS`.
    """
    if which not in SUBSETS:
        raise unknown("classes", which, SUBSETS)
    first = ceil(n / 2)
    return list({"all": range(n), "base": range(first), "novel": range(first, n)}[which])


def relabel(items: list[Item], ids: list[int] | tuple[int, ...]) -> list[Item]:
    """Those of `items` whose label is in `ids`, with its position there as the new label."""
    new = {old: at for at, old in enumerate(ids)}
    return [Item(item.key, new[item.label]) for item in items if item.label in new]
