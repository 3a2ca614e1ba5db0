"""Which files are images: by their ending, whether an extra is needed for them, and what systems leave beside photos."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Iterable
from functools import cache
from pathlib import PurePath

from mmrl.errors import Notice

IMAGE_ENDINGS = frozenset({".jpg", ".jpeg", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".avif"})
HEIC_ENDINGS = frozenset({".heic", ".heif"})  # what phones take; Pillow reads it with the extra alone
EXTRA = "pip install 'mmrl[heic]'"
_LITTER = frozenset({".ds_store", "thumbs.db", "ehthumbs.db", "desktop.ini", "__macosx"})


def is_litter(name: str) -> bool:
    """Whether a file or folder of this name was left by a system: macOS' `._*`, `.DS_Store` and `__MACOSX`, Windows' `Thumbs.db`."""
    return name.startswith("._") or name.lower() in _LITTER


def listed_litter(path: str) -> bool:
    """Whether a path of a list leads to what `is_litter`, or through it."""
    return any(map(is_litter, PurePath(path).parts))


def is_image(name: str) -> bool:
    """Whether a file of this name can be read as an image here: not hidden, nor a format whose extra is not installed."""
    ending = PurePath(name).suffix.lower()
    return not name.startswith(".") and not is_litter(name) and (ending in IMAGE_ENDINGS or (ending in HEIC_ENDINGS and reads_heic()))


def lacks_extra(name: str) -> bool:
    """Whether a file of this name is a photo that only the extra `heic`, which is not installed, can read."""
    return not name.startswith(".") and PurePath(name).suffix.lower() in HEIC_ENDINGS and not reads_heic()


@cache
def reads_heic() -> bool:
    """Whether the library of the extra `heic` is installed; if so, Pillow opens such files from now on."""
    if importlib.util.find_spec("pillow_heif") is None:
        return False
    from pillow_heif import register_heif_opener

    register_heif_opener()
    return True


def say_skipped(names: Iterable[str], where: object) -> None:
    """One notice for all files `names` of `where` that were left out for want of the extra; none for none.

    Warns:
        Notice: how many, and what to install.
    """
    count = len(list(names))
    if count:
        warnings.warn(f"skipped {count} .HEIC file{'s' if count > 1 else ''} in {where}: {EXTRA} reads them.", Notice, stacklevel=3)
