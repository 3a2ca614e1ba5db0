"""Images with captions for pretraining `tiny`: flat drawings, drawn by code.

The look is that of simple clip art: flat fills on plain, graded or noisy grounds, print fonts and pen strokes. The
mini benchmark (`mmrl.data.mini`) draws the same concepts in other ways, so that there is something left to learn.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import matplotlib
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from mmrl.data.mini.primitives import (
    ARRANGEMENTS,
    COLOURS,
    HOLES,
    NUMBER_WORDS,
    OUTLINES,
    TEXTURES,
    Array,
    arrangement,
    pen_strokes,
    smooth_noise,
    texture,
    transform,
)

Drawn = tuple[Array, str, dict[str, str]]  # image, what is on it, the same as facts

SIZE = 64
DRAW = 128  # drawn at twice the size, then averaged
FONTS = ("DejaVuSans", "DejaVuSans-Bold", "DejaVuSerif", "DejaVuSansMono", "cmr10", "cmss10", "cmtt10", "DejaVuSans-Oblique")
LETTERS = tuple("ABCDEFGHIJKLMNOPQRSTUVWXYZ")
_Y, _X = np.mgrid[-1 : 1 : SIZE * 1j, -1 : 1 : SIZE * 1j].astype(np.float32)
_NAMES = tuple(COLOURS)
_SHAPES = tuple(OUTLINES)
FACTS: dict[str, tuple[str, ...]] = {
    "kind": ("object", "texture", "glyph", "handwriting", "several", "relation"),
    "shape": _SHAPES,
    "colour": _NAMES,
    "texture": TEXTURES,
    "glyph": (*"0123456789", *LETTERS),
    "arrangement": ARRANGEMENTS,
}
_WHERE = {(0, -1): "at the top", (0, 1): "at the bottom", (-1, 0): "on the left", (1, 0): "on the right", (0, 0): "in the middle"}
_PLURAL = {"cross": "crosses", "fish": "fish"}


def _plural(shape: str) -> str:
    return _PLURAL.get(shape, shape + "s")


def _article(words: str) -> str:
    return ("an " if words[0] in "aeiou" else "a ") + words


def _rgb(name: str, rng: np.random.Generator) -> Array:
    return np.clip(np.array(COLOURS[name], np.float32) / 255 + rng.normal(0, 0.06, 3), 0, 1).astype(np.float32)


def _two_colours(rng: np.random.Generator) -> tuple[str, str]:
    first, second = rng.choice(len(_NAMES), 2, replace=False)
    return _NAMES[first], _NAMES[second]


def _ground(rng: np.random.Generator, colour: str) -> Array:
    base = np.broadcast_to(_rgb(colour, rng), (SIZE, SIZE, 3)).copy()
    kind = rng.random()
    if kind < 0.35:
        base += rng.uniform(0.1, 0.3) * (smooth_noise(rng, SIZE, int(rng.integers(2, 9))) - 0.5)[..., None]
    elif kind < 0.6:
        base += rng.uniform(-0.2, 0.2) * (_X * rng.normal() + _Y * rng.normal())[..., None]
    elif kind < 0.68:
        field = texture(TEXTURES[rng.integers(len(TEXTURES))], _X, _Y, rng, rng.uniform(3, 7))
        base += rng.uniform(-0.2, 0.2) * (field - 0.5)[..., None]
    return base


def _mask(draw: ImageDraw.ImageDraw, shape: str, points_of: dict[str, float], centre: tuple[float, float]) -> None:
    def pixels(points: Array) -> list[tuple[float, float]]:
        placed = transform(points, scale=points_of["scale"], angle=points_of["angle"], squeeze=points_of["squeeze"], centre=centre)
        return [tuple(p) for p in ((placed + 1) * (DRAW / 2)).tolist()]

    if points_of["outline"]:
        draw.line([*pixels(OUTLINES[shape]), pixels(OUTLINES[shape])[0]], fill=255, width=int(points_of["outline"]), joint="curve")
        return
    draw.polygon(pixels(OUTLINES[shape]), fill=255)
    if shape in HOLES:
        draw.polygon(pixels(HOLES[shape]), fill=0)


def _shape_layer(shape: str, centres: list[tuple[float, float]], scale: float, rng: np.random.Generator) -> Array:
    image = Image.new("L", (DRAW, DRAW))
    draw = ImageDraw.Draw(image)
    look = {"scale": scale, "angle": rng.normal(0, 0.22), "squeeze": rng.uniform(0.8, 1.1), "outline": 0.0}
    if rng.random() < 0.15 and shape != "ring":
        look["outline"] = float(rng.integers(3, 9))
    for centre in centres:
        _mask(draw, shape, look, centre)
    return np.asarray(image.reduce(2), np.float32)[..., None] / 255


def _object(rng: np.random.Generator) -> Drawn:
    shape = _SHAPES[rng.integers(len(_SHAPES))]
    colour, ground = _two_colours(rng)
    scale = rng.uniform(0.3, 0.85)
    room = 0.95 - scale
    at = (rng.uniform(-room, room), rng.uniform(-room, room)) if room > 0 else (0.0, 0.0)
    mask = _shape_layer(shape, [at], scale, rng)
    fill = np.broadcast_to(_rgb(colour, rng), (SIZE, SIZE, 3))
    if rng.random() < 0.15:
        field = texture(TEXTURES[rng.integers(len(TEXTURES))], _X, _Y, rng, rng.uniform(4, 9))[..., None]
        fill = fill * (1 - 0.35 * field)
    image = _ground(rng, ground) * (1 - mask) + fill * mask
    facts = {"kind": "object", "shape": shape, "colour": colour}
    k = rng.random()
    if k < 0.45:
        return image, f"{colour} {shape}", facts
    if k < 0.65:
        return image, shape, facts
    if k < 0.85:
        return image, f"{colour} {shape} on {_article(ground)} background", facts
    side = (0, 0)
    if max(abs(at[0]), abs(at[1])) > 0.25:
        side = (int(np.sign(at[0])), 0) if abs(at[0]) > abs(at[1]) else (0, int(np.sign(at[1])))
    return image, f"{colour} {shape} {_WHERE[side]}", facts


def _texture(rng: np.random.Generator) -> Drawn:
    name = TEXTURES[rng.integers(len(TEXTURES))]
    a, b = _two_colours(rng)
    field = texture(name, _X, _Y, rng, rng.uniform(2.5, 8))[..., None]
    image = _rgb(a, rng) * (1 - field) + _rgb(b, rng) * field
    if rng.random() < 0.3:
        image = image + 0.15 * (smooth_noise(rng, SIZE, 4) - 0.5)[..., None]
    facts = {"kind": "texture", "texture": name}
    k = rng.random()
    if k < 0.35:
        return image, f"{name} texture", facts
    if k < 0.5:
        return image, name, facts
    if k < 0.75:
        return image, f"{a} and {b} {name}", facts
    return image, f"{name} pattern in {a} and {b}", facts


@lru_cache(maxsize=64)
def _font(name: str, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{name}.ttf"), size)


def _glyph(rng: np.random.Generator) -> Drawn:
    digit = rng.random() < 0.5
    text = str(rng.integers(10)) if digit else LETTERS[rng.integers(26)]
    a, b = _two_colours(rng)
    layer = Image.new("L", (DRAW, DRAW))
    font = _font(FONTS[rng.integers(len(FONTS))], int(rng.integers(7, 15)) * 8)
    at = (DRAW / 2 + rng.normal(0, 8), DRAW / 2 + rng.normal(0, 8))
    ImageDraw.Draw(layer).text(at, text, fill=255, font=font, anchor="mm")
    layer = layer.rotate(rng.normal(0, 7), Image.Resampling.BILINEAR)
    mask = np.asarray(layer.reduce(2), np.float32)[..., None] / 255
    image = _ground(rng, b) * (1 - mask) + _rgb(a, rng) * mask
    kind = "number" if digit and rng.random() < 0.3 else ("digit" if digit else "letter")
    name = NUMBER_WORDS[int(text)] if digit and rng.random() < 0.6 else text
    facts = {"kind": "glyph", "glyph": text}
    k = rng.random()
    if k < 0.6:
        return image, f"the {kind} {name}", facts
    if k < 0.8:
        return image, f"the {kind} {name} in {a}", facts
    return image, f"{kind} {name} printed in {a} on {b}", facts


def _handwriting(rng: np.random.Generator) -> Drawn:
    text = str(rng.integers(10))
    layer = Image.new("L", (DRAW, DRAW))
    draw = ImageDraw.Draw(layer)
    scale, width = rng.uniform(0.5, 0.88), int(rng.integers(5, 17))
    centre = rng.normal(0, 0.07, 2)
    for stroke in pen_strokes(text, rng, rng.uniform(0.02, 0.09)):
        points = [tuple(p) for p in ((stroke * scale + centre + 1) * (DRAW / 2)).tolist()]
        draw.line(points, fill=255, width=width, joint="curve")
        for x, y in (points[0], points[-1]):
            draw.ellipse((x - width / 2, y - width / 2, x + width / 2, y + width / 2), fill=255)
    layer = layer.rotate(rng.normal(0, 6), Image.Resampling.BILINEAR).reduce(2)
    if rng.random() < 0.35:  # a low-resolution scan
        small = int(rng.integers(9, 24))
        layer = layer.resize((small, small), Image.Resampling.BOX).resize((SIZE, SIZE), Image.Resampling.BICUBIC)
    mask = np.asarray(layer, np.float32)[..., None] / 255
    a, b = _two_colours(rng)
    if rng.random() < 0.5:
        a, b = ("white", "black") if rng.random() < 0.5 else ("black", "white")
    ground = _ground(rng, b)
    image = ground * (1 - mask) + _rgb(a, rng) * mask
    name = NUMBER_WORDS[int(text)] if rng.random() < 0.7 else text
    facts = {"kind": "handwriting", "glyph": text}
    k = rng.random()
    if k < 0.45:
        return image, f"the handwritten digit {name}", facts
    if k < 0.65:
        return image, f"the digit {name}", facts
    if k < 0.85:
        return image, f"handwritten number {name}", facts
    return image, f"scan of a handwritten {name} in {a}", facts


def _several(rng: np.random.Generator) -> Drawn:
    shape = _SHAPES[rng.integers(len(_SHAPES))]
    colour, ground = _two_colours(rng)
    name = ARRANGEMENTS[rng.integers(len(ARRANGEMENTS))]
    centres = arrangement(name, rng)
    mask = _shape_layer(shape, [tuple(c) for c in centres.tolist()], rng.uniform(0.1, 0.2), rng)
    image = _ground(rng, ground) * (1 - mask) + _rgb(colour, rng) * mask
    things = f"{colour} {_plural(shape)}" if rng.random() < 0.5 else _plural(shape)
    facts = {"kind": "several", "shape": shape, "colour": colour, "arrangement": name}
    k = rng.random()
    if len(centres) < 10 and k < 0.25:
        return image, f"{NUMBER_WORDS[len(centres)]} {things if len(centres) > 1 else things.replace(_plural(shape), shape)}", facts
    if name == "single":
        return image, f"single small {colour} {shape}" if k < 0.6 else f"single {shape}", facts
    if k < 0.6:
        return image, f"{things} in a {name}" if name != "corners" else f"{things} in the corners", facts
    return image, f"{name} of {things}", facts


def _relation(rng: np.random.Generator) -> Drawn:
    shapes = [_SHAPES[i] for i in rng.choice(len(_SHAPES), 2, replace=False)]
    first, second = _two_colours(rng)
    ground = _NAMES[rng.integers(len(_NAMES))]
    image = _ground(rng, ground)
    upright = rng.random() < 0.5
    offset = np.array([0, 0.45] if upright else [0.45, 0])
    for shape, colour, side in zip(shapes, (first, second), (-1, 1)):
        at = offset * side + rng.normal(0, 0.08, 2)
        mask = _shape_layer(shape, [(float(at[0]), float(at[1]))], rng.uniform(0.25, 0.4), rng)
        image = image * (1 - mask) + _rgb(colour, rng) * mask
    facts = {"kind": "relation"}
    if rng.random() < 0.3:
        return image, f"{shapes[0]} and {_article(shapes[1])}", facts
    return image, f"{first} {shapes[0]} {'above' if upright else 'left of'} {_article(second + ' ' + shapes[1])}", facts


_KINDS = (_object, _texture, _glyph, _handwriting, _several, _relation)
_SHARES = np.cumsum([0.32, 0.16, 0.14, 0.16, 0.14, 0.08])
_TEMPLATES = ("a photo of {a}.", "{a}.", "{p}", "a drawing of {a}.", "an image of {a}", "a picture of {a}.", "this is {a}", "{p}.")
_VAGUE = ("a picture", "an abstract image.", "some colours and lines", "clip art", "a simple drawing of something")


def _caption(phrase: str, rng: np.random.Generator) -> str:
    if rng.random() < 0.03:
        return _VAGUE[rng.integers(len(_VAGUE))]
    bare = phrase.startswith(("the ", *NUMBER_WORDS)) or phrase.split(" in ")[0].endswith("s") or phrase.endswith(" texture")
    caption = _TEMPLATES[rng.integers(len(_TEMPLATES))].format(p=phrase, a=phrase if bare else _article(phrase))
    return caption if len(caption.split()) <= 7 else phrase  # within the shortest text batch


def draw(seed: int) -> tuple[NDArray[np.uint8], str, dict[str, str]]:
    """One image (64, 64, 3), uint8, its caption and its facts, decided by `seed` alone. One caption in fifty is wrong."""
    rng = np.random.default_rng(seed)
    kind = _KINDS[int(np.searchsorted(_SHARES, rng.random()))]
    image, phrase, facts = kind(rng)
    if rng.random() < 0.02:
        phrase = _KINDS[rng.integers(len(_KINDS))](rng)[1]
    caption = _caption(phrase, rng)
    if rng.random() < 0.35:
        image = image + rng.normal(0, rng.uniform(0.01, 0.07), image.shape).astype(np.float32)
    if rng.random() < 0.3:
        image = (image - 0.5) * rng.uniform(0.6, 1.1) + 0.5 + rng.uniform(-0.12, 0.12)
    return (np.clip(image, 0, 1) * 255).astype(np.uint8), caption, facts
