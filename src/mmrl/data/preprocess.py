"""From a picture to the tensor that the image tower takes: the transforms of the CoOp family, seeded per picture.

A picture stays bytes until its batch is full; then the batch is normalised at once, on the device where it is used.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from mmrl.errors import UsageError, unknown

Planes = NDArray[np.uint8]  # (3, size, size)

RESAMPLING = {mode.name.lower(): mode for mode in (Image.Resampling.BICUBIC, Image.Resampling.BILINEAR, Image.Resampling.NEAREST)}
CROP_SCALE = (0.5, 1.0)  # of the area
CROP_RATIO = (3 / 4, 4 / 3)


class Preprocess:
    """Transforms for one image tower. Images in are RGB; tensors out are (3, size, size), float32, normalised.

    Args:
        size: side of the tower's input, pixels.
        mean, std: per channel, for values in [0, 1].
        interpolation: "bicubic", "bilinear" or "nearest"; antialiased.
        flip: whether training images may be mirrored (not for digits and letters).

    Raises:
        UsageError: a size below 1, an unknown interpolation, or a std that is not above 0.
    """

    def __init__(
        self,
        size: int,
        mean: tuple[float, float, float],
        std: tuple[float, float, float],
        interpolation: str = "bicubic",
        *,
        flip: bool = True,
    ) -> None:
        if interpolation not in RESAMPLING:
            raise unknown("interpolation", interpolation, RESAMPLING)
        if size < 1:
            raise UsageError(f"image size must be at least 1, not {size}.")
        if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
            raise UsageError(f"mean and std need three values, std above 0; got mean {mean}, std {std}.")
        self.size = size
        self.flip = flip
        self._mode = RESAMPLING[interpolation]
        self._full, self._mean, self._std = (torch.tensor(values).view(-1, 1, 1) for values in ([255.0], mean, std))

    def train(self, image: Image.Image, seed: int) -> Tensor:
        """Random resized crop (half to all of the area), mirror, normalise. Decided by `image` and `seed` alone."""
        return self.batch([self.varied(image, seed)])[0]

    def test(self, image: Image.Image) -> Tensor:
        """Resize the shorter side to `size`, crop the centre, normalise. An image of that size stays as it is."""
        return self.batch([self.central(image)])[0]

    def varied(self, image: Image.Image, seed: int) -> Planes:
        """`train` before it is normalised: bytes (3, size, size)."""
        generator = random.Random(seed)
        top, left, height, width = self._crop(image.height, image.width, generator)
        out = self._resized(image.crop((left, top, left + width, top + height)), self.size, self.size)
        if self.flip and generator.random() < 0.5:
            out = out.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return _planes(out)

    def central(self, image: Image.Image) -> Planes:
        """`test` before it is normalised: bytes (3, size, size)."""
        shorter = min(image.size)
        out = self._resized(image, *(self.size if side == shorter else int(self.size * side / shorter) for side in image.size))
        left, top = (round((side - self.size) / 2) for side in out.size)
        return _planes(out.crop((left, top, left + self.size, top + self.size)))

    def batch(self, planes: Sequence[Planes], device: torch.device | str = "cpu") -> Tensor:
        """Normalised images (B, 3, size, size), float32, of bytes; the same numbers on every device."""
        pixels = torch.from_numpy(np.stack(planes)).to(device).float()  # as bytes a quarter of the way to the device
        full, mean, std = (values.to(device) for values in (self._full, self._mean, self._std))
        return pixels.div_(full).sub_(mean).div_(std)  # 255 as a tensor: by a number, a GPU multiplies with the inverse

    def _resized(self, image: Image.Image, width: int, height: int) -> Image.Image:
        return image if image.size == (width, height) else image.resize((width, height), self._mode)

    @staticmethod
    def _crop(height: int, width: int, generator: random.Random) -> tuple[int, int, int, int]:
        """Top, left, height and width of a crop, as torchvision's RandomResizedCrop chooses it but from `generator`."""
        for _ in range(10):
            area = height * width * generator.uniform(*CROP_SCALE)
            ratio = math.exp(generator.uniform(math.log(CROP_RATIO[0]), math.log(CROP_RATIO[1])))
            w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < w <= width and 0 < h <= height:
                return generator.randint(0, height - h), generator.randint(0, width - w), h, w
        ratio = min(max(width / height, CROP_RATIO[0]), CROP_RATIO[1])  # too long or too tall: the middle of it
        w, h = min(width, round(height * ratio)), min(height, round(width / ratio))
        return (height - h) // 2, (width - w) // 2, max(h, 1), max(w, 1)


def _planes(image: Image.Image) -> Planes:
    """(H, W, 3) -> (3, H, W)."""
    return np.ascontiguousarray(np.asarray(image, np.uint8).transpose(2, 0, 1))
