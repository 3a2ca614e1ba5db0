"""From an entry and a data root to a data set."""

from __future__ import annotations

from pathlib import Path

from mmrl.data.benchmark.entries import Entry
from mmrl.data.benchmark.published import facts_of, known_split
from mmrl.data.folder import dataset_of
from mmrl.data.images import as_published
from mmrl.data.records import Dataset
from mmrl.data.splits import read_split
from mmrl.errors import UsageError


def read_benchmark(entry: Entry, root: Path, cache: Path | None = None) -> Dataset:
    """The data set of `entry` below the data root: by its split file where that is there, else by the raw layout.

    `own_split` is set where a split is published and the lists are not known to be it (`mmrl.data.benchmark.published`). Images are
    decoded as the authors do, and files are not looked for one by one: a missing one is named when it is read, or by `mmrl data check`.

    Raises:
        UsageError: something of the layout is missing (each path is named), a file or folder cannot be read, or a file is not as it
            should be.
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
        raise UsageError(f"data set '{entry.name}' is not below {root}: there is no folder {folder}. {_advice(entry)}")
    listed = split is not None and split.is_file()
    needed = [*entry.image_folders_of(root), *([] if listed else entry.needs_of(root))]
    missing = [str(path) for path in needed if not path.exists()]
    if missing:
        instead = "" if listed or split is None else f" (with {split} the images are enough)"
        raise UsageError(f"data set '{entry.name}' is not complete: there is no {', no '.join(missing)}{instead}. {_advice(entry)}")
    contents = read_split(split) if listed and split is not None else entry.raw(entry, root, cache)
    trusted = listed and (facts_of(entry.name) is None or known_split(entry.name, contents))  # a set from outside is its maker's affair
    return dataset_of(
        contents, entry.name, entry.images_of(root), template=entry.template, flip=entry.flip,
        own_split=split is not None and not trusted, decode=as_published,
    )  # fmt: skip


def _advice(entry: Entry) -> str:
    return f"`mmrl data check {entry.name}` says what belongs where."
