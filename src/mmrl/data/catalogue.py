"""Data sets by name, and files and folders that are one. Others register theirs without touching this package."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mmrl.data.benchmark.entries import ENTRIES, Entry
from mmrl.data.benchmark.read import read_benchmark
from mmrl.data.folder import ImagesBelow, read_folder, tested_on
from mmrl.data.mini.sets import MINI_SETS, MiniSet
from mmrl.data.mini.store import mini_dataset
from mmrl.data.records import Dataset
from mmrl.data.saved import is_saved, read_saved
from mmrl.data.tables import LIST_ENDINGS, read_list
from mmrl.errors import UsageError, unknown
from mmrl.files import user_path
from mmrl.templates import Template

ROOT_VARIABLE, CACHE_VARIABLE = "DATA", "MMRL_CACHE"


@dataclass(frozen=True)
class Places:
    """Where a maker finds and keeps files: `root` has the downloaded sets, `cache` may be written to. Either may be None."""

    root: Path | None = None
    cache: Path | None = None

    def root_for(self, name: str) -> Path:
        """The data root, for the named set that needs one.

        Raises:
            UsageError: none was given, or it is no folder.
        """
        if self.root is None:
            here = f" For the folder '{name}' here, write ./{name}." if Path(name).exists() else ""
            raise UsageError(
                f"data set '{name}' is read from the folder with your data sets, and none was given. "
                f"Give it with --root (root= in Python), or set the environment variable {ROOT_VARIABLE}.{here}"
            )
        if not self.root.is_dir():
            what = "is a file" if self.root.exists() else "does not exist"
            raise UsageError(f"data root {self.root} {what}. Give the folder with your data sets with --root, or set {ROOT_VARIABLE}.")
        return self.root


Maker = Callable[[Places], Dataset]


@dataclass(frozen=True)
class DatasetInfo:
    """What is known about a set before anything of it is read or drawn.

    Attributes:
        classes: names, by label; empty where they are known only from the set's files.
        train, val, test: how many images; None where that is not known.
        same_classes_as: for a shifted variant, the set whose classes (or some of them) it has.
        n_classes: how many classes there are; by default as many as names.
        needs_root: whether it is read from below the data root.
    """

    name: str
    summary: str
    classes: tuple[str, ...]
    template: Template
    train: int | None
    val: int | None
    test: int | None
    same_classes_as: str | None = None
    n_classes: int = 0
    needs_root: bool = False

    def __post_init__(self) -> None:
        if not self.n_classes:
            object.__setattr__(self, "n_classes", len(self.classes))


_REGISTRY: dict[str, tuple[Maker, DatasetInfo]] = {}


def register_dataset(name: str, maker: Maker, info: DatasetInfo) -> None:
    """Make `load_dataset(name)` call `maker(places)`.

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


def register_benchmark(entry: Entry) -> None:
    """Make `load_dataset(entry.name)` read that set from below the data root. Raises UsageError as `register_dataset`."""
    info = DatasetInfo(
        entry.name, entry.summary, (), entry.template, entry.train, entry.val, entry.test, entry.same_classes_as,
        n_classes=entry.classes, needs_root=True,
    )  # fmt: skip
    register_dataset(entry.name, lambda places: read_benchmark(entry, places.root_for(entry.name), places.cache), info)


def dataset_names() -> list[str]:
    """Names that `load_dataset` knows, in order of registration."""
    return list(_REGISTRY)


def describe(name: str) -> DatasetInfo:
    """What is known about the named set. Raises UsageError, with the nearest name, where there is none."""
    if name not in _REGISTRY:
        raise unknown("data set", name, _REGISTRY)
    return _REGISTRY[name][1]


def load_dataset(
    spec: str | Path,
    *,
    root: Path | str | None = None,
    cache: Path | str | None = None,
    images: Path | str | None = None,
    test: Path | str | None = None,
    test_share: float | None = None,
) -> Dataset:
    """The data set of that name, or the one that a folder or file is.

    Args:
        spec: one of `dataset_names()`; a folder with one subfolder a class; a CSV or JSONL file of paths and labels; a
            split file (JSON); or a folder that the library `datasets` has saved to.
        root: folder with the downloaded sets, each in its own subfolder; default: the environment variable DATA.
        cache: folder for generated images and for listings of large sets; default: the environment variable MMRL_CACHE,
            and without it they are kept in the process only.
        images: for a CSV, JSONL or split file, the folder that its paths are relative to, if not the file's own.
        test: for a folder or list without test images, a folder of such, one subfolder a class.
        test_share: for the same, the share of each class's images that are set apart to test, such as 0.3. Without either, the
            images that a training does not draw test it.

    Raises:
        UsageError: neither a name nor a path (the nearest name is suggested), a set that needs a `root` and has none,
            files that are not laid out as expected, or `test` or `test_share` for a set that has test images.
    """
    spec = str(spec)
    if test is not None and test_share is not None:
        raise UsageError("test and test_share are both given; the test images are either a folder's or a share of the others.")
    if spec in _REGISTRY:
        if images is not None:
            raise UsageError(f"images= is for files that list images, and '{spec}' is the name of a data set; give root= instead.")
        if test is not None or test_share is not None:
            raise UsageError(f"'{spec}' has test images of its own; test and test_share are for folders and lists without.")
        return _REGISTRY[spec][0](Places(_folder(root, ROOT_VARIABLE), _folder(cache, CACHE_VARIABLE)))
    if spec.strip() and (_like_path(spec) or user_path(spec).exists()):
        found = _read_path(user_path(spec), user_path(images) if images is not None else None)
        if test is not None:
            return tested_on(found, user_path(test), _images_of(found, user_path(spec)))
        return found if test_share is None else found.divided(test_share)
    error = unknown("data set", spec, _REGISTRY)
    raise UsageError(f"{error} A folder with one subfolder a class works too, but '{spec}' is none.")


def _folder(given: Path | str | None, variable: str) -> Path | None:
    """The folder given, or that of the environment variable, or None."""
    chosen = given or os.environ.get(variable)
    return user_path(chosen) if chosen else None


def _read_path(path: Path, images: Path | None) -> Dataset:
    if path.suffix.lower() in LIST_ENDINGS and not path.is_dir():
        return read_list(path, images=images)
    if images is not None:
        raise UsageError(f"images= is for files that list images; {path} is none.")
    return read_saved(path) if is_saved(path) else read_folder(path)


def _images_of(dataset: Dataset, path: Path) -> Path:
    """The folder that the keys of `dataset`, read from `path`, are relative to."""
    if not isinstance(dataset.read, ImagesBelow):
        raise UsageError(f"{path} holds its images inside; give it a test split, or a share with test_share.")
    return dataset.read.root


def _like_path(spec: str) -> bool:
    return spec.startswith((".", "~")) or spec.lower().endswith(LIST_ENDINGS) or os.sep in spec or bool(os.altsep and os.altsep in spec)


def _add_mini(mini: MiniSet) -> None:
    train, val, test = (sum(mini.sizes[split]) for split in ("train", "val", "test"))
    info = DatasetInfo(mini.name, mini.summary, mini.classes, mini.template, train, val, test, mini.same_classes_as)
    register_dataset(mini.name, lambda places: mini_dataset(mini, places.cache), info)


for _mini in MINI_SETS.values():
    _add_mini(_mini)
for _entry in ENTRIES.values():
    register_benchmark(_entry)
