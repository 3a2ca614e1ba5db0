"""From a picture to the tensor that the image tower takes: the transforms of the CoOp family, with a seed per picture.

Pictures stay uint8 until a batch is complete. The batch is then normalised at once, on the device where it is used.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from mmrl.data.central import RESAMPLING, Planes, central, planes_of, resized
from mmrl.errors import UsageError, unknown

CROP_RATIO = (3 / 4, 4 / 3)  # width to height


class Cut(NamedTuple):
    """A crop of an image, in its pixels, and whether it is mirrored."""

    top: int
    left: int
    height: int
    width: int
    mirrored: bool


class Preprocess:
    """Transforms for one image tower. Images in are RGB; tensors out are (3, size, size), float32, normalised.

    Args:
        size: side of the tower's input, pixels.
        mean, std: per channel, for values in [0, 1].
        interpolation: "bicubic", "bilinear" or "nearest"; antialiased.
        flip: whether training images may be mirrored (not for digits and letters).
        crop_scale: smallest and largest share of the area that a training crop covers, as `scale` of torchvision's RandomResizedCrop.

    Raises:
        UsageError: a size below 1, an unknown interpolation, a std that is not above 0, or a crop scale outside (0, 1].
    """

    def __init__(
        self,
        size: int,
        mean: tuple[float, float, float],
        std: tuple[float, float, float],
        interpolation: str = "bicubic",
        *,
        flip: bool = True,
        crop_scale: tuple[float, float] = (0.5, 1.0),
    ) -> None:
        if interpolation not in RESAMPLING:
            raise unknown("interpolation", interpolation, RESAMPLING)
        if size < 1:
            raise UsageError(f"image size must be at least 1, not {size}.")
        if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
            raise UsageError(f"mean and std need three values, std above 0; got mean {mean}, std {std}.")
        if len(crop_scale) != 2 or not 0 < crop_scale[0] <= crop_scale[1] <= 1:
            raise UsageError(f"crop_scale is {crop_scale}; it must be (low, high) with 0 < low <= high <= 1.")
        self.size = size
        self.flip = flip
        self.crop_scale = crop_scale
        self._mode = RESAMPLING[interpolation]
        self._full, self._mean, self._std = (torch.tensor(values).view(-1, 1, 1) for values in ([255.0], mean, std))
        self._on: dict[torch.device, tuple[Tensor, Tensor, Tensor]] = {}

    @property
    def decides(self) -> tuple[int, str]:
        """What decides `central`: the size and the interpolation."""
        return self.size, self._mode.name

    @property
    def decides_varied(self) -> tuple[object, ...]:
        """What decides `varied` besides the seed."""
        return (*self.decides, self.flip, *self.crop_scale, CROP_RATIO)

    def train(self, image: Image.Image, seed: int) -> Tensor:
        """Random resized crop, random horizontal flip, normalise. Depends on `image` and `seed` alone."""
        return self.batch([self.varied(image, seed)])[0]

    def test(self, image: Image.Image) -> Tensor:
        """Resize the shorter side to `size`, crop the centre, normalise. An image of that size is not resampled."""
        return self.batch([self.central(image)])[0]

    def varied(self, image: Image.Image, seed: int) -> Planes:
        """As `train`, but not yet normalised: uint8 (3, size, size)."""
        top, left, height, width, mirrored = self.cut(image.height, image.width, seed)
        out = resized(image.crop((left, top, left + width, top + height)), self.size, self.size, self._mode)
        return planes_of(out.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if mirrored else out)

    def cut(self, height: int, width: int, seed: int) -> Cut:
        """What `varied` takes of an image of that size."""
        generator = random.Random(seed)
        crop = self._crop(height, width, generator)
        return Cut(*crop, self.flip and generator.random() < 0.5)

    def central(self, image: Image.Image) -> Planes:
        """As `test`, but not yet normalised: uint8 (3, size, size)."""
        return central(image, self.size, self._mode)

    def batch(self, planes: Sequence[Planes], device: torch.device | str = "cpu") -> Tensor:
        """A normalised float32 batch (B, 3, size, size) of uint8 images; the same numbers on every device."""
        pixels, device = torch.from_numpy(np.stack(planes)), torch.device(device)
        if device.type == "cuda":
            pixels = pixels.pin_memory().to(device, non_blocking=True)  # the GPU computes on meanwhile
        return self.normalised(pixels.to(device).float())  # uint8 until then: a quarter of the bytes to copy

    def fast_batch(self, crops: Sequence[NDArray[np.uint8]], cuts: Sequence[Cut], device: torch.device | str = "cpu") -> Tensor:
        """As `batch`, of crops (H, W, 3) that are neither resized nor mirrored yet: that is done to all of them at once, on `device`."""
        from mmrl.data.fast import resized

        return self.normalised(resized(crops, cuts, self.size, self._mode, torch.device(device)))

    def normalised(self, pixels: Tensor) -> Tensor:
        """Of float32 (B, 3, size, size), from 0 to 255, in place."""
        full, mean, std = self._constants(pixels.device)
        return pixels.div_(full).sub_(mean).div_(std)  # 255 as a tensor: a GPU divides by a Python number by multiplying with its inverse

    def _constants(self, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """255, mean and std on `device`, copied there once: a copy from memory that is not pinned waits for all that is computed."""
        if device not in self._on:
            full, mean, std = (values.to(device) for values in (self._full, self._mean, self._std))
            self._on[device] = full, mean, std
        return self._on[device]

    def _crop(self, height: int, width: int, generator: random.Random) -> tuple[int, int, int, int]:
        """Top, left, height and width of a crop, chosen as torchvision's RandomResizedCrop does, but from `generator`."""
        for _ in range(10):
            area = height * width * generator.uniform(*self.crop_scale)
            ratio = math.exp(generator.uniform(math.log(CROP_RATIO[0]), math.log(CROP_RATIO[1])))
            w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < w <= width and 0 < h <= height:
                return generator.randint(0, height - h), generator.randint(0, width - w), h, w
        ratio = min(max(width / height, CROP_RATIO[0]), CROP_RATIO[1])  # too wide or too tall: a central crop
        w, h = min(width, round(height * ratio)), min(height, round(width / ratio))
        return (height - h) // 2, (width - w) // 2, max(h, 1), max(w, 1)
