"""Loading data sets by name, or from a folder or file, and registering new ones."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mmrl import plugins
from mmrl.data.benchmark.entries import ENTRIES
from mmrl.data.benchmark.entry import Entry, read_benchmark
from mmrl.data.folder import ImagesBelow, read_folder, tested_on
from mmrl.data.mini.sets import MINI_SETS, MiniSet
from mmrl.data.mini.store import mini_dataset
from mmrl.data.records import Dataset
from mmrl.data.saved import is_saved, read_saved
from mmrl.data.tables import LIST_ENDINGS, read_list
from mmrl.errors import UsageError, unknown
from mmrl.files import near_path, user_path
from mmrl.templates import Template

ROOT_VARIABLE, CACHE_VARIABLE = "DATA", "MMRL_CACHE"


@dataclass(frozen=True)
class Places:
    """Folders that a maker may use: `root` has the downloaded sets, `cache` may be written to. Either may be None."""

    root: Path | None = None
    cache: Path | None = None

    def root_for(self, name: str) -> Path:
        """The data root, for a set that is read from it.

        Raises:
            UsageError: none was given, or it is not a folder.
        """
        if self.root is None:
            here = f" For the folder '{name}' here, write ./{name}." if Path(name).exists() else ""
            raise UsageError(
                f"data set '{name}' is read from the folder with your data sets, and none was given. "
                f"Pass it with --root (root= in Python), or set the environment variable {ROOT_VARIABLE}.{here}"
            )
        if not self.root.is_dir():
            what = "is a file" if self.root.exists() else "does not exist"
            raise UsageError(f"data root {self.root} {what}. Give the folder with your data sets with --root, or set {ROOT_VARIABLE}.")
        return self.root


Maker = Callable[[Places], Dataset]


@dataclass(frozen=True)
class DatasetInfo:
    """Metadata of a data set, available without reading it.

    Attributes:
        classes: names, by label; empty if only the set's files have them.
        train, val, test: number of images; None if unknown.
        same_classes_as: for a shifted variant, the set with whose classes (or some of them) it is labelled.
        n_classes: number of classes; by default the number of names.
        needs_root: whether it is read from the data root.
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
    """Make `load_dataset(entry.name)` read that set from the data root. Raises UsageError as `register_dataset`."""
    info = DatasetInfo(
        entry.name, entry.summary, (), entry.template, entry.train, entry.val, entry.test, entry.same_classes_as,
        n_classes=entry.classes, needs_root=True,
    )  # fmt: skip
    register_dataset(entry.name, lambda places: read_benchmark(entry, places.root_for(entry.name), places.cache), info)


def dataset_names() -> list[str]:
    """Names of all registered data sets, in order of registration."""
    return list(_REGISTRY)


def dataset_info(name: str) -> DatasetInfo:
    """Metadata of the named data set. Raises UsageError, with the nearest name, if it is unknown."""
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
    """Load a data set by name, or from a folder or file.

    Args:
        spec: one of `dataset_names()`; a folder with one subfolder per class; a CSV or JSONL file of paths and labels; a
            split file (JSON); or a folder written by `save_to_disk` of the library `datasets`.
        root: folder with the downloaded sets, each in its own subfolder; default: the environment variable DATA.
        cache: folder for generated images and for listings of large sets; default: the environment variable MMRL_CACHE,
            without either they are kept in memory only.
        images: for a CSV, JSONL or split file, the folder that its paths are relative to, if not the file's own.
        test: for a folder or list without test images, a folder with test images, one subfolder per class.
        test_share: for the same, the share of each class's images to hold out for testing, such as 0.3. Without either, a run is
            tested on the images that it does not train on.

    Raises:
        UsageError: neither a name nor a path (the nearest name is suggested), no `root` for a set that needs one,
            files that are not laid out as expected, or `test` or `test_share` for a set that has test images.
    """
    spec = str(spec)
    if test is not None and test_share is not None:
        raise UsageError("test and test_share are both given; use one of them.")
    if spec in _REGISTRY:
        if images is not None:
            raise UsageError(f"images= is for files that list images, and '{spec}' is the name of a data set; give root= instead.")
        if test is not None or test_share is not None:
            raise UsageError(f"'{spec}' has its own test images; test and test_share are for folders and lists without test images.")
        return _REGISTRY[spec][0](Places(_folder(root, ROOT_VARIABLE), _folder(cache, CACHE_VARIABLE)))
    if spec.strip() and (_like_path(spec) or user_path(spec).exists()):
        found = _read_path(user_path(spec), user_path(images) if images is not None else None)
        if test is not None:
            return tested_on(found, user_path(test), _images_of(found, user_path(spec)))
        return found if test_share is None else found.divided(test_share)
    raise no_such_data(spec)


def no_such_data(spec: str) -> UsageError:
    """The error for a `spec` that is neither the name of a data set nor a path: a folder or file of a like name is suggested first."""
    near = near_path(user_path(spec)) if spec.strip() else ""
    known = unknown("data set", spec, _REGISTRY, cutoff=0.7)
    if near:
        known = UsageError(f"unknown data set '{spec}'.{near} Data sets known by name: `mmrl data list`.")
    return UsageError(f"{known} There is no folder or file '{spec}' here either.")


def _folder(given: Path | str | None, variable: str) -> Path | None:
    """The folder given, or that of the environment variable, or None."""
    chosen = given or os.environ.get(variable)
    return user_path(chosen) if chosen else None


def _read_path(path: Path, images: Path | None) -> Dataset:
    if path.suffix.lower() in LIST_ENDINGS and not path.is_dir():
        return read_list(path, images=images)
    if images is not None:
        raise UsageError(f"images= is for files that list images; {path} is not one.")
    return read_saved(path) if is_saved(path) else read_folder(path)


def _images_of(dataset: Dataset, path: Path) -> Path:
    """The folder that the keys of `dataset`, read from `path`, are relative to."""
    if not isinstance(dataset.read, ImagesBelow):
        raise UsageError(f"{path} has its images inside its files; save it with a test split, or pass test_share.")
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
plugins.load_installed("mmrl.datasets")
plugins.load()
