"""`mini:objects`: coloured things, modelled in relief, lit by one lamp, lying on wood, cloth or stone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from mmrl.data.mini.light import SIZE, Field, Lamp, Pixels, Rgb, apart, backdrop, finish, inflate, noise, over, rgb
from mmrl.data.mini.primitives import COLOURS, HOLES, OUTLINES, transform

# Five colours of four shapes each, ten shapes of two colours each: neither tells the class alone. The order was shuffled
# once: the first half are the base classes, the second the novel ones.
PAIRS: tuple[tuple[str, str], ...] = (
    ("orange", "house"), ("green", "fish"), ("red", "diamond"), ("red", "star"), ("orange", "fish"),
    ("blue", "crescent"), ("red", "arrow"), ("blue", "cross"), ("purple", "house"), ("green", "heart"),
    ("orange", "flower"), ("purple", "diamond"), ("purple", "heart"), ("purple", "cross"), ("green", "star"),
    ("blue", "ring"), ("orange", "arrow"), ("blue", "flower"), ("red", "ring"), ("green", "crescent"),
)  # fmt: skip
CLASSES: tuple[str, ...] = tuple(f"{colour} {shape}" for colour, shape in PAIRS)


@dataclass(frozen=True)
class Look:
    """How the pictures of a set are taken. Ranges are (low, high)."""

    scale: tuple[float, float] = (0.55, 0.82)
    tilt: float = 0.25  # standard deviation of the rotation, radians
    squeeze: tuple[float, float] = (0.72, 1.05)  # foreshortening
    backdrops: tuple[str, ...] = ("wood", "fabric", "stone", "paper")
    lamp: tuple[float, float] = (0.6, 1.05)  # elevation, radians
    exposure: tuple[float, float] = (0.9, 1.1)
    warmth: float = 0.0  # above 0: warmer light
    softness: float = 0.35
    grain: float = 0.02


PLAIN = Look()
RESAMPLED = Look(
    scale=(0.42, 0.72), tilt=0.42, squeeze=(0.62, 1.0), backdrops=("felt", "stone", "fabric"), lamp=(0.42, 0.8),
    exposure=(0.72, 1.05), warmth=0.09, softness=0.55, grain=0.035,
)  # fmt: skip


def outline(shape: str, *, scale: float, angle: float, squeeze: float, centre: tuple[float, float]) -> Field:
    """Coverage (64, 64) in [0, 1] of the named shape; `scale` and `centre` in half image sides."""
    image = Image.new("L", (2 * SIZE, 2 * SIZE))
    draw = ImageDraw.Draw(image)
    for points, fill in ((OUTLINES[shape], 255), (HOLES.get(shape), 0)):
        if points is not None:
            placed = transform(points, scale=scale, angle=angle, squeeze=squeeze, centre=centre)
            draw.polygon([(float(x), float(y)) for x, y in (placed + 1) * SIZE], fill=fill)
    return np.asarray(image.reduce(2), np.float32) / 255


def place(shape: str, rng: np.random.Generator, look: Look, wander: float = 0.95) -> Field:
    """Coverage (64, 64) of the shape, somewhere inside the picture, turned and foreshortened as `look` says."""
    scale = rng.uniform(*look.scale)
    room = max(0.0, wander - scale)
    centre = (rng.uniform(-room, room), rng.uniform(-room, room))
    return outline(shape, scale=scale, angle=rng.normal(0, look.tilt), squeeze=rng.uniform(*look.squeeze), centre=centre)


def solid(image: Field, mask: Field, colour: Field, lamp: Lamp, rng: np.random.Generator) -> Field:
    """`image` with a body of outline `mask` (64, 64) and `colour` (3,) standing on it, in the light of `lamp`."""
    glossy = rng.random() < 0.5
    tall = rng.uniform(4.5, 8.5)
    height = inflate(mask, rng.uniform(2.0, 5.0), tall)
    if not glossy:
        height = height + 0.5 * mask * noise(rng, 16, 16)  # clay, not plastic
    diffuse, shine = lamp.on(height, gloss=rng.uniform(16, 40))
    ambient = rng.uniform(0.4, 0.55)
    light = ambient + (1 - ambient) * np.minimum(diffuse, 1.5)
    body = colour * light[..., None] * (0.94 + 0.12 * noise(rng, 5, 5))[..., None]
    body = body + (rng.uniform(0.35, 0.7) if glossy else 0.1) * shine[..., None]
    ground = image * (1 - rng.uniform(0.45, 0.65) * lamp.shadow(mask, tall * 0.6, rng.uniform(0.8, 1.8)))[..., None]
    return over(ground, body, mask)


def expose(image: Field, rng: np.random.Generator, look: Look) -> Pixels:
    image = image * rng.uniform(*look.exposure)
    if look.warmth:
        tint = look.warmth * rng.uniform(-0.4, 1)
        image = image * np.array([1 + tint, 1, 1 - tint], np.float32)
    return finish(image, rng, softness=look.softness, grain=look.grain)


def draw(label: int, rng: np.random.Generator, look: Look = PLAIN) -> Pixels:
    """One picture (64, 64, 3) of class `CLASSES[label]`."""
    name, shape = PAIRS[label]
    colour = rgb(COLOURS[name], rng, 0.04)
    lamp = Lamp.draw(rng, *look.lamp)
    image = backdrop(rng, look.backdrops, avoid=colour)
    return expose(solid(image, place(shape, rng, look), colour, lamp, rng), rng, look)


def draw_resampled(label: int, rng: np.random.Generator) -> Pixels:
    """The same studio on another day: other surfaces, a lower lamp, smaller and more tilted things, a noisier camera."""
    return draw(label, rng, RESAMPLED)


def ground_tone(rng: np.random.Generator, tones: tuple[Rgb, ...], avoid: Field) -> Field:
    """The colour (3,) of `tones` drawn at random among those that stand out from `avoid`; else the one that does most."""
    options = [rgb(tone, rng, 0.02) for tone in tones]
    clear = [tone for tone in options if apart(tone, avoid) > 0.3]
    return clear[rng.integers(len(clear))] if clear else max(options, key=lambda tone: apart(tone, avoid))
