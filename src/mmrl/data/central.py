"""The pixels of a picture that an image tower takes at test: with Pillow and NumPy alone."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Planes = NDArray[np.uint8]  # (3, size, size)
LONGEST = 16  # times the shorter side that the longer one is resized at most: the square is in the midst of it

RESAMPLING = {mode.name.lower(): mode for mode in (Image.Resampling.BICUBIC, Image.Resampling.BILINEAR, Image.Resampling.NEAREST)}


def central(image: Image.Image, size: int, mode: Image.Resampling) -> Planes:
    """The central square of an RGB image whose shorter side is resized to `size`, uint8 (3, size, size). One of that size is not
    resampled."""
    image = middle(image)
    shorter = min(image.size)
    width, height = (size if side == shorter else int(size * side / shorter) for side in image.size)
    out = resized(image, width, height, mode)
    left, top = (round((side - size) / 2) for side in out.size)
    return planes_of(out.crop((left, top, left + size, top + size)))


def middle(image: Image.Image) -> Image.Image:
    """The middle of an image that is more than LONGEST times as long as wide, with the same centre; of others all. A file of some bytes may
    have 1 x 100,000 pixels, and resized as a whole it would take gigabytes."""
    most = LONGEST * min(image.size)
    kept = [min(side, most + (side - most) % 2) for side in image.size]  # as much is cut off at one end as at the other
    left, top = ((side - part) // 2 for side, part in zip(image.size, kept, strict=True))
    return image if (left, top) == (0, 0) else image.crop((left, top, left + kept[0], top + kept[1]))


def resized(image: Image.Image, width: int, height: int, mode: Image.Resampling) -> Image.Image:
    """`image` in that size, antialiased; itself where it has it."""
    return image if image.size == (width, height) else image.resize((width, height), mode)


def planes_of(image: Image.Image) -> Planes:
    """(H, W, 3) -> (3, H, W)."""
    return np.ascontiguousarray(np.asarray(image, np.uint8).transpose(2, 0, 1))
