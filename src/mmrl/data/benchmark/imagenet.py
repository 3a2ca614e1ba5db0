"""ImageNet and its variants: one folder per class, named by WordNet id, or by the class's number.

Listings are sorted, so draws are the same on every disk. CoOp lists ImageNet's files in the order of the disk, so its ImageNet draws
cannot be reproduced on another one.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from mmrl.data.benchmark.entry import Entry
from mmrl.data.folder import subfolders
from mmrl.data.formats import IMAGE_ENDINGS
from mmrl.data.records import Contents, Item, check_utf8
from mmrl.data.splits import class_name
from mmrl.errors import MmrlError, UsageError
from mmrl.files import read_json, read_regular, write_json
from mmrl.names import distinct_names


def whole(entry: Entry, root: Path, cache: Path | None) -> Contents:
    """ImageNet itself: labels follow the order of the folders in images/train; images/val is the test set; no validation set."""
    names = _names(entry, root)
    folders = _known(subfolders(entry.images_of(root) / "train"), names, entry, root)
    labels = {folder: label for label, folder in enumerate(folders)}
    _check_val(entry, root, folders)
    train, test = (_items(entry.images_of(root), split, labels, cache) for split in ("train", "val"))
    return Contents(tuple(names[folder] for folder in folders), train, [], test)


def _check_val(entry: Entry, root: Path, folders: list[str]) -> None:
    """Raises UsageError if images/val has other class folders than images/train."""
    train, val = (entry.images_of(root) / split for split in ("train", "val"))
    here = subfolders(val)
    strange, missing = sorted(set(here) - set(folders)), sorted(set(folders) - set(here))
    if strange:
        raise UsageError(f"{val} has '{strange[0]}', which {train} does not have.")
    if missing:
        flat = sum(_is_image(name) for name in os.listdir(val))
        outside = f", but {flat:,} images outside class folders" if flat else ""
        raise UsageError(
            f"{val} has no folder for {len(missing)} of the {len(folders)} classes, such as {missing[0]}{outside}. Move {val.name}/ away, "
            f"and run `mmrl data prepare {entry.name} --from FOLDER` with ILSVRC2012_img_val.tar and ILSVRC2012_devkit_t12.tar.gz in "
            "FOLDER: it puts each image into the folder of its class."
        )


def variant(entry: Entry, root: Path, cache: Path | None) -> Contents:
    """A test set whose folders are WordNet ids; its classes are those with a folder."""
    names = _names(entry, root)
    folders = _known(subfolders(entry.images_of(root)), names, entry, root)
    items = _items(entry.images_of(root), "", {folder: label for label, folder in enumerate(folders)}, cache)
    return Contents(tuple(names[folder] for folder in folders), [], [], items)


def numbered(entry: Entry, root: Path, cache: Path | None) -> Contents:
    """A test set whose folders are the labels of ImageNet, from 0."""
    names = {str(position): name for position, name in enumerate(_names(entry, root).values())}
    folders = sorted(_known(subfolders(entry.images_of(root)), names, entry, root), key=int)
    items = _items(entry.images_of(root), "", {folder: label for label, folder in enumerate(folders)}, cache)
    return Contents(tuple(names[folder] for folder in folders), [], [], items)


def _names(entry: Entry, root: Path) -> dict[str, str]:
    """Class name by WordNet id, sorted by id, from the lines `n01440764 tench` of classnames.txt.

    CLIP's names for ImageNet have "missile", "sunglasses" and others twice. The second becomes `missile (2)`, which prompts write as
    "missile" (`mmrl.names`): the two prompts are the same, as in the authors' runs, but results tell the classes apart.
    """
    (path,) = entry.needs_of(root)
    try:
        text = read_regular(path, what="list of class names").decode("utf-8")
        lines = [line.split(maxsplit=1) for line in text.splitlines() if line.strip()]
        written = {folder: class_name(name) for folder, name in sorted(lines)}
    except ValueError as error:
        raise UsageError(f"cannot read {path}: {error}. It needs lines like 'n01440764 tench'.") from error
    return dict(zip(written, distinct_names(written.values()), strict=True))


def _known(folders: list[str], names: dict[str, str], entry: Entry, root: Path) -> list[str]:
    if not folders:
        raise UsageError(
            f"{entry.title} has no class folder below {entry.images_of(root)}. `mmrl data check {entry.name}` says what belongs there."
        )
    strange = [folder for folder in folders if folder not in names]
    if strange:
        raise UsageError(
            f"{len(strange)} of {len(folders)} class folders of {entry.title} have no name in {entry.needs_of(root)[0]}, "
            f"such as '{strange[0]}'. Add lines like 'n01440764 tench', or remove the folders."
        )
    return folders


def _items(images: Path, below: str, labels: dict[str, int], cache: Path | None) -> list[Item]:
    """Items of the class folders in `images`/`below`; subfolders of a class are ignored."""
    prefix = f"{below}/" if below else ""
    listing = list_classes(images / below, list(labels), cache)
    return [Item(f"{prefix}{folder}/{file}", label) for folder, label in labels.items() for file in listing[folder]]


def list_classes(place: Path, folders: list[str], cache: Path | None) -> dict[str, list[str]]:
    """Sorted names of the image files in each of `folders` of `place`.

    The names are cached in the folder `cache`, if given, so that the 1.28 million files of ImageNet are listed only once. A class
    folder is listed again if its modification time has changed.

    Raises:
        UsageError: a folder has no image, or an image name is not UTF-8.
    """
    file = cache / f"listing-{hashlib.sha256(str(place.resolve()).encode()).hexdigest()[:16]}.json" if cache else None
    kept = _kept(file)
    listing: dict[str, list[str]] = {}
    fresh: dict[str, tuple[int, list[str]]] = {}
    for folder in folders:
        changed = (place / folder).stat().st_mtime_ns
        then, names = kept.get(folder, (None, []))
        if then != changed:
            what = f"the name of an image in {place / folder}"
            names = sorted(check_utf8(name, what) for name in os.listdir(place / folder) if _is_image(name))
        if not names:
            raise UsageError(f"class folder {place / folder} has no image. Add some, or remove the folder.")
        listing[folder] = names
        fresh[folder] = (changed, names)
    if file is not None and fresh != kept:
        write_json(file, {"folder": str(place.resolve()), "sha256": _digest(fresh), "classes": fresh}, compact=True)
    return listing


def _digest(classes: Mapping[str, tuple[int, Sequence[str]]]) -> str:
    digest = hashlib.sha256()
    for folder, (then, names) in classes.items():
        digest.update("\0".join((folder, str(then), *names, "")).encode())
    return digest.hexdigest()


def _is_image(name: str) -> bool:
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in IMAGE_ENDINGS


def _kept(file: Path | None) -> dict[str, tuple[int, list[str]]]:
    """Content of a listing file; empty if it is missing or damaged, in which case it is rewritten."""
    if file is None or not file.is_file():
        return {}
    try:
        content = read_json(file, what="listing")
        classes = {folder: (int(then), list(names)) for folder, (then, names) in content["classes"].items()}
        return classes if _digest(classes) == content["sha256"] else {}
    except (MmrlError, KeyError, TypeError, ValueError, AttributeError):
        return {}
