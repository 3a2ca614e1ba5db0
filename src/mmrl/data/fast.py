"""Crop, flip, resize and normalise a batch of images at once, on the device that they are used on (`pixels=fast`).

Resampling is linear: an image (H, W) becomes (S, S) by a matrix (S, H) from the left and one (W, S) from the right. Both have Pillow's
weights, so the numbers are Pillow's but for rounding, and a flip is the right matrix with its columns reversed. What is zero in them is
multiplied too: that is cheap where products are.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor

from mmrl.data.decoded import Pixels
from mmrl.data.preprocess import Cut

RADIUS = {Image.Resampling.BICUBIC: 2.0, Image.Resampling.BILINEAR: 1.0}
CUBIC = -0.5  # Pillow's


def resized(crops: Sequence[Pixels], cuts: Sequence[Cut], size: int, mode: Image.Resampling, device: torch.device) -> Tensor:
    """Float32 (B, 3, S, S) with whole numbers from 0 to 255: `crops`, those of `cuts` in their images, resized and flipped."""
    high, wide = max(cut.height for cut in cuts), max(cut.width for cut in cuts)
    padded = torch.zeros(len(crops), high, wide, 3, dtype=torch.uint8)
    for place, crop, cut in zip(padded, crops, cuts, strict=True):
        place[: cut.height, : cut.width] = torch.from_numpy(crop)
    sizes = torch.tensor([[cut.height, cut.width, cut.mirrored] for cut in cuts], dtype=torch.float64).to(device)
    left, right = (_weights(lengths, size, most, mode) for lengths, most in ((sizes[:, 0], high), (sizes[:, 1], wide)))
    right = torch.where(sizes[:, 2, None, None] > 0, right.flip(1), right)
    with torch.autocast(device.type, enabled=False):
        sent = padded.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else padded.to(device)
        pixels = sent.permute(0, 3, 1, 2).float().flatten(1, 2)  # (B, 3 H, W); uint8 is a quarter of the bytes to copy
        across = _whole(pixels @ right.transpose(1, 2)).unflatten(1, (3, high))  # (B, 3, H, S): Pillow, too, rounds in between
        return _whole(left[:, None] @ across)


def _whole(values: Tensor) -> Tensor:
    return values.add_(0.5).floor_().clamp_(0, 255)


def _weights(lengths: Tensor, size: int, most: int, mode: Image.Resampling) -> Tensor:
    """Float32 (B, size, most): how much each of `lengths` (B,) pixels counts for each of `size` new ones."""
    scale = (lengths / size)[:, None, None]
    centre = (torch.arange(size, device=lengths.device, dtype=torch.float64)[:, None] + 0.5) * scale  # (B, size, 1)
    old = torch.arange(most, device=lengths.device, dtype=torch.float64)
    if mode == Image.Resampling.NEAREST:
        return (old == centre.floor()).float()
    wider = scale.clamp(min=1.0)
    reach = RADIUS[mode] * wider
    first, last = (centre - reach + 0.5).trunc().clamp(min=0), torch.minimum((centre + reach + 0.5).trunc(), lengths[:, None, None])
    distance = ((old - centre + 0.5) / wider).abs()
    weight = (1 - distance).clamp(min=0) if mode == Image.Resampling.BILINEAR else _cubic(distance)
    weight = torch.where((old >= first) & (old < last), weight, 0.0)
    return (weight / weight.sum(-1, keepdim=True)).float()


def _cubic(x: Tensor) -> Tensor:
    near = ((CUBIC + 2) * x - (CUBIC + 3)) * x * x + 1
    far = CUBIC * (((x - 5) * x + 8) * x - 4)
    return torch.where(x < 1, near, torch.where(x < 2, far, 0.0))
