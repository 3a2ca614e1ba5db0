"""Image folders as data sets: one subfolder per class, either directly or below train/, val/ and test/."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

from PIL import Image

from mmrl.data.formats import EXTRA, HEIC_ENDINGS, IMAGE_ENDINGS, is_image, is_litter, lacks_extra, say_skipped
from mmrl.data.images import to_rgb
from mmrl.data.records import Contents, Dataset, Item, check_utf8
from mmrl.data.splits import PARTS, class_name, undivided
from mmrl.errors import UsageError
from mmrl.files import near_path
from mmrl.names import name_key
from mmrl.templates import DEFAULT_TEMPLATE, Template

SPLIT_OF = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "test": "test", "testing": "test"}
_LAYOUT = "Expected one subfolder per class with its images in it, e.g. {root}/cat/1.jpg, or the same below {root}/train and {root}/test."


def read_folder(root: Path | str, *, template: Template = DEFAULT_TEMPLATE) -> Dataset:
    """The images below `root`, one subfolder per class; underscores in folder names become spaces.

    With subfolders `train`, `val` and `test` the split follows them (without `test`, `val` is the test set, as in ImageNet; without
    `train` there is nothing to train on, and the classes are those of the test images).
    Without any, a run is tested on the images that it does not train on (`Dataset.rest_tests`). Listings are sorted, hidden
    files, what systems leave beside photos and files without an image extension are skipped, and subfolders of a class belong to it.

    Warns:
        Notice: HEIC photos were skipped, as the library that reads them is not installed.

    Raises:
        UsageError: the folder is missing or empty, a class has no image, two classes have the same name, a test class is not
            among the training classes, a name is not UTF-8, or no file is an image; the message suggests a fix.
    """
    root = Path(root)
    if not _exists(root):
        raise UsageError(f"data folder {root} does not exist.{near_path(root)} Check the path.")
    if not root.is_dir():
        raise UsageError(
            f"{root} is a file, not a folder, nor a .csv, .jsonl or .json that lists images. {_LAYOUT.format(root=root.parent)}"
        )
    folders = subfolders(root)
    if not folders:
        raise UsageError(_no_classes(root))
    splits, skipped = _split_folders(root, folders), list[str]()
    if splits is None:
        groups = {folder: images_below(root, root / folder, skipped) for folder in folders}
        contents = undivided(dict(zip(class_names(folders, root), groups.values())))
    else:
        contents = _read_splits(root, splits, skipped)
    say_skipped(skipped, root)
    return dataset_of(contents, root.resolve().name, root, template=template)


def dataset_of(
    contents: Contents, name: str, images: Path, *, template: Template = DEFAULT_TEMPLATE, flip: bool = True, own_split: bool = False,
    decode: Callable[[Path], Image.Image] = to_rgb,
) -> Dataset:  # fmt: skip
    """A data set of `contents`, whose keys are paths below the folder `images`; `decode` reads an image file as RGB."""
    return Dataset(
        name, contents.classes, template, contents.train, contents.val, contents.test, read=ImagesBelow(images, decode), flip=flip,
        own_split=own_split, rest_tests=contents.rest_tests,
    )  # fmt: skip


def tested_on(dataset: Dataset, folder: Path, images: Path) -> Dataset:
    """`dataset`, a folder or list without test images, with the test images of another folder; its keys are relative to `images`.

    Args:
        folder: one subfolder per class, named as in `dataset`; classes may be missing.

    Raises:
        UsageError: the data set has its own test images, the folder is missing or has no class or no image, or `dataset` does not
            have one of its classes.
    """
    if not dataset.rest_tests:
        raise UsageError(f"'{dataset.name}' has its own test images and cannot be tested on {folder} as well. Leave one of them out.")
    if not folder.is_dir():
        raise UsageError(
            f"test folder {folder} {'is not a folder.' if _exists(folder) else f'does not exist.{near_path(folder)}'} "
            f"{_LAYOUT.format(root=images)}"
        )
    labels = {name_key(name): label for label, name in enumerate(dataset.classes)}
    folders = subfolders(folder)
    if not folders:
        raise UsageError(_no_classes(folder))
    strange = [name for name in folders if name_key(class_name(name)) not in labels]
    if strange:
        known = ", ".join(dataset.classes[:10]) + (", ..." if len(dataset.classes) > 10 else "")
        raise UsageError(f"test folder {folder} has the class '{strange[0]}', which '{dataset.name}' does not have. Its classes: {known}.")
    test, skipped = [], list[str]()
    for name in folders:
        keys = (os.path.relpath(folder / key, images) for key in images_below(folder, folder / name, skipped))
        test += [Item(Path(key).as_posix(), labels[name_key(class_name(name))]) for key in keys]
    say_skipped(skipped, folder)
    both = {item.key for item in dataset.train} & {item.key for item in test}
    if both:
        raise UsageError(f"'{min(both)}' is both in {images} and in the test folder {folder}. Use a folder of other images.")
    return replace(dataset, test=test, rest_tests=False)


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError as error:  # a loop of links, or no permission
        raise UsageError(f"cannot access {path}: {error.strerror or error}. Check the path and its permissions.") from error


class ImagesBelow:
    """Reads the image of a key, a path below `root`, with `decode`."""

    def __init__(self, root: Path, decode: Callable[[Path], Image.Image] = to_rgb) -> None:
        self.root, self.decode = root, decode

    def __call__(self, key: str) -> Image.Image:
        return self.decode(self.root / key)

    def stamp(self, keys: Iterable[str]) -> str:
        """Where the files of `keys` are, how they are decoded, their sizes, and when each was last written."""
        root = self.root.resolve()
        digest = hashlib.sha256(f"{self.decode.__module__}.{self.decode.__qualname__} {root}".encode("utf-8", "surrogateescape"))
        for key in keys:
            try:
                found = os.stat(root / key)
                digest.update(f"{found.st_size} {found.st_mtime_ns} ".encode())
            except OSError:
                digest.update(b"missing ")
        return digest.hexdigest()

    def absent(self, keys: Iterable[str]) -> list[str]:
        """Those of `keys` whose file is not there or empty; nothing is decoded."""
        return [key for key in keys if not has_content(self.root / key)]


def has_content(path: Path) -> bool:
    try:
        found = os.stat(path)
    except OSError:
        return False
    return stat.S_ISREG(found.st_mode) and found.st_size > 0


def subfolders(folder: Path) -> list[str]:
    """Sorted names of the subfolders, without hidden ones and those of systems. Raises UsageError for one that is not UTF-8."""
    try:
        inside = [entry for entry in folder.iterdir() if not entry.name.startswith(".") and not is_litter(entry.name)]
        found = sorted(entry.name for entry in inside if entry.is_dir())
    except OSError as error:
        raise UsageError(f"cannot list folder {folder}: {error.strerror or error}. Check its permissions.") from error
    return [check_utf8(name, f"the name of a folder in {folder}") for name in found]


def _no_classes(root: Path) -> str:
    files = [entry for entry in root.iterdir() if entry.is_file() and not entry.name.startswith(".") and not is_litter(entry.name)]
    if any(entry.suffix.lower() in IMAGE_ENDINGS | HEIC_ENDINGS for entry in files):
        return f"data folder {root} has images but no subfolders, so their classes are unknown. {_LAYOUT.format(root=root)}"
    return f"data folder {root} {'has no subfolder' if files else 'is empty'}. {_LAYOUT.format(root=root)}"


def _split_folders(root: Path, folders: list[str]) -> dict[str, str] | None:
    """The folder of each split if the subfolders are splits: all have a split's name. None otherwise.

    Raises:
        UsageError: all have, and none of them has class folders.
    """
    named = {SPLIT_OF[folder.lower()]: folder for folder in folders if folder.lower() in SPLIT_OF}
    if len(named) < len(folders):
        return None
    if not any(subfolders(root / folder) for folder in folders):
        raise UsageError(f"{root} has only {'/ and '.join(folders)}/, without class folders in it. {_LAYOUT.format(root=root)}")
    if "test" not in named and "val" in named:
        named["test"] = named.pop("val")
    return named


def images_below(root: Path, folder: Path, skipped: list[str] | None = None) -> list[str]:
    """Sorted keys of all images below `folder`; photos that an extra is needed for, which is not installed, are added to `skipped`.

    Raises:
        UsageError: there is none, or a key is not UTF-8.
    """
    keys, other, lacking = [], 0, list[str]()
    for path, below, files in os.walk(folder, followlinks=True, onerror=_refuse):
        above = {place.resolve() for place in (Path(path), *Path(path).parents)}
        below[:] = sorted(
            name for name in below if not (name.startswith(".") or is_litter(name)) and (Path(path) / name).resolve() not in above
        )
        for name in files:
            if name.startswith(".") or is_litter(name):
                continue
            if is_image(name):
                keys.append(check_utf8((Path(path) / name).relative_to(root).as_posix(), f"the name of an image below {root}"))
            elif lacks_extra(name):
                lacking.append(name)
            else:
                other += 1
    if skipped is not None:
        skipped += lacking
    if not keys and lacking:
        raise UsageError(f"class '{class_name(folder.name)}' has {len(lacking)} .HEIC photos and no other: {folder}. To read them: {EXTRA}")
    if not keys:
        what = f"has no image among its {other} files (images end in {', '.join(sorted(IMAGE_ENDINGS))})" if other else "has no image"
        raise UsageError(f"class '{class_name(folder.name)}' {what}: {folder}. Add some, or remove the folder.")
    return sorted(keys)


def _refuse(error: OSError) -> None:
    raise UsageError(f"cannot list folder {error.filename}: {error.strerror}. Check its permissions.") from error


def class_names(folders: Iterable[str], root: Path) -> tuple[str, ...]:
    """Names of the classes whose folders are in `root`. Raises UsageError if two folders name the same class."""
    names: dict[str, str] = {}  # folder by key of its name
    for folder in folders:
        key = name_key(class_name(folder))
        if key in names:
            both = f"folders '{names[key]}' and '{folder}' in {root}"
            raise UsageError(f"{both} both name class '{class_name(folder)}'. Rename or merge them.")
        names[key] = folder
    return tuple(map(class_name, names.values()))


def _read_splits(root: Path, splits: dict[str, str], skipped: list[str]) -> Contents:
    parts: dict[str, list[Item]] = {part: [] for part in PARTS}
    leading = root / (splits.get("train") or splits["test"])  # its folders are the classes
    folders = subfolders(leading)
    classes = class_names(folders, leading)
    for split, place in splits.items():
        here = subfolders(root / place)
        strange = sorted(set(here) - set(folders))
        if strange:
            names = ", ".join(strange[:5])
            raise UsageError(f"{root / place} has classes that {leading} does not have: {names}. Rename, move or remove them.")
        if not here:
            raise UsageError(f"{root / place} has no class folder. {_LAYOUT.format(root=root)}")
        for folder in here:
            parts[split].extend(Item(key, folders.index(folder)) for key in images_below(root, root / place / folder, skipped))
    return Contents(classes, parts["train"], parts["val"], parts["test"], rest_tests="test" not in splits)
