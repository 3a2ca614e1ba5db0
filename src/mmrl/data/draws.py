"""Few-shot draws: which training images a run sees. Equal to those of the CoOp family for equal lists and seeds."""

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
VAL_SHOTS = 4  # at most this many a class for validation


@dataclass(frozen=True)
class Draw:
    """Items drawn for a run, labels from 0 within the drawn classes. `hash` identifies the picks, in order."""

    dataset: str
    shots: int
    seed: int
    classes: str
    train: list[Item]
    val: list[Item]

    @property
    def hash(self) -> str:
        """SHA-256 of the picked keys and labels, hex."""
        picks = {part: [[item.key, item.label] for item in items] for part, items in (("train", self.train), ("val", self.val))}
        return hashlib.sha256(json.dumps(picks, separators=(",", ":"), ensure_ascii=False).encode()).hexdigest()

    def to_json(self) -> dict[str, Any]:
        """Plain data that `from_json` takes back."""
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
            MmrlError: it is not what `to_json` writes, or was edited: the hash is another.
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
        """The draw saved at `path`. Raises UsageError where there is none or it is no JSON, MmrlError where it is damaged or edited."""
        return cls.from_json(json_of_user(path, "few-shot draw"), where=str(path))


def _as(kind: type[T], value: Any) -> T:
    """`value`, which must be of this very type (true is no number)."""
    if type(value) is not kind:
        raise TypeError(f"{value!r:.80} is no {kind.__name__}")
    return value


def _by_class(items: list[Item]) -> dict[int, list[Item]]:
    """Items by label; the labels in order of first appearance, which decides what the generator gives to whom."""
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
            f"Ask for at most {have}, or take all of a class that has not enough (allow_fewer=True, or --allow-fewer on the command line)."
        )


def labels_drawn(dataset: Dataset, classes: Which | str) -> tuple[Dataset, str, list[int]]:
    """The whole set, which classes of it are drawn ("all", "base" or "novel"), and their labels there.

    Raises:
        UsageError: `dataset` is restricted already, and `classes` asks for another part.
    """
    if dataset.source is None or dataset.kept is None:
        return dataset, classes, class_ids(len(dataset.classes), classes)
    if classes != "all":
        raise UsageError(f"'{dataset.name}' is already restricted; draw '{classes}' from the whole set instead.")
    return dataset.source, "base" if dataset.kept[0] == 0 else "novel", list(dataset.kept)


def draw_shots(dataset: Dataset, shots: int, seed: int, classes: Which | str = "all", *, allow_fewer: bool = False) -> Draw:
    """`shots` training images of every class, and min(shots, 4) for validation.

    As in CoOp the draw is made from all classes and then cut to `classes`, so the base draw is part of the whole one.
    A `dataset` that is already restricted is drawn from its whole set for the same reason. Equal lists give the CoOp family's
    images; of ImageNet, whose files that family takes in the order of the disk, the lists here are sorted.

    Args:
        shots: images a class; 0 takes the whole training and validation lists.
        seed: of Python's generator.
        classes: "all", "base" or "novel".
        allow_fewer: take all images of a class that has fewer than `shots` (CoOp does) instead of refusing.

    Raises:
        UsageError: negative `shots`, or a class among those drawn has fewer than `shots` training images; the class is named.
    """
    if shots < 0:
        raise UsageError(f"shots is {shots}; give 1 or more images a class, or 0 for all.")
    whole, classes, ids = labels_drawn(dataset, classes)
    train, val = whole.train, whole.val
    if shots > 0:
        groups = _by_class(train)
        if not allow_fewer:
            _check_enough(whole, groups, ids, shots)
        generator = random.Random(seed)
        train = _sample(groups, shots, generator)
        val = _sample(_by_class(val), min(shots, VAL_SHOTS), generator)
    return Draw(whole.name, shots, seed, classes, relabel(train, ids), relabel(val, ids))
