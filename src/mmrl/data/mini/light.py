"""Light, shadow, backdrops and the camera: what the renderers of the mini benchmark share.

Images are float32 (64, 64, 3) in about [0, 1] until `finish` turns them into bytes; lengths are in pixels, x to the
right and y down.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Field = NDArray[Any]  # floats; numpy mixes float32 and float64 too freely for the types to say which
Pixels = NDArray[np.uint8]
Rgb = tuple[int, int, int]

SIZE = 64
Y, X = np.mgrid[-1 : 1 : SIZE * 1j, -1 : 1 : SIZE * 1j].astype(np.float32)  # y first, as in the arrays
_ROW, _COLUMN = np.mgrid[0:SIZE, 0:SIZE].astype(np.float32)

BACKDROPS: dict[str, tuple[Rgb, ...]] = {
    "wood": ((150, 111, 74), (181, 140, 98), (104, 76, 54), (206, 178, 140)),
    "fabric": ((92, 104, 120), (168, 160, 146), (116, 126, 110), (198, 190, 182), (72, 76, 90), (150, 130, 124)),
    "stone": ((150, 148, 142), (106, 108, 112), (188, 182, 172), (70, 70, 74)),
    "paper": ((228, 222, 208), (200, 196, 186), (176, 160, 132)),
    "felt": ((78, 98, 72), (64, 84, 94), (110, 92, 84), (58, 58, 62)),
}


@lru_cache(maxsize=128)
def _kernel(size: int, quarters: int) -> Field:
    distance = np.subtract.outer(np.arange(size), np.arange(size)).astype(np.float32)
    kernel = np.exp(-0.5 * (distance * 4 / quarters) ** 2)
    return (kernel / kernel.sum(1, keepdims=True)).astype(np.float32)


def blur(field: Field, sigma: float) -> Field:
    """Gaussian blur of a square field (H, H) or (H, H, C); sigma in pixels, rounded to quarters."""
    kernel = _kernel(field.shape[0], max(1, round(sigma * 4)))
    if field.ndim == 2:
        return kernel @ field @ kernel.T
    return np.stack([kernel @ field[..., c] @ kernel.T for c in range(field.shape[2])], -1)


def noise(rng: np.random.Generator, rows: int, columns: int) -> Field:
    """Smooth noise (64, 64), about [0, 1], with the given number of cells down and across."""
    grid = Image.fromarray(rng.random((rows, columns), np.float32))
    return np.asarray(grid.resize((SIZE, SIZE), Image.Resampling.BICUBIC), np.float32)


def shift(field: Field, dx: float, dy: float) -> Field:
    """`field` (H, W) moved by whole pixels, zeros coming in."""
    h, w = field.shape
    x, y = round(dx), round(dy)
    out = np.zeros_like(field)
    out[max(y, 0) : h + min(y, 0), max(x, 0) : w + min(x, 0)] = field[max(-y, 0) : h + min(-y, 0), max(-x, 0) : w + min(-x, 0)]
    return out


def rgb(colour: Rgb, rng: np.random.Generator, spread: float = 0.03) -> Field:
    """`colour` (0 to 255) as (3,) in [0, 1], each channel disturbed by `spread`."""
    return np.clip(np.array(colour, np.float32) / 255 + rng.normal(0, spread, 3), 0.03, 1).astype(np.float32)


def apart(first: Field, second: Field) -> float:
    """How well two colours (3,) can be told apart: 0 equal, about 1 for black and white."""
    weight = np.array([0.35, 0.5, 0.15], np.float32)
    return float(np.sqrt((weight * (first - second) ** 2).sum()))


class Lamp:
    """A directional light. `azimuth` in radians on the image (where it stands), `elevation` in radians above it."""

    def __init__(self, azimuth: float, elevation: float) -> None:
        flat = np.cos(elevation)
        self.x, self.y, self.z = float(flat * np.cos(azimuth)), float(flat * np.sin(azimuth)), float(np.sin(elevation))
        half = np.array([self.x, self.y, self.z + 1])
        self.half = half / np.linalg.norm(half)

    @classmethod
    def draw(cls, rng: np.random.Generator, low: float = 0.6, high: float = 1.05) -> Lamp:
        """A lamp somewhere above the upper edge."""
        return cls(rng.uniform(-2.7, -0.45), rng.uniform(low, high))

    def on(self, height: Field, gloss: float = 20.0) -> tuple[Field, Field]:
        """Diffuse (1 on a level surface) and specular light, each (H, W), on a surface of the given height in pixels."""
        down, right = np.gradient(height)
        length = np.sqrt(1 + down**2 + right**2)
        diffuse = np.maximum(self.z - self.x * right - self.y * down, 0) / (length * self.z)
        facing = np.maximum(self.half[2] - self.half[0] * right - self.half[1] * down, 0) / length
        return diffuse.astype(np.float32), (facing**gloss).astype(np.float32)

    def shadow(self, mask: Field, tall: float, softness: float) -> Field:
        """Shadow (H, W) in [0, 1] of something with outline `mask` and height `tall` pixels, cast on what lies under it."""
        reach = tall / self.z
        return blur(shift(mask, -self.x * reach, -self.y * reach), softness)


def inflate(mask: Field, roundness: float, tall: float) -> Field:
    """Height field (64, 64) in pixels of a soft body with outline `mask`; `roundness` in pixels from the rim to the top."""
    inside = mask * (0.4 * blur(mask, roundness / 2) + 0.6 * blur(mask, roundness))
    return blur(tall * np.clip((inside - 0.4) / 0.6, 0, 1) ** 0.6, 0.6)


def _grain(rng: np.random.Generator, amount: float) -> Field:
    return rng.standard_normal((SIZE, SIZE), np.float32) * np.float32(amount)


def _wood(rng: np.random.Generator) -> Field:
    streak = noise(rng, 22, 3)
    tone = 0.86 + 0.2 * streak + 0.05 * np.sin(2 * np.pi * (3.5 * noise(rng, 5, 2) + Y * 2))
    plank = rng.uniform(20, 40)
    seam = np.abs((_ROW + rng.uniform(0, plank)) % plank - plank / 2) < 0.6
    tone = np.where(seam, tone * 0.72, tone)
    return tone if rng.random() < 0.6 else tone.T


def _fabric(rng: np.random.Generator) -> Field:
    period = rng.uniform(2.6, 4.2)
    weave = np.sin(_ROW * 2 * np.pi / period) * np.sin(_COLUMN * 2 * np.pi / period)
    return 0.88 + 0.07 * weave + 0.3 * (noise(rng, 3, 5) - 0.4)


def _stone(rng: np.random.Generator) -> Field:
    return 0.72 + 0.25 * noise(rng, 5, 5) + 0.2 * noise(rng, 13, 13) + 0.1 * noise(rng, 30, 30) + _grain(rng, 0.02)


def _paper(rng: np.random.Generator) -> Field:
    fold = np.abs(X * np.cos(angle := rng.uniform(0, np.pi)) + Y * np.sin(angle) - rng.uniform(-0.6, 0.6))
    return 0.97 + 0.05 * noise(rng, 24, 24) - 0.07 * np.exp(-((fold * 22) ** 2)) + _grain(rng, 0.012)


def _felt(rng: np.random.Generator) -> Field:
    return 0.8 + 0.25 * noise(rng, 32, 32) + 0.15 * noise(rng, 6, 6) + _grain(rng, 0.05)


_MAKERS = {"wood": _wood, "fabric": _fabric, "stone": _stone, "paper": _paper, "felt": _felt}


def backdrop(rng: np.random.Generator, kinds: tuple[str, ...], avoid: Field | None = None, least: float = 0.26) -> Field:
    """A surface (64, 64, 3) of one of `kinds`, its colour at least `least` away from `avoid` (3,) where that can be had."""
    best, far, chosen = None, -1.0, kinds[0]
    for _ in range(6):
        kind = kinds[rng.integers(len(kinds))]
        tones = BACKDROPS[kind]
        tone = rgb(tones[rng.integers(len(tones))], rng)
        distance = apart(tone, avoid) if avoid is not None else 1.0
        if distance > far:
            best, far, chosen = tone, distance, kind
        if far >= least:
            break
    slope = rng.uniform(0, 0.22) * (X * rng.normal(0, 0.7) + Y * rng.normal(0, 0.7))
    return ((_MAKERS[chosen](rng) + slope)[..., None] * best).astype(np.float32)


def over(image: Field, colour: Field, alpha: Field) -> Field:
    """`colour` (3,) or (64, 64, 3) laid over `image` where `alpha` (64, 64) says."""
    return image * (1 - alpha[..., None]) + colour * alpha[..., None]


def finish(image: Field, rng: np.random.Generator, *, vignette: float = 0.22, softness: float = 0.35, grain: float = 0.02) -> Pixels:
    """What a camera does: vignette, white balance, a little blur and grain. (64, 64, 3) floats to bytes."""
    image = image * (1 - vignette * rng.uniform(0.4, 1) * (X**2 + Y**2)[..., None])
    image = image * (rng.uniform(0.9, 1.1) * (1 + rng.normal(0, 0.025, 3))).astype(np.float32)
    if softness:
        image = blur(image, softness)
    image = image + _grain(rng, grain * rng.uniform(0.5, 1.5))[..., None]
    return to_bytes(image)


def to_bytes(image: Field) -> Pixels:
    return np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8)
