"""Checking a data set of the benchmark: which files are missing, by their exact paths, and how to get them."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from mmrl.data.benchmark.entry import Entry, read_benchmark
from mmrl.data.benchmark.published import Split, split_of
from mmrl.data.benchmark.sources import COOP, pieces_of
from mmrl.data.parallel import ordered, usual_workers
from mmrl.data.records import Dataset, Item
from mmrl.data.splits import PARTS
from mmrl.errors import MmrlError, UsageError
from mmrl.files import user_path

Progress = Callable[[int, int], None]  # images checked, images in total


@dataclass
class Report:
    """The result of checking one data set.

    Attributes:
        state: "ready", "partly" (something is missing or wrong) or "absent" (nothing was found).
        found, missing: files and folders, full paths. Images that exist are not listed.
        counts: for "classes" and each split the number found, and the number in Table 7 of the paper (None if it has none).
        split: where the lists come from, with their hash; None if they could not be read.
        problems: what is wrong with the files found.
        unreadable: images that cannot be decoded, full paths; checked only with `deep`.
        notes: further remarks, no errors.
        fixes: how to get or repair what is missing or wrong.
    """

    name: str
    folder: str
    state: Literal["ready", "partly", "absent"] = "absent"
    found: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    counts: dict[str, tuple[int, int | None]] = field(default_factory=dict)
    split: Split | None = None
    problems: list[str] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    fixes: list[str] = field(default_factory=list)

    @property
    def ready(self) -> bool:
        return self.state == "ready"

    def lacks(self, target: Path) -> bool:
        """Whether `target`, or a file in it, is missing or cannot be read."""
        inside = str(target / "_")[:-1]
        return any(path == str(target) or path.startswith(inside) for path in (*self.missing, *self.unreadable))


def data_root(given: Path | str | None) -> Path:
    """The folder with the data sets: `given`, or the environment variable DATA.

    Raises:
        UsageError: neither is set, or it is not a folder.
    """
    root = given or os.environ.get("DATA")
    if not root:
        raise UsageError("the folder with the data sets is not set. Pass it with --root, or set the environment variable DATA.")
    place = user_path(root)
    if not os.path.isdir(place):
        raise UsageError(f"data root {root} is not a folder. Pass the one that contains caltech-101/, oxford_pets/, ..., or create it.")
    return place


def check_dataset(
    entry: Entry, root: Path, *, deep: bool = False, workers: int | None = None, cache: Path | None = None, progress: Progress | None = None
) -> Report:
    """Check that every file that `entry` needs exists below the data root `root`.

    Args:
        deep: also decode every image.
        workers: number of decoding threads; default: one per core, at most 8.
        cache: folder in which to cache the listing of ImageNet.
        progress: called after each decoded image.
    """
    report = Report(entry.name, str(entry.folder_of(root)))
    split = entry.split_of(root)
    listed = split is not None and os.path.isfile(split)
    lists = [split] if listed and split is not None else entry.needs_of(root)
    for path in (*entry.image_folders_of(root), *lists):
        (report.found if _is_there(path) else report.missing).append(str(path))
    if report.found and not report.missing:
        try:
            dataset = read_benchmark(entry, root, cache)
            report.split = split_of(entry.name, entry.split, listed, dataset)
            _count(report, entry, dataset)
            there = _look_for_images(report, dataset, entry.images_of(root))
            if deep:
                _decode(report, dataset, there, entry.images_of(root), workers or usual_workers(), progress)
        except (MmrlError, OSError) as error:
            report.problems.append(str(error))
    if report.found:
        report.state = "partly" if report.missing or report.problems or report.unreadable else "ready"
    _advise(report, entry, root)
    return report


def _is_there(path: Path) -> bool:
    """Whether it is a file or a folder that is not empty."""
    try:
        return path.is_file() or (path.is_dir() and any(path.iterdir()))
    except OSError:  # such as no permission
        return True  # reading it will give the reason


def _look_for_images(report: Report, dataset: Dataset, images: Path) -> list[Item]:
    """Record the images that are missing below the folder `images`; returns the others."""
    items = sorted({item for part in PARTS for item in getattr(dataset, part)})
    missing = _missing(images, (item.key for item in items))
    report.missing += [str(images / key) for key in sorted(missing)]
    return [item for item in items if item.key not in missing]


def _decode(report: Report, dataset: Dataset, items: list[Item], images: Path, workers: int, progress: Progress | None) -> None:
    """Record the images that cannot be decoded."""

    def broken(item: Item) -> bool:
        try:
            dataset.image(item)
        except UsageError:
            return True
        return False

    for done, (item, bad) in enumerate(zip(items, ordered(broken, items, workers, ahead=4 * workers)), start=1):
        if bad:
            report.unreadable.append(str(images / item.key))
        if progress is not None:
            progress(done, len(items))


def _missing(images: Path, keys: Iterable[str]) -> set[str]:
    """The `keys` that are not files below `images`. Each folder is listed once; no file is opened."""
    by_folder: dict[str, set[str]] = defaultdict(set)
    for key in keys:
        folder, slash, name = key.rpartition("/")
        by_folder[folder + slash].add(name)
    missing = set()
    for folder, names in by_folder.items():
        missing |= {folder + name for name in names - _files_in(images / folder)}
    return missing


def _files_in(folder: Path) -> set[str]:
    """Names of the files in `folder`; empty if it does not exist. Raises UsageError if it cannot be listed."""
    if not os.path.isdir(folder):
        return set()
    try:
        with os.scandir(folder) as found:
            return {entry.name for entry in found if _is_file(entry)}
    except OSError as error:
        raise UsageError(f"folder {folder} cannot be listed: {error.strerror or error}. Check its permissions.") from error


def _is_file(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_file()
    except OSError:  # such as a link to itself
        return False


def _count(report: Report, entry: Entry, dataset: Dataset) -> None:
    report.counts["classes"] = (len(dataset.classes), entry.classes)
    for part in PARTS:
        report.counts[part] = (len(getattr(dataset, part)), getattr(entry, part))
    words = {"classes": "classes", "train": "training images", "val": "validation images", "test": "test images"}
    other = [f"{have:,} of the {printed:,} {words[kind]}" for kind, (have, printed) in report.counts.items() if printed not in (None, have)]
    if other:
        report.notes.append(f"has {', '.join(other)} of Table 7")


def _advise(report: Report, entry: Entry, root: Path) -> None:
    """Add the fixes: which files to get from where, and the command that puts them in place."""
    if report.ready:
        return
    folder = entry.folder_of(root)
    get: dict[str, list[str]] = {}
    for piece in pieces_of(entry):
        if report.lacks(folder / piece.target) and piece.wanted not in get.get(piece.home, ()):
            get.setdefault(piece.home, []).append(piece.wanted)
    report.fixes += [f"get {', '.join(files)} from {home}" for home, files in get.items()]
    split = entry.split_of(root)
    lacking = report.problems or not all(os.path.exists(path) for path in entry.needs_of(root))
    if split is not None and not os.path.isfile(split) and lacking:
        report.fixes.append(f"or, instead of {' and '.join(entry.needs)}: {split.name} from {COOP}, the published split")
    if report.unreadable:
        report.fixes.append("remove the images that cannot be read")
    if report.problems:
        report.fixes.append("repair or remove the file that the problem names")
    if get:
        report.fixes.append(f"put them into {folder} and run: mmrl data prepare {entry.name} --root {root}")
    elif report.missing:
        report.fixes.append("put the missing files at the paths above")
