"""Photos that strangers upload: read within limits, told apart from what is none, and kept without the notes that cameras add."""

from __future__ import annotations

import errno
import hashlib
import io
import re
import unicodedata
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import NamedTuple

from PIL import Image

from mmrl.data import to_rgb
from mmrl.data.benchmark.unpack import MOST_TIMES, NoRoom, unpack
from mmrl.data.folder import SPLIT_OF
from mmrl.data.formats import is_image, is_litter, lacks_extra
from mmrl.data.splits import class_name
from mmrl.errors import MmrlError, UsageError, shortened
from mmrl.files import write_bytes

MIB = 2**20
SHORT, LONG = 1024, 4096  # px of a kept photo's sides, at most: no backbone here sees more of one
THUMBNAIL = 96  # px
QUALITY = 95  # of JPEG, for photos that were made smaller; others are kept as they are, in PNG
_END = b"PK\x05\x06"  # begins the last record of a zip file, of 22 bytes and a comment
_END_64 = b"PK\x06\x07"  # stands 20 bytes before it in one that is too large for an upload
_ENTRY = 1024  # bytes of a file's entry in the list of a zip file, at most
DEEPEST = 8  # folders around the classes' folders
DEEPEST_NAME = 32  # folders around a file: who looks through them, or takes them away, calls itself for each


@dataclass(frozen=True)
class UploadLimits:
    """What one visitor may upload.

    Attributes:
        upload_bytes: of one upload, packed and unpacked.
        kept_bytes: of all photos that are kept.
        photo_bytes, pixels: of one photo.
        photos, classes: in all.
        name: letters of a class name.
        tried: photos that are classified at once.
    """

    upload_bytes: int = 200 * MIB
    kept_bytes: int = 1024 * MIB
    photo_bytes: int = 30 * MIB
    pixels: int = 50_000_000
    photos: int = 2000
    classes: int = 100
    name: int = 100
    tried: int = 24


class Photo(NamedTuple):
    """A photo that is kept: the name of its file below the folder of the photos, what it was called, its bytes, a hash of them, and a small
    JPEG of it."""

    key: str
    title: str
    size: int
    digest: str
    thumbnail: bytes


class Upload(NamedTuple):
    """What an upload holds: files by the name of their class, and sentences on what was left out."""

    groups: dict[str, list[Path]]
    notes: list[str]


def title_of(name: str) -> str:
    """What a file that is called `name` is called in messages."""
    return shortened(_printed(PurePath(name.replace("\\", "/")).name), 60) or "a file without a name"


def checked_name(written: str, limits: UploadLimits) -> str:
    """The class name in what somebody wrote.

    Raises:
        UsageError: it is blank or too long.
    """
    name = " ".join(class_name(_printed(written)).split())
    if not name:
        raise UsageError("The class has no name. Write what is on its photos, such as 'red squirrel'.")
    if len(name) > limits.name:
        raise UsageError(f"The class name '{shortened(name, 60)}' has {len(name)} letters; at most {limits.name} are allowed.")
    return name


def _printed(text: str) -> str:
    """`text` in one line, without what is no letter: control and direction characters, halves of pairs."""
    return "".join(" " if c.isspace() else c for c in text if c.isspace() or not unicodedata.category(c).startswith("C")).strip()


def opened(path: Path, title: str, limits: UploadLimits) -> Image.Image:
    """The photo in a file, as RGB, upright, and no larger than a training can see.

    Raises:
        UsageError: it is none, broken, gone, or larger than the limits; the message has its `title`.
    """
    if lacks_extra(title):
        raise UsageError(f"'{title}' is a HEIC photo, which cannot be read here: save it as JPEG, or install mmrl[heic] on this computer.")
    size = _size(path, title)
    if size > limits.photo_bytes:
        raise UsageError(f"'{title}' has {size / MIB:.0f} MB; a photo may have {limits.photo_bytes / MIB:.0f}.")
    pixels = _pixels(path)
    if pixels > limits.pixels:
        raise UsageError(f"'{title}' has {pixels / 1e6:.0f} million pixels or more; a photo may have {limits.pixels / 1e6:.0f} million.")
    try:
        image = to_rgb(path)
    except UsageError as error:
        raise UsageError(f"'{title}' is broken, or not a photo.") from error
    short, long = min(image.size), max(image.size)
    factor = min(1.0, SHORT / short, LONG / long)
    if factor < 1:
        width, height = (max(1, round(factor * side)) for side in image.size)
        image = image.resize((width, height), Image.Resampling.LANCZOS, reducing_gap=3.0)
        image.info["smaller"] = True
    return image


def _size(path: Path, title: str) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError as error:
        raise UsageError(f"'{title}' was uploaded too long ago and is gone: drop it again.") from error


def _pixels(path: Path) -> int:
    """What the head of the file says; 0 where it says nothing, which `to_rgb` then tells."""
    try:
        with Image.open(path) as head:
            return head.width * head.height
    except Image.DecompressionBombError:
        return 2 * (Image.MAX_IMAGE_PIXELS or 0)  # or more: Pillow does not open it
    except Exception:  # Pillow's readers raise errors of any kind on bad bytes
        return 0


def kept(image: Image.Image, folder: Path, key: str, title: str) -> Photo:
    """Write a photo that was `opened` into `folder`; nothing but its pixels is kept.

    Args:
        key: of it below `folder`, without an ending.
    """
    smaller = bool(image.info.pop("smaller", False))
    image.info.clear()  # such as an ICC profile, which PNG would take along
    content = io.BytesIO()
    image.save(content, "JPEG", quality=QUALITY) if smaller else image.save(content, "PNG", compress_level=1)
    key = f"{key}.{'jpg' if smaller else 'png'}"
    write_bytes(folder / key, content.getvalue())
    return Photo(key, title, content.tell(), hashlib.sha256(content.getvalue()).hexdigest(), thumbnail_of(image))


def thumbnail_of(image: Image.Image) -> bytes:
    """A small JPEG of `image`, cut to a square."""
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    small = image.resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BICUBIC, box=(left, top, left + side, top + side), reducing_gap=2.0)
    content = io.BytesIO()
    small.save(content, "JPEG", quality=80)
    return content.getvalue()


def slug(text: str) -> str:
    """`text` as a part of a file's name."""
    return re.sub(r"[^\w-]+", "_", text)[:40].strip("_") or "x"


def unpacked(archive: Path, into: Path, limits: UploadLimits) -> Upload:
    """The files of a zip with one folder a class, unpacked into the empty folder `into`.

    Folders around those of the classes are passed through, and those of a split (train, val, test) put together.

    Raises:
        UsageError: it is no zip, damaged, gone, or larger than the limits, has a link or a path out of it, or no folders with photos.
    """
    _check_size(archive, limits)
    try:
        unpack(archive, into)
    except MmrlError as error:
        raise UsageError(f"This zip cannot be unpacked: {_why(error)}") from error
    return _classes_in(into)


def _why(error: MmrlError) -> str:
    """What `unpack` found, without the names of this computer's folders."""
    cause = error.__cause__
    if isinstance(error, NoRoom) or (isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT)):
        return "the disk of the computer that runs this page is full."
    if isinstance(cause, OSError):
        return f"a file in it cannot be written here ({cause.strerror}). Rename it, and pack the folders again."
    if cause is None:
        return f"it would become more than {MOST_TIMES} times its size, as photos never do. Pack photos alone."
    return "it is damaged, protected by a password, or holds links. Pack the folders again."


def _check_size(archive: Path, limits: UploadLimits) -> None:
    """Raises UsageError for what is no zip file, or unpacks to more than the limits; its list is read only if it is short."""
    most, packed = limits.photos + limits.classes, _size(archive, title_of(archive.name))
    too_many = f"This zip holds more than {most} files, which are too many. Give at most {limits.photos} photos."
    if packed > limits.upload_bytes:
        raise UsageError(f"This zip is too large: at most {limits.upload_bytes / MIB:.0f} MB are allowed.")
    with archive.open("rb") as file:
        file.seek(max(0, packed - 2**16 - 22))
        tail = file.read()
    at = tail.rfind(_END)
    if at < 0 or len(tail) - at < 22:
        raise UsageError("This file is no zip. Pack one folder a class, with its photos in it, into a .zip file.")
    if tail[max(0, at - 20) :].startswith(_END_64) or int.from_bytes(tail[at + 12 : at + 16], "little") > _ENTRY * most:
        raise UsageError(too_many)
    try:
        with zipfile.ZipFile(archive) as file:
            inside = file.infolist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError, OSError) as error:
        raise UsageError("This zip is damaged. Pack the folders again.") from error
    if sum(not info.is_dir() for info in inside) > most:
        raise UsageError(too_many)
    _check_folders([info.filename for info in inside], most)
    size = sum(info.file_size for info in inside)
    if size > limits.upload_bytes:
        raise UsageError(f"This zip unpacks to {size / MIB:,.0f} MB; at most {limits.upload_bytes / MIB:.0f} MB are allowed.")


def _check_folders(names: list[str], most: int) -> None:
    """Raises UsageError where the entries called `names` make more than `most` folders, or folders too far inside others."""
    deepest = max((name.count("/") for name in names), default=0)
    if deepest > DEEPEST_NAME:
        raise UsageError(f"This zip has {deepest} folders inside each other; at most {DEEPEST_NAME} are allowed. Pack one folder a class.")
    folders = {name[: slash.start()] for name in names for slash in re.finditer("/", name)}
    if len(folders) > most or len(names) > 2 * most:  # the same one may be listed many times
        raise UsageError(f"This zip holds more than {most} folders, which are too many. Pack one folder a class.")


def _classes_in(folder: Path) -> Upload:
    for _ in range(DEEPEST):
        folders, images = _listed(folder)
        if len(folders) != 1 or images or not _listed(folders[0])[0]:
            break
        folder = folders[0]
    if not folders:
        what = "photos, but no folders" if images else "no folders with photos"
        raise UsageError(f"This zip has {what}. It needs one folder a class, named after the class, such as cat/1.jpg and dog/1.jpg.")
    if all(each.name.lower() in SPLIT_OF for each in folders) and any(_listed(each)[0] for each in folders):
        folders = [inner for each in folders for inner in _listed(each)[0]]
    groups: dict[str, list[Path]] = {}
    notes = []
    for each in folders:
        photos, other = list[Path](), 0
        for file in _files_below(each):
            if is_image(file.name) or lacks_extra(file.name):
                photos.append(file)
            else:
                other += 1
        if photos:
            groups.setdefault(each.name, []).extend(photos)
        else:
            notes.append(f"The folder '{title_of(each.name)}' has no photos and was left out.")
        if photos and other:
            notes.append(f"{other} other file{'s' if other > 1 else ''} in '{title_of(each.name)}' left out.")
    if not groups:
        raise UsageError("This zip has no photos in its folders. Photos end in .jpg, .png, .webp and the like.")
    if images:
        notes.append(f"{images} photo{'s' if images > 1 else ''} beside the folders left out, as their class is not known.")
    return Upload(groups, notes)


def _listed(folder: Path) -> tuple[list[Path], int]:
    """Sorted subfolders, and how many images lie beside them."""
    inside = [each for each in folder.iterdir() if not each.name.startswith(".") and not is_litter(each.name)]
    return sorted(each for each in inside if each.is_dir()), sum(each.is_file() and is_image(each.name) for each in inside)


def _files_below(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not any(part.startswith(".") or is_litter(part) for part in path.relative_to(folder).parts):
            yield path
