"""From an entry and a data root to a data set."""

from __future__ import annotations

from pathlib import Path

from mmrl.data.benchmark.entries import Entry
from mmrl.data.folder import dataset_of
from mmrl.data.records import Dataset
from mmrl.data.splits import read_split
from mmrl.errors import UsageError


def read_benchmark(entry: Entry, root: Path, cache: Path | None = None) -> Dataset:
    """The data set of `entry` below the data root: by its published split file where that is there, else by the raw layout.

    Image files are not looked for one by one: a missing one is named when it is read, or by `mmrl data check`.

    Raises:
        UsageError: something of the layout is missing (each path is named), or a file of it is not as it should be.
    """
    folder, split = entry.folder_of(root), entry.split_of(root)
    if not folder.is_dir():
        raise UsageError(f"data set '{entry.name}' is not below {root}: there is no folder {folder}. {_advice(entry)}")
    published = split is not None and split.is_file()
    needed = [*entry.image_folders_of(root), *([] if published else entry.needs_of(root))]
    missing = [str(path) for path in needed if not path.exists()]
    if missing:
        instead = "" if published or split is None else f" (with {split} the images are enough)"
        raise UsageError(f"data set '{entry.name}' is not complete: there is no {', no '.join(missing)}{instead}. {_advice(entry)}")
    contents = read_split(split) if published and split is not None else entry.raw(entry, root, cache)
    own = split is not None and not published
    return dataset_of(contents, entry.name, entry.images_of(root), template=entry.template, flip=entry.flip, own_split=own)


def _advice(entry: Entry) -> str:
    return f"`mmrl data check {entry.name}` says what belongs where."
