"""Three shifted variants of the objects: the same classes as sketches, in clutter, and as works of art."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw

from mmrl.data.mini.light import SIZE, Field, Lamp, Pixels, X, Y, backdrop, blur, finish, noise, over, rgb, to_bytes
from mmrl.data.mini.objects import PAIRS, Look, expose, ground_tone, outline, place, solid
from mmrl.data.mini.primitives import COLOURS, HOLES, OUTLINES, TEXTURES, texture, transform

_SKETCH_PAPER = ((244, 240, 230), (214, 206, 190), (176, 160, 134), (150, 154, 160), (96, 92, 90))
_CARD = ((236, 226, 200), (178, 190, 196), (60, 62, 78), (120, 128, 112), (210, 176, 150), (34, 40, 44))
_CLUTTERED = Look(scale=(0.36, 0.54), tilt=0.3, squeeze=(0.8, 1.05), grain=0.025)
_ART = Look(scale=(0.66, 0.88), tilt=0.2, squeeze=(0.85, 1.05))
_DRAB = ((96, 92, 88), (132, 128, 118), (70, 66, 70), (164, 156, 142), (88, 96, 84), (112, 92, 80))
_RUBBISH = ("oval", "semicircle", "triangle", "hexagon", "square", "bolt")  # shapes that are no class


# ---- sketch ----


def _stroke_layer(strokes: list[tuple[Field, int]]) -> Field:
    """Ink (64, 64) in [0, 1] of polylines (N, 2) in [-1, 1], each with its pressure (0 to 255)."""
    image = Image.new("L", (2 * SIZE, 2 * SIZE))
    draw = ImageDraw.Draw(image)
    for points, pressure in strokes:
        draw.line([(float(x), float(y)) for x, y in (points + 1) * SIZE], fill=pressure, width=2 if pressure < 150 else 3)
    return np.asarray(image.reduce(2), np.float32) / 255


def _hatching(rng: np.random.Generator) -> list[tuple[Field, int]]:
    """Parallel strokes over the whole sheet, with a hand's unevenness."""
    angle = rng.uniform(0.5, 1.1) * rng.choice([-1, 1])
    along = np.array([np.cos(angle), np.sin(angle)], np.float32)
    across = np.array([-along[1], along[0]])
    strokes = []
    for at in np.arange(-1.3, 1.3, rng.uniform(0.065, 0.1)):
        middle = across * (at + rng.normal(0, 0.012))
        bend = across * rng.normal(0, 0.025)
        strokes.append((np.stack([middle - along * 1.4, middle + bend, middle + along * 1.4]), int(rng.integers(150, 255))))
    return strokes


def draw_sketch(label: int, rng: np.random.Generator) -> Pixels:
    """Pencil contours, gone over twice or three times, and hatching with a coloured pencil."""
    name, shape = PAIRS[label]
    colour = rgb(COLOURS[name], rng, 0.03)
    paper = ground_tone(rng, _SKETCH_PAPER, colour) * (0.97 + 0.05 * noise(rng, 30, 30))[..., None]
    scale = rng.uniform(0.58, 0.85)
    room = 0.95 - scale
    pose = {"scale": scale, "angle": rng.normal(0, 0.2), "squeeze": rng.uniform(0.85, 1.05)}
    centre = (rng.uniform(-room, room), rng.uniform(-room, room))
    inside = outline(shape, **pose, centre=centre)
    tooth = 0.75 + 0.4 * noise(rng, SIZE, SIZE)
    crayon = _stroke_layer(_hatching(rng)) * np.clip(blur(inside, 0.8) * 1.6 - 0.3, 0, 1)
    image = over(paper, colour, np.clip(np.maximum(crayon, 0.35 * inside) * tooth, 0, 1))
    contours = []
    for points in (OUTLINES[shape], *([HOLES[shape]] if shape in HOLES else [])):
        for _ in range(int(rng.integers(2, 4))):
            closed = transform(np.concatenate([points, points[:2]]), **pose, centre=centre)
            shaky = closed + rng.normal(0, 0.012, closed.shape) + rng.normal(0, 0.012, 2)
            contours.append((shaky.astype(np.float32), int(rng.integers(110, 200))))
    graphite = np.full(3, 0.16 if paper.mean() > 0.45 else 0.93, np.float32)
    return to_bytes(over(image, graphite, np.clip(_stroke_layer(contours) * tooth, 0, 1)))


# ---- cluttered ----


def _litter(image: Field, lamp: Lamp, rng: np.random.Generator, keep: Field) -> Field:
    """Drab bits lying about, fewer where `keep` (64, 64) is 1."""
    for _ in range(int(rng.integers(4, 8))):
        shape = _RUBBISH[rng.integers(len(_RUBBISH))]
        centre = (rng.uniform(-0.95, 0.95), rng.uniform(-0.95, 0.95))
        mask = outline(shape, scale=rng.uniform(0.09, 0.2), angle=rng.uniform(0, 6.3), squeeze=rng.uniform(0.5, 1), centre=centre)
        if (mask * keep).sum() > 0.35 * mask.sum():
            continue
        tone = rgb(_DRAB[rng.integers(len(_DRAB))], rng)
        image = image * (1 - 0.5 * lamp.shadow(mask, 2.0, 0.8))[..., None]
        image = over(image, tone * (0.75 + 0.5 * noise(rng, 12, 12))[..., None], mask)
    return image


def _twigs(image: Field, lamp: Lamp, rng: np.random.Generator) -> Field:
    """One or two thin things lying over everything."""
    for _ in range(int(rng.integers(1, 3))):
        angle = rng.uniform(0, np.pi)
        away = np.abs(X * np.cos(angle) + Y * np.sin(angle) - rng.uniform(-0.45, 0.45) + 0.08 * np.sin(3 * X + rng.uniform(0, 6)))
        mask = np.clip((rng.uniform(0.035, 0.06) - away) * SIZE / 2 + 0.5, 0, 1).astype(np.float32)
        image = image * (1 - 0.4 * lamp.shadow(mask, 3.0, 1.0))[..., None]
        image = over(image, rgb(_DRAB[rng.integers(len(_DRAB))], rng) * (0.8 + 0.4 * noise(rng, 20, 20))[..., None], mask)
    return image


def draw_cluttered(label: int, rng: np.random.Generator) -> Pixels:
    """Smaller things on patterned surfaces, among rubbish and partly covered by twigs and straps."""
    name, shape = PAIRS[label]
    colour = rgb(COLOURS[name], rng, 0.04)
    lamp = Lamp.draw(rng, 0.5, 1.0)
    image = backdrop(rng, ("wood", "fabric", "stone", "felt"), avoid=colour)
    pattern = texture(TEXTURES[rng.integers(len(TEXTURES))], X, Y, rng, rng.uniform(4, 8))
    image = image * (0.88 + rng.uniform(0.1, 0.24) * pattern)[..., None]
    mask = place(shape, rng, _CLUTTERED)
    image = _litter(image, lamp, rng, blur(mask, 1.0))
    image = solid(image, mask, colour, lamp, rng)
    return expose(_twigs(image, lamp, rng), rng, _CLUTTERED)


# ---- rendition ----


def _tiles(u: Field, v: Field, image: Field, rng: np.random.Generator, uneven: float) -> tuple[Field, Field]:
    """`image` averaged over the cells numbered by the integers of u, v (64, 64); also a number per cell and pixel."""
    cells = np.floor(u).astype(int) * 1000 + np.floor(v).astype(int)
    _, index = np.unique(cells, return_inverse=True)
    index = index.reshape(SIZE, SIZE)
    count = np.bincount(index.ravel())
    mean = np.stack([np.bincount(index.ravel(), image[..., c].ravel()) for c in range(3)], 1) / count[:, None]
    mean = mean * (1 + rng.normal(0, uneven, (len(count), 1)))
    return mean[index].astype(np.float32), index


def _mosaic(image: Field, mask: Field, rng: np.random.Generator) -> Field:
    cells, angle = SIZE / 2 / rng.uniform(3.6, 4.6), rng.uniform(-0.5, 0.5)
    u = (X * np.cos(angle) + Y * np.sin(angle)) * cells + 500
    v = (Y * np.cos(angle) - X * np.sin(angle)) * cells + 500
    tiled, _ = _tiles(u, v, image, rng, 0.07)
    rim = np.minimum(np.minimum(u % 1, 1 - u % 1), np.minimum(v % 1, 1 - v % 1))
    return over(tiled, rgb((92, 88, 84), rng), np.clip((0.12 - rim) * 8, 0, 0.85))


def _glass(image: Field, mask: Field, rng: np.random.Generator) -> Field:
    """Leaded glass: irregular panes, light behind them."""
    seeds = rng.uniform(-1.1, 1.1, (70, 2)).astype(np.float32)
    distance = (X[..., None] - seeds[:, 0]) ** 2 + (Y[..., None] - seeds[:, 1]) ** 2
    pane = distance.argmin(-1)
    side = (mask > 0.5).astype(int)
    panes, index = _tiles(pane * 2.0 + side, np.zeros_like(X), image, rng, 0.1)
    edge = (index != np.roll(index, 1, 0)) | (index != np.roll(index, 1, 1))
    lead = np.clip(blur(edge.astype(np.float32), 0.5) * 1.5, 0, 1)
    glow = 0.85 + 0.5 * np.exp(-2 * ((X - rng.uniform(-0.5, 0.5)) ** 2 + (Y - rng.uniform(-0.5, 0.5)) ** 2))
    return over(panes * glow[..., None], np.full(3, 0.07, np.float32), lead)


def _paint(image: Field, mask: Field, rng: np.random.Generator) -> Field:
    """Thick paint: the picture dragged along the strokes, few tones, ridges."""
    dx, dy = (2.2 * (noise(rng, 9, 9) - 0.5) * 2 for _ in range(2))
    rows = np.clip(np.arange(SIZE)[:, None] + dy, 0, SIZE - 1).astype(int)
    columns = np.clip(np.arange(SIZE)[None] + dx, 0, SIZE - 1).astype(int)
    dragged = blur(image, 0.8)[rows, columns]
    angle = rng.uniform(0, np.pi)
    flow = (X * np.cos(angle) + Y * np.sin(angle)) * rng.uniform(9, 14) + 3 * noise(rng, 6, 6)
    ridges = np.sin(2 * np.pi * flow) * (0.4 + 0.8 * noise(rng, 14, 14))
    tone = dragged.mean(-1) + 0.04
    steps = np.rint(tone * 7) / 7  # few tones, but the hues stay
    return dragged * ((0.35 + 0.65 * steps / tone) * (0.98 + 0.13 * ridges))[..., None]


def _embroidery(image: Field, mask: Field, rng: np.random.Generator) -> Field:
    """Satin stitches on cloth; the figure is sewn in another direction than the ground."""
    out = image
    angle = rng.uniform(0.3, 1.2)
    for turn, part, depth in ((0.0, 1 - mask, 0.1), (1.5, mask, 0.26)):
        c, s = np.cos(angle + turn), np.sin(angle + turn)
        across, along = (X * c + Y * s) * SIZE / 5.4, (Y * c - X * s) * SIZE / 16
        row = np.floor(across)
        end = np.abs((along + 0.37 * row) % 1 - 0.5) > 0.46
        thread = 1 - depth * 2 * np.abs(across % 1 - 0.5) - 0.5 * depth * end
        sheen = 1 + 0.12 * np.sin(row * 12.9898 + 4)
        out = out * (1 - part[..., None]) + out * (thread * sheen * (1 + 0.3 * depth))[..., None] * part[..., None]
    edge = np.clip(4 * mask * (1 - mask), 0, 1)
    return out * (1 - 0.35 * edge)[..., None]


def _print(image: Field, mask: Field, rng: np.random.Generator) -> Field:
    """A cheap screen print: dots, a thick black contour, colours out of register."""
    angle, cells = rng.uniform(0.3, 0.8), SIZE / 2 / rng.uniform(2.0, 2.6)
    u = (X * np.cos(angle) + Y * np.sin(angle)) * cells
    v = (Y * np.cos(angle) - X * np.sin(angle)) * cells
    dot = np.hypot(u % 1 - 0.5, v % 1 - 0.5)
    shade = 0.62 + 0.3 * (X * rng.normal() + Y * rng.normal())
    dots = np.clip((0.3 + 0.35 * shade - dot) * 6, 0, 1)
    misprint = np.roll(mask, (int(rng.integers(-2, 3)), int(rng.integers(-2, 3))), (0, 1))
    ground = over(image, image[4, 4] * 0.8, dots * (1 - misprint) * 0.6)
    inked = over(ground, np.clip(image * 1.05, 0, 1), misprint * np.clip(0.55 + 0.45 * dots, 0, 1))
    contour = np.clip((blur(mask, 1.4) * (1 - blur(mask, 1.4)) * 4 - 0.5) * 3, 0, 1)
    return over(inked, np.full(3, 0.06, np.float32), contour)


_STYLES = (_mosaic, _glass, _paint, _embroidery, _print)


def draw_rendition(label: int, rng: np.random.Generator) -> Pixels:
    """Mosaic, leaded glass, thick paint, embroidery or screen print. Colours stay, since they name the class."""
    name, shape = PAIRS[label]
    colour = rgb(COLOURS[name], rng, 0.03)
    ground = ground_tone(rng, _CARD, colour)
    mask = place(shape, rng, _ART)
    slope = 1 + 0.12 * (X * rng.normal(0, 0.6) + Y * rng.normal(0, 0.6))
    image = over(slope[..., None] * ground, slope[..., None] * colour, mask).astype(np.float32)
    styled = _STYLES[rng.integers(len(_STYLES))](image, mask, rng)
    return finish(styled, rng, vignette=0.1, softness=0.25, grain=0.012)
