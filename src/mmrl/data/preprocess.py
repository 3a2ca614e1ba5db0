"""From a picture to the tensor that the image tower takes: the transforms of the CoOp family, seeded per picture."""

from __future__ import annotations

import math
import random

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from mmrl.errors import UsageError, unknown

INTERPOLATIONS = {mode.value: mode for mode in (InterpolationMode.BICUBIC, InterpolationMode.BILINEAR, InterpolationMode.NEAREST)}
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
        if interpolation not in INTERPOLATIONS:
            raise unknown("interpolation", interpolation, INTERPOLATIONS)
        if size < 1:
            raise UsageError(f"image size must be at least 1, not {size}.")
        if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
            raise UsageError(f"mean and std need three values, std above 0; got mean {mean}, std {std}.")
        self.size = size
        self.flip = flip
        self.mode = INTERPOLATIONS[interpolation]
        self._mean = torch.tensor(mean).view(3, 1, 1)
        self._std = torch.tensor(std).view(3, 1, 1)

    def train(self, image: Image.Image, seed: int) -> Tensor:
        """Random resized crop (half to all of the area), mirror, normalise. Decided by `image` and `seed` alone."""
        generator = random.Random(seed)
        top, left, height, width = self._crop(image.height, image.width, generator)
        out = F.resized_crop(image, top, left, height, width, [self.size, self.size], self.mode, antialias=True)
        if self.flip and generator.random() < 0.5:
            out = F.horizontal_flip(out)
        return self._tensor(out)

    def test(self, image: Image.Image) -> Tensor:
        """Resize the shorter side to `size`, crop the centre, normalise. An image of that size stays as it is."""
        if min(image.size) != self.size:
            image = F.resize(image, [self.size], self.mode, antialias=True)
        if image.size != (self.size, self.size):
            image = F.center_crop(image, [self.size, self.size])
        return self._tensor(image)

    def _tensor(self, image: Image.Image) -> Tensor:
        pixels = torch.from_numpy(np.array(image, np.uint8)).permute(2, 0, 1)  # (3, H, W)
        return (pixels.float() / 255 - self._mean) / self._std

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
