"""`mini:glyphs`: capital letters as found on things: carved, cast, painted, stencilled, as neon tubes."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from mmrl.data.mini.light import SIZE, Field, Lamp, Pixels, X, Y, backdrop, blur, finish, noise, over, rgb, shift

# The order was shuffled once: the first half are the base classes, the second the novel ones. I, J, O, P, Q and V are left
# out: worn, slanted or cut by a stencil they are hard to tell from others.
CLASSES: tuple[str, ...] = (*"KBRXTADWGM", *"FSHZLCYNEU")
# faces that matplotlib ships and that the pretraining images do not use
FONTS = (
    "STIXGeneral", "STIXGeneralBol", "STIXGeneralItalic", "STIXGeneralBolIta", "DejaVuSerif-Bold",
    "DejaVuSerif-BoldItalic", "DejaVuSansMono-BoldOblique", "DejaVuSansMono-Bold", "DejaVuSans-BoldOblique", "cmb10",
)  # fmt: skip
_NEON = ((255, 70, 110), (80, 220, 255), (120, 255, 130), (255, 200, 60), (200, 110, 255), (255, 120, 40))
_PAINT = ((214, 206, 190), (40, 44, 52), (150, 52, 44), (52, 84, 122), (218, 176, 72), (58, 98, 74), (240, 238, 230))


@lru_cache(maxsize=256)
def _font(name: str, size: int) -> ImageFont.FreeTypeFont:
    import matplotlib  # heavy, and only its fonts are wanted

    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{name}.ttf"), size)


def _letter(letter: str, rng: np.random.Generator, bold: bool) -> Field:
    """Coverage (64, 64) in [0, 1] of the letter in some face, turned a little and in perspective."""
    faces = [name for name in FONTS if not bold or "Bol" in name or name == "cmb10"]
    image = Image.new("L", (2 * SIZE, 2 * SIZE))
    at = (SIZE + rng.normal(0, 5), SIZE + rng.normal(0, 5))
    ImageDraw.Draw(image).text(
        at, letter, fill=255, font=_font(faces[rng.integers(len(faces))], int(rng.integers(11, 16)) * 8), anchor="mm"
    )
    angle, shear, far = rng.normal(0, 0.13), rng.normal(0, 0.08), rng.normal(0, 0.0012, 2)
    c, s = np.cos(angle), np.sin(angle) + shear
    # back from the target pixel to the source: rotation about the middle, then a division that grows to one side
    terms = (c, s, SIZE * (1 - c - s), -np.sin(angle), c, SIZE * (1 - c + np.sin(angle)), far[0], far[1])
    turned = image.transform(image.size, Image.Transform.PERSPECTIVE, [float(v) for v in terms], Image.Resampling.BILINEAR)
    return np.asarray(turned.reduce(2), np.float32) / 255


def _clutter(image: Field, rng: np.random.Generator) -> Field:
    """Cracks, stains and screw heads."""
    for _ in range(int(rng.integers(1, 4))):
        angle = rng.uniform(0, np.pi)
        away = np.abs(X * np.cos(angle) + Y * np.sin(angle) - rng.uniform(-1, 1) + 0.25 * (noise(rng, 7, 7) - 0.5))
        part = np.clip(noise(rng, 3, 3) * 4 - 1.6, 0, 1)
        image = image * (1 - 0.4 * np.exp(-((away * 32) ** 2)) * part)[..., None]
    for _ in range(int(rng.integers(0, 4))):
        x, y = rng.choice([-1, 1], 2) * rng.uniform(0.72, 0.95, 2)
        distance = np.hypot(X - x, Y - y) * SIZE / 2
        head = np.clip(rng.uniform(1.6, 2.8) - distance, 0, 1).astype(np.float32)
        image = over(image, rgb((120, 116, 112), rng) * (1 - 0.25 * (Y - y + X - x) * 12)[..., None], head)
    return image


def _carved(letter: str, rng: np.random.Generator) -> Field:
    mask = _letter(letter, rng, bold=True)
    image = _clutter(backdrop(rng, ("stone", "wood")), rng)
    diffuse, _ = Lamp.draw(rng, 0.5, 0.85).on(-rng.uniform(3.0, 5.0) * blur(mask, 0.9))
    shade = 0.45 + 0.55 * np.minimum(diffuse, 1.6)
    return image * (shade * (1 - rng.uniform(0.2, 0.42) * blur(mask, 0.5)))[..., None]


def _cast(letter: str, rng: np.random.Generator) -> Field:
    """Raised metal on a plate of the same metal."""
    mask = _letter(letter, rng, bold=True)
    tones = ((150, 132, 92), (134, 138, 144), (128, 92, 70), (92, 98, 100))
    plate = rgb(tones[rng.integers(len(tones))], rng) * (0.75 + 0.3 * noise(rng, 40, 3) + 0.12 * noise(rng, 5, 5))[..., None]
    lamp = Lamp.draw(rng, 0.5, 0.9)
    diffuse, shine = lamp.on(rng.uniform(3.0, 4.5) * blur(mask, 1.0), gloss=10)
    plate = _clutter(plate, rng) * (1 - 0.5 * lamp.shadow(mask, 2.5, 0.9) * (1 - mask))[..., None]
    light = 0.4 + 0.5 * np.minimum(diffuse, 1.6) + rng.uniform(0.12, 0.3) * mask
    return plate * light[..., None] + 0.4 * (shine * blur(mask, 1.0))[..., None]


def _neon(letter: str, rng: np.random.Generator) -> Field:
    """A glowing tube before a dark wall."""
    mask = _letter(letter, rng, bold=rng.random() < 0.5)
    colour = rgb(_NEON[rng.integers(len(_NEON))], rng)
    wall = _clutter(backdrop(rng, ("stone", "felt", "wood")), rng) * rng.uniform(0.22, 0.45)
    glow = 0.55 * blur(mask, 2.0) + 0.6 * blur(mask, 6.0)
    image = wall * (1 - 0.5 * shift(mask, 2, 3))[..., None] + colour * glow[..., None] * 0.75
    tube = np.clip(mask * 1.1, 0, 1)
    return over(image, 0.45 * colour + 0.55 * np.clip(mask * 1.1, 0, 1)[..., None], tube)


def _painted(letter: str, rng: np.random.Generator) -> Field:
    """Paint on wood, stone or cloth, flaked in places."""
    mask = _letter(letter, rng, bold=rng.random() < 0.7)
    colour = rgb(_PAINT[rng.integers(len(_PAINT))], rng)
    image = _clutter(backdrop(rng, ("wood", "stone", "fabric"), avoid=colour, least=0.32), rng)
    flakes = np.clip((noise(rng, 16, 16) + 0.5 * noise(rng, 32, 32) - rng.uniform(0.22, 0.42)) * 6, 0, 1)
    return over(image, colour * (0.8 + 0.3 * noise(rng, 8, 8))[..., None], mask * (0.35 + 0.65 * flakes))


def _sprayed(letter: str, rng: np.random.Generator) -> Field:
    """A stencil: bridges across the letter, overspray around it."""
    mask = _letter(letter, rng, bold=True)
    colour = rgb(_PAINT[rng.integers(len(_PAINT))], rng)
    image = _clutter(backdrop(rng, ("stone", "wood", "felt"), avoid=colour, least=0.34), rng)
    bridge = np.clip((np.abs(X * rng.uniform(0.9, 1) + 0.2 * Y - rng.uniform(-0.12, 0.12)) - 0.035) * 32, 0, 1)
    mist = np.clip(blur(mask, 3.0) * 1.2, 0, 1) * (rng.random((SIZE, SIZE)) < 0.4) * 0.35
    cover = np.maximum(blur(mask * (0.3 + 0.7 * bridge), 0.5) * (0.8 + 0.25 * noise(rng, 20, 20)), mist)
    return over(image, colour, np.clip(cover, 0, 1).astype(np.float32))


_KINDS = (_carved, _cast, _neon, _painted, _sprayed)


def draw(label: int, rng: np.random.Generator) -> Pixels:
    """One picture (64, 64, 3) of the letter `CLASSES[label]`."""
    image = _KINDS[rng.integers(len(_KINDS))](CLASSES[label], rng)
    slope = 1 + rng.uniform(0, 0.25) * (X * rng.normal(0, 0.7) + Y * rng.normal(0, 0.7))
    return finish(image * slope[..., None], rng, vignette=0.25, softness=0.35, grain=0.025)
