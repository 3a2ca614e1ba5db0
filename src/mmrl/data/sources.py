"""Everything that is an image, or several: paths, folders, patterns, URLs, PIL images, arrays, tensors, bytes and open files."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from PIL import Image

from mmrl.data.globs import image_files
from mmrl.data.images import file_content
from mmrl.errors import UsageError

KINDS = (
    "a path, a folder, a pattern such as 'photos/*.jpg', a PIL image, an array or a tensor, bytes or an open file, or a list of these"
)
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


class Given(NamedTuple):
    """Images that were handed over: what each can be read from, and whether it was a single one, whose answer is no list."""

    sources: list[Any]
    single: bool

    @property
    def names(self) -> list[str]:
        """What each is called: its path or URL, or for one in memory its number."""
        return [each if isinstance(each, str) else f"image {at}" for at, each in enumerate(self.sources)]


def given_images(images: Any, allow_urls: bool | object = False) -> Given:
    """The images in `images`: a folder stands for the images directly in it, a pattern for the files that match, both sorted by name.

    Args:
        allow_urls: whether an 'http://' or 'https://' text is fetched; an object has limits of its own.

    Raises:
        UsageError: another kind of object, a URL that may not be fetched, a folder or pattern without an image.
    """
    if _is_one(images):
        found = _expanded(images, allow_urls)
        return Given(found, single=len(found) == 1 and not _stands_for_several(images))
    if isinstance(images, Mapping) or hasattr(images, "columns") or not isinstance(images, Iterable):
        column = " Give its column of images." if hasattr(images, "columns") or hasattr(images, "column_names") else ""
        raise UsageError(f"images is of type {type(images).__name__}; pass {KINDS}.{column}")
    return Given([source for each in images for source in _expanded(each, allow_urls)], single=False)


def _is_one(images: Any) -> bool:
    if isinstance(images, (str, bytes, bytearray, memoryview, os.PathLike, Image.Image)) or hasattr(images, "read"):
        return True
    return not hasattr(images, "columns") and getattr(images, "ndim", 0) in (2, 3)


def _stands_for_several(images: Any) -> bool:
    """Whether it is a folder or a pattern, which may well have one image."""
    return isinstance(images, (str, os.PathLike)) and not is_url(images) and image_files(_path(images)) != [_path(images)]


def _path(given: Any) -> str:
    path = os.fspath(given)
    if not isinstance(path, str):
        raise UsageError(f"the path of an image must be a text, not {type(path).__name__}.")
    return path


def _expanded(image: Any, allow_urls: bool | object) -> list[Any]:
    if is_url(image):
        if not allow_urls:
            raise UsageError(f"'{image}' is a URL, and fetching is off: pass allow_urls=True, or download it and pass the file.")
        return [image]
    if isinstance(image, (str, os.PathLike)):
        return list(image_files(_path(image)))
    return [file_content(image) if hasattr(image, "read") else image]


def is_url(text: object) -> bool:
    """Whether it is a text that begins with a scheme, such as https://."""
    return isinstance(text, str) and _SCHEME.match(text) is not None
