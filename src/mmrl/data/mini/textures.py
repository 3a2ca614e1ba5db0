"""`mini:textures`: patterned surfaces as photographed: carved, printed or woven, seen at an angle, unevenly lit, worn."""

from __future__ import annotations

import numpy as np

from mmrl.data.mini.light import SIZE, Field, Lamp, Pixels, Rgb, X, Y, apart, blur, finish, noise, rgb
from mmrl.data.mini.primitives import TEXTURES, texture

# The order was shuffled once: the first half are the base classes, the second the novel ones. `speckles` and `smooth
# gradient` are left out: on a worn, unevenly lit surface they are everywhere; `waves`, once worn, look like `zigzag`.
CLASSES: tuple[str, ...] = (
    "polka dots", "horizontal stripes", "fish scales", "spiral", "crosshatch", "bricks", "concentric rings",
    "marble", "vertical stripes", "honeycomb", "zigzag", "rays", "grid lines", "checkerboard", "diagonal stripes",
)  # fmt: skip
assert set(CLASSES) <= set(TEXTURES)

_TONES: tuple[Rgb, ...] = (
    (196, 180, 152), (122, 98, 78), (92, 100, 92), (168, 120, 92), (70, 74, 88), (214, 206, 190), (138, 146, 142),
    (104, 70, 62), (176, 164, 120), (60, 58, 56), (148, 132, 140), (92, 116, 126),
)  # fmt: skip


def _seen(rng: np.random.Generator) -> tuple[Field, Field]:
    """Coordinates (64, 64) on the surface of what each pixel sees: turned, in perspective, bent."""
    angle = rng.normal(0, 0.11)
    x, y = X * np.cos(angle) - Y * np.sin(angle), X * np.sin(angle) + Y * np.cos(angle)
    far = 1 + rng.uniform(-0.22, 0.22) * x + rng.uniform(-0.28, 0.28) * y
    x, y = x / far, y / far
    kind = rng.random()
    if kind < 0.3:  # wrapped round a post
        x = x + rng.uniform(0.08, 0.2) * x**3
    elif kind < 0.55:  # a cushion
        x, y = (side * (1 + rng.uniform(0.05, 0.15) * (x**2 + y**2)) for side in (x, y))
    else:  # cloth that does not lie flat
        x, y = x + 0.13 * (noise(rng, 4, 4) - 0.5), y + 0.13 * (noise(rng, 4, 4) - 0.5)
    return (x + rng.uniform(-0.2, 0.2)).astype(np.float32), (y + rng.uniform(-0.2, 0.2)).astype(np.float32)


def _two_tones(rng: np.random.Generator) -> tuple[Field, Field]:
    for _ in range(8):
        a, b = (rgb(_TONES[i], rng) for i in rng.choice(len(_TONES), 2, replace=False))
        if apart(a, b) > 0.17:
            break
    return a, b


def _wear(image: Field, rng: np.random.Generator) -> Field:
    """Dirt, faded patches and a few scratches."""
    image = image * (0.82 + 0.36 * noise(rng, 4, 4))[..., None]
    dirt = np.clip(noise(rng, 9, 9) * 2 - 1.5, 0, 0.22)
    image = image * (1 - dirt)[..., None]
    for _ in range(int(rng.integers(0, 3))):
        angle = rng.uniform(0, np.pi)
        away = np.abs(X * np.cos(angle) + Y * np.sin(angle) - rng.uniform(-0.8, 0.8) + 0.05 * noise(rng, 6, 6))
        image = image + 0.16 * (np.exp(-((away * 45) ** 2)) * (noise(rng, 5, 5) > 0.45))[..., None]
    return image


def draw(label: int, rng: np.random.Generator) -> Pixels:
    """One picture (64, 64, 3) of class `CLASSES[label]`."""
    x, y = _seen(rng)
    field = texture(CLASSES[label], x, y, rng, rng.uniform(2.8, 5.2))
    a, b = _two_tones(rng)
    image = a + (b - a) * (field * rng.uniform(0.55, 1))[..., None]
    relief = blur(field, 0.7) * rng.uniform(0.5, 1.8) * rng.choice([-1, 1]) + 0.35 * noise(rng, SIZE // 2, SIZE // 2)
    lamp = Lamp.draw(rng, 0.5, 1.0)
    diffuse, shine = lamp.on(relief, gloss=14)
    image = image * (0.35 + 0.65 * np.minimum(diffuse, 1.5))[..., None] + 0.12 * rng.random() * shine[..., None]
    spot = 1.05 - 0.26 * ((X - rng.uniform(-0.7, 0.7)) ** 2 + (Y - rng.uniform(-0.7, 0.7)) ** 2) * rng.uniform(0.2, 1)
    return finish(_wear(image, rng) * spot[..., None], rng, vignette=0.14, softness=0.4, grain=0.025)
