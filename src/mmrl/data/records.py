"""What a data set is: class names, a prompt, three lists of items, and a way to get an item's image."""

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
    """One image of a data set: its key there (a path relative to the set's folder, or a generated name) and its label."""

    key: str
    label: int


@dataclass(frozen=True)
class Contents:
    """What a reader finds: class names by label, and the items of each part, in a fixed order; `rest_tests` as in `Dataset`."""

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
        read: the image of a key; safe to call from several threads.
        flip: whether a mirror image still shows its class (not so for digits and letters).
        kept: for each label its label in `source`, when this set is a part of another.
        source: the whole set that this one is a part of, or None.
        own_split: whether a split is published for it and this is another: results do not stand beside published ones.
        rest_tests: whether nobody said which images test: `train` has all of them, and those that a training does not draw are its test
            images (`held_out`); `divided` sets a share of them apart beforehand.

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

    def held_out(self, drawn: Iterable[Item]) -> Dataset:
        """The set with the images that are not `drawn` (by key) as its test images; itself where it has test images of its own."""
        if not self.rest_tests:
            return self
        taken = {item.key for item in drawn}
        return dataclasses.replace(self, test=[item for item in self.train if item.key not in taken], rest_tests=False)

    def divided(self, share: float) -> Dataset:
        """The set with `share` of each class's images set apart to test, in an order that the class's name decides.

        At least one image of a class tests, where it has two, and one stays to train on.

        Raises:
            UsageError: a share that is not between 0 and 1, or the set has test images of its own.
        """
        if not 0 < share < 1:
            raise UsageError(f"test_share is {share}; it must be above 0 and below 1, such as 0.3.")
        if not self.rest_tests:
            raise UsageError(f"'{self.name}' has test images of its own, so no share of the others can be set apart for that.")
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
