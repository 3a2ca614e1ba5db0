"""The data set type: class names, a prompt template, three lists of items, and a function that reads an image."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import random
import re
from collections.abc import Callable, Iterable
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
    """One image of a data set: its key (a path relative to the set's folder, or a generated name) and its label."""

    key: str
    label: int


@dataclass(frozen=True)
class Contents:
    """The result of a reader: class names by label, and the items of each split in a fixed order; `rest_tests` as in `Dataset`."""

    classes: tuple[str, ...]
    train: list[Item]
    val: list[Item]
    test: list[Item]
    rest_tests: bool = False


@dataclass(frozen=True, eq=False)
class Dataset:
    """A labelled set of images.

    Attributes:
        name: as in results.
        classes: names, by label.
        template: prompt with one `{}` for the class name, or several, which are averaged.
        train, val, test: items, in a fixed order.
        read: returns the image of a key; must be thread-safe. With a method `stamp(keys)`, a text of all that decides their pixels, what
            is computed from them may be kept; with a method `absent(keys)`, those without a file, which are told before a training.
        flip: whether a mirrored image still shows its class (not so for digits and letters).
        kept: if this set is a part of another, for each label its label in `source`.
        source: the whole set that this one is a part of, or None.
        own_split: whether a split is published and this is another one, so that results do not compare with published ones.
        rest_tests: whether there is no test split: `train` has all images, and a run is tested on those that it does not train on
            (`held_out`). `divided` holds out a share of them beforehand.

    Raises:
        UsageError: a template without exactly one `{}`, no class, a name that is repeated or not UTF-8, or a label out of range.
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
    rest_tests: bool = False

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
        """16 hex digits of the SHA-256 of name, classes, template and the three lists of the whole set, without the pixels."""
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

    def stamp(self, items: Iterable[Item]) -> str | None:
        """A text of all that decides the pixels of `items`, in their order; None where the reader does not say."""
        told: Callable[[list[str]], str] | None = getattr(self.read, "stamp", None)
        if told is None:
            return None
        keys = [item.key for item in items]
        return json.dumps([keys, told(keys)])

    def absent(self, items: Iterable[Item]) -> list[Item]:
        """Those of `items` whose files are not there or empty; none where the reader has no `absent`."""
        found: Callable[[list[str]], list[str]] | None = getattr(self.read, "absent", None)
        if found is None:
            return []
        items = list(items)
        keys = {*found([item.key for item in items])}
        return [item for item in items if item.key in keys]

    def held_out(self, drawn: Iterable[Item]) -> Dataset:
        """The set with all images but the `drawn` ones (by key) as its test images; unchanged if it has its own test images."""
        if not self.rest_tests:
            return self
        taken = {item.key for item in drawn}
        return dataclasses.replace(self, test=[item for item in self.train if item.key not in taken], rest_tests=False)

    def divided(self, share: float) -> Dataset:
        """The set with `share` of each class's images held out for testing, chosen by a generator seeded with the class's name.

        Of a class with two or more images at least one is held out, and at least one is left for training.

        Raises:
            UsageError: a share that is not between 0 and 1, or the set has its own test images.
        """
        if not 0 < share < 1:
            raise UsageError(f"test_share is {share}; it must be above 0 and below 1, such as 0.3.")
        if not self.rest_tests:
            raise UsageError(f"'{self.name}' has its own test images, so no share of the others can be held out.")
        groups: dict[int, list[Item]] = {}
        for item in self.train:
            groups.setdefault(item.label, []).append(item)
        test: set[Item] = set()
        for label, items in groups.items():
            shuffled = sorted(items)
            random.Random(self.classes[label]).shuffle(shuffled)
            test.update(shuffled[: min(len(items) - 1, max(1, round(share * len(items))))])
        train = [item for item in self.train if item not in test]
        return dataclasses.replace(self, train=train, test=[item for item in self.train if item in test], rest_tests=False)

    def restrict(self, which: Which | str) -> Dataset:
        """The part with the base or the novel classes, with labels from 0; "all" returns the set itself.

        Raises:
            UsageError: another `which`, this set is already a part, or the part would have no class.
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
    """`name`, if it can be written as UTF-8.

    Raises:
        UsageError: it cannot. `what` starts the message, which shows other bytes escaped, as \\xe9.
    """
    try:
        name.encode()
    except UnicodeEncodeError as error:
        shown = re.sub("[\udc80-\udcff]", lambda byte: f"\\x{ord(byte[0]) - 0xDC00:02x}", f"{what} is not UTF-8: '{name}'. Rename it.")
        raise UsageError(shown.encode(errors="backslashreplace").decode()) from error
    return name


def class_ids(n: int, which: Which | str) -> list[int]:
    """Labels of all, the base or the novel classes out of `n`; base are the first ceil(n / 2), as in CoOp.

    Raises:
        UsageError: `which` is not in `SUBSETS`.
    """
    if which not in SUBSETS:
        raise unknown("classes", which, SUBSETS)
    first = ceil(n / 2)
    return list({"all": range(n), "base": range(first), "novel": range(first, n)}[which])


def relabel(items: list[Item], ids: list[int] | tuple[int, ...]) -> list[Item]:
    """The items whose label is in `ids`, with the position in `ids` as the new label."""
    new = {old: at for at, old in enumerate(ids)}
    return [Item(item.key, new[item.label]) for item in items if item.label in new]
