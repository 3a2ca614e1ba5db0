"""One data set of the benchmark: where its files are below the data root, and how they are read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mmrl.data.benchmark.published import facts_of, known_split
from mmrl.data.folder import dataset_of
from mmrl.data.images import as_published
from mmrl.data.records import Contents, Dataset
from mmrl.data.splits import read_split
from mmrl.errors import UsageError
from mmrl.templates import DEFAULT_TEMPLATE

TERMS = "see the authors' terms"
Reader = Callable[["Entry", Path, "Path | None"], Contents]  # of the raw layout: (entry, data root, cache folder or None)


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One data set below the data root.

    Attributes:
        title: its name in Table 7 of the paper.
        folder: its folder, below the data root.
        images: folder that the items' keys are relative to, below `folder`; "" is `folder` itself.
        image_folders: folders with images, below `folder`; by default only `images`.
        source: authors, title and venue.
        classes, train, val, test: the counts of Table 7; None if it has none.
        split: name of the published split file, below `folder`; None if there is none.
        needs: files of the raw layout besides the images, below `folder`; read if the split file is missing.
        raw: reads the raw layout: (entry, data root, cache folder or None) -> contents.
        same_classes_as: for a shifted variant, the set with whose classes (or some of them) it is labelled.
        flip: whether a mirrored image still shows its class.
    """

    name: str
    title: str
    folder: str
    images: str
    image_folders: tuple[str, ...] = ()
    template: str = DEFAULT_TEMPLATE
    summary: str
    source: str
    licence: str = TERMS
    classes: int
    train: int | None = None
    val: int | None = None
    test: int | None = None
    split: str | None = None
    needs: tuple[str, ...] = ()
    raw: Reader
    same_classes_as: str | None = None
    flip: bool = True

    def folder_of(self, root: Path) -> Path:
        """The folder of the data set."""
        return root / self.folder

    def images_of(self, root: Path) -> Path:
        """The folder that the items' keys are relative to."""
        return self.folder_of(root) / self.images

    def image_folders_of(self, root: Path) -> list[Path]:
        """The folders that hold the images."""
        return [self.folder_of(root) / name for name in self.image_folders or (self.images,)]

    def split_of(self, root: Path) -> Path | None:
        """Path of the published split file, whether it exists or not; None for a set without one."""
        return self.folder_of(root) / self.split if self.split else None

    def needs_of(self, root: Path) -> list[Path]:
        """The files of the raw layout besides the images."""
        return [self.folder_of(root) / name for name in self.needs]


def read_benchmark(entry: Entry, root: Path, cache: Path | None = None) -> Dataset:
    """The data set of `entry` below the data root, from its split file if that exists, otherwise from the raw layout.

    `own_split` is set if a split is published and the lists are not known to be that split (`mmrl.data.benchmark.published`). Images
    are decoded as the authors do. Image files are not checked here: a missing one raises an error when it is read, and
    `mmrl data check` lists them.

    Raises:
        UsageError: a part of the layout is missing (the message names each path), or a file or folder cannot be read or is malformed.
    """
    try:
        return _read(entry, root, cache)
    except OSError as error:  # no permission, links in a circle, a name too long, a bad disk
        place = error.filename or entry.folder_of(root)
        raise UsageError(
            f"data set '{entry.name}' cannot be read: {place}: {error.strerror or error}. Check its permissions and links. {_advice(entry)}"
        ) from error


def _read(entry: Entry, root: Path, cache: Path | None) -> Dataset:
    folder, split = entry.folder_of(root), entry.split_of(root)
    if not folder.is_dir():
        raise UsageError(f"data set '{entry.name}' is not in {root}: there is no folder {folder}. {_advice(entry)}")
    listed = split is not None and split.is_file()
    needed = [*entry.image_folders_of(root), *([] if listed else entry.needs_of(root))]
    missing = [str(path) for path in needed if not path.exists()]
    if missing:
        instead = "" if listed or split is None else f" (with {split}, only the images are needed)"
        raise UsageError(f"data set '{entry.name}' is incomplete: missing {', '.join(missing)}{instead}. {_advice(entry)}")
    contents = read_split(split) if listed and split is not None else entry.raw(entry, root, cache)
    trusted = listed and (facts_of(entry.name) is None or known_split(entry.name, contents))  # registered from outside: not ours to judge
    return dataset_of(
        contents, entry.name, entry.images_of(root), template=entry.template, flip=entry.flip,
        own_split=split is not None and not trusted, decode=as_published,
    )  # fmt: skip


def _advice(entry: Entry) -> str:
    return f"`mmrl data check {entry.name}` shows the expected layout."
