"""Few-shot draws: the training images of a run. The same as CoOp's for the same lists and seeds."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from mmrl.data.records import Dataset, Item, Which, class_ids, relabel
from mmrl.data.splits import json_of_user
from mmrl.errors import MmrlError, UsageError
from mmrl.files import write_json

T = TypeVar("T")
VAL_SHOTS = 4  # at most, per class, for validation


@dataclass(frozen=True)
class Draw:
    """The items of a run, with labels from 0 within its classes. `hash` identifies them, in order."""

    dataset: str
    shots: int
    seed: int
    classes: str
    train: list[Item]
    val: list[Item]

    @property
    def hash(self) -> str:
        """SHA-256 of keys and labels, in hex."""
        picks = {part: [[item.key, item.label] for item in items] for part, items in (("train", self.train), ("val", self.val))}
        return hashlib.sha256(json.dumps(picks, separators=(",", ":"), ensure_ascii=False).encode()).hexdigest()

    def to_json(self) -> dict[str, Any]:
        """Plain data for `from_json`."""
        return {
            "dataset": self.dataset,
            "shots": self.shots,
            "seed": self.seed,
            "classes": self.classes,
            "hash": self.hash,
            "train": [[item.key, item.label] for item in self.train],
            "val": [[item.key, item.label] for item in self.val],
        }

    @classmethod
    def from_json(cls, content: Any, *, where: str = "draw") -> Draw:
        """The draw in `content`.

        Raises:
            MmrlError: it is not what `to_json` writes, or was edited, so that the hash differs.
        """
        try:
            train, val = ([Item(_as(str, key), _as(int, label)) for key, label in content[part]] for part in ("train", "val"))
            name, classes = _as(str, content["dataset"]), _as(str, content["classes"])
            draw = cls(name, _as(int, content["shots"]), _as(int, content["seed"]), classes, train, val)
            written = _as(str, content["hash"])
        except (KeyError, TypeError, ValueError) as error:
            raise MmrlError(f"{where} is damaged: {type(error).__name__} {error}. Draw again.") from error
        if draw.hash != written:
            raise MmrlError(f"{where} was edited: its items have hash {draw.hash[:12]}..., it says {str(written)[:12]}... Draw again.")
        return draw

    def save(self, path: Path) -> None:
        write_json(path, self.to_json())

    @classmethod
    def load(cls, path: Path) -> Draw:
        """The draw saved at `path`. Raises UsageError if the file is missing or not JSON, MmrlError if it is damaged or edited."""
        return cls.from_json(json_of_user(path, "few-shot draw"), where=str(path))


def _as(kind: type[T], value: Any) -> T:
    """`value`, if its type is exactly `kind` (a bool is no int)."""
    if type(value) is not kind:
        raise TypeError(f"{value!r:.80} is no {kind.__name__}")
    return value


def _by_class(items: list[Item]) -> dict[int, list[Item]]:
    """Items by label, the labels in order of first appearance: the order in which the generator is used."""
    groups: dict[int, list[Item]] = {}
    for item in items:
        groups.setdefault(item.label, []).append(item)
    return groups


def _sample(groups: Mapping[int, list[Item]], shots: int, generator: random.Random) -> list[Item]:
    return [item for items in groups.values() for item in (generator.sample(items, shots) if len(items) >= shots else items)]


def _check_enough(dataset: Dataset, groups: Mapping[int, list[Item]], ids: list[int], shots: int) -> None:
    label = min(ids, key=lambda i: len(groups.get(i, ())))
    have = len(groups.get(label, ()))
    if have < shots:
        raise UsageError(
            f"shots is {shots}, but class '{dataset.classes[label]}' of '{dataset.name}' has {have} training images. "
            f"Use at most {have}, or take all images of smaller classes (allow_fewer=True, or --allow-fewer on the command line)."
        )


def labels_drawn(dataset: Dataset, classes: Which | str) -> tuple[Dataset, str, list[int]]:
    """The whole set, which of its classes are drawn ("all", "base" or "novel"), and their labels in it.

    Raises:
        UsageError: `dataset` is already restricted, and `classes` names a part.
    """
    if dataset.source is None or dataset.kept is None:
        return dataset, classes, class_ids(len(dataset.classes), classes)
    if classes != "all":
        raise UsageError(f"'{dataset.name}' is already restricted; draw '{classes}' from the whole set instead.")
    return dataset.source, "base" if dataset.kept[0] == 0 else "novel", list(dataset.kept)


def draw_shots(dataset: Dataset, shots: int, seed: int, classes: Which | str = "all", *, allow_fewer: bool = False) -> Draw:
    """`shots` training images of every class, and min(shots, 4) for validation.

    As in CoOp, images are drawn for all classes and then cut to `classes`, so the base draw is part of the whole one. For the same
    reason, a `dataset` that is already restricted is drawn from its whole set. The same lists give CoOp's images; for ImageNet CoOp
    lists the files in the order of the disk, while the lists here are sorted.

    Args:
        shots: images per class; 0 takes the whole training and validation lists.
        seed: of Python's random generator.
        classes: "all", "base" or "novel".
        allow_fewer: take all images of a class that has fewer than `shots`, as CoOp does, instead of raising an error.

    Raises:
        UsageError: negative `shots`, or a class among those drawn has fewer than `shots` training images; the class is named.
    """
    if shots < 0:
        raise UsageError(f"shots is {shots}; use 1 or more images per class, or 0 for all.")
    whole, classes, ids = labels_drawn(dataset, classes)
    train, val = whole.train, whole.val
    if not train:
        raise UsageError(f"'{whole.name}' has test images only, and nothing can be trained without others. Add some, in a folder train/.")
    if shots > 0:
        groups = _by_class(train)
        if not allow_fewer:
            _check_enough(whole, groups, ids, shots)
        generator = random.Random(seed)
        train = _sample(groups, shots, generator)
        val = _sample(_by_class(val), min(shots, VAL_SHOTS), generator)
    return Draw(whole.name, shots, seed, classes, relabel(train, ids), relabel(val, ids))
