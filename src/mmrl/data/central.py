"""The pixels of a picture that an image tower takes at test: with Pillow and NumPy alone."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Planes = NDArray[np.uint8]  # (3, size, size)

RESAMPLING = {mode.name.lower(): mode for mode in (Image.Resampling.BICUBIC, Image.Resampling.BILINEAR, Image.Resampling.NEAREST)}


def central(image: Image.Image, size: int, mode: Image.Resampling) -> Planes:
    """The central square of an RGB image whose shorter side is resized to `size`, uint8 (3, size, size). One of that size is not
    resampled."""
    shorter = min(image.size)
    width, height = (size if side == shorter else int(size * side / shorter) for side in image.size)
    out = resized(image, width, height, mode)
    left, top = (round((side - size) / 2) for side in out.size)
    return planes_of(out.crop((left, top, left + size, top + size)))


def resized(image: Image.Image, width: int, height: int, mode: Image.Resampling) -> Image.Image:
    """`image` in that size, antialiased; itself where it has it."""
    return image if image.size == (width, height) else image.resize((width, height), mode)


def planes_of(image: Image.Image) -> Planes:
    """(H, W, 3) -> (3, H, W)."""
    return np.ascontiguousarray(np.asarray(image, np.uint8).transpose(2, 0, 1))
