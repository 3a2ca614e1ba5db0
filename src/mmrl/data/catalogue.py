"""Data sets by name. Others register theirs without touching this package."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mmrl.data.folder import read_folder
from mmrl.data.mini.sets import MINI_SETS, MiniSet
from mmrl.data.mini.store import mini_dataset
from mmrl.data.records import Dataset
from mmrl.errors import UsageError, unknown

Maker = Callable[[Path | None], Dataset]


@dataclass(frozen=True)
class DatasetInfo:
    """What is known about a set before anything of it is read or drawn. `train`, `val`, `test` count images."""

    name: str
    summary: str
    classes: tuple[str, ...]
    template: str
    train: int
    val: int
    test: int
    same_classes_as: str | None = None  # for a shifted variant: the set whose classes it has


_REGISTRY: dict[str, tuple[Maker, DatasetInfo]] = {}


def register_dataset(name: str, maker: Maker, info: DatasetInfo) -> None:
    """Make `load_dataset(name)` call `maker(cache)`, where cache is a folder it may keep files in, or None.

    Raises:
        UsageError: the name is taken, blank, or looks like a path.
    """
    if name in _REGISTRY:
        raise UsageError(f"data set '{name}' is already registered. Choose another name.")
    if not name.strip() or _like_path(name):
        raise UsageError(f"data set name '{name}' must not be blank nor look like a path.")
    if info.name != name:
        raise UsageError(f"data set '{name}' is registered with the description of '{info.name}'.")
    _REGISTRY[name] = (maker, info)


def dataset_names() -> list[str]:
    """Names that `load_dataset` knows, in order of registration."""
    return list(_REGISTRY)


def describe(name: str) -> DatasetInfo:
    """What is known about the named set. Raises UsageError, with the nearest name, where there is none."""
    if name not in _REGISTRY:
        raise unknown("data set", name, _REGISTRY)
    return _REGISTRY[name][1]


def load_dataset(spec: str, *, root: Path | str | None = None, cache: Path | None = None) -> Dataset:
    """The data set of that name, or the folder of images at that path.

    Args:
        spec: one of `dataset_names()`, or a folder with one subfolder a class.
        root: folder of downloaded sets; the mini sets need none.
        cache: folder for generated images; None keeps them in the process only.

    Raises:
        UsageError: neither a name nor a folder (the nearest name is suggested), or the folder is not laid out as expected.
    """
    if spec in _REGISTRY:
        return _REGISTRY[spec][0](cache)
    path = Path(spec).expanduser()
    if spec.strip() and (path.exists() or _like_path(spec)):
        return read_folder(path)
    error = unknown("data set", spec, _REGISTRY)
    raise UsageError(f"{error} A folder with one subfolder a class works too, but '{spec}' is none.")


def _like_path(spec: str) -> bool:
    return spec.startswith((".", "~")) or os.sep in spec or bool(os.altsep and os.altsep in spec)


def _add_mini(mini: MiniSet) -> None:
    train, val, test = (sum(mini.sizes[split]) for split in ("train", "val", "test"))
    info = DatasetInfo(mini.name, mini.summary, mini.classes, mini.template, train, val, test, mini.same_classes_as)
    register_dataset(mini.name, lambda cache: mini_dataset(mini, cache), info)


for _mini in MINI_SETS.values():
    _add_mini(_mini)
