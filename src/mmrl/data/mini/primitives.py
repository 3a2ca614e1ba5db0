"""What the generated images are made of: outlines, colours, textures, strokes, arrangements.

Everything here is geometry in the square [-1, 1] x [-1, 1] (x to the right, y down) or a scalar field
on a pixel grid. How it is lit, placed and disturbed is up to the renderers: the pretraining images and
the mini benchmark share these definitions and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]  # float32 or float64

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (214, 40, 40), "green": (46, 160, 67), "blue": (40, 84, 204), "yellow": (240, 214, 40),
    "orange": (242, 132, 24), "purple": (130, 52, 170), "pink": (245, 140, 182), "brown": (124, 78, 42),
    "black": (24, 24, 26), "white": (244, 244, 242), "gray": (132, 132, 134), "cyan": (52, 200, 214),
}  # fmt: skip


def _regular(sides: int, start: float = -np.pi / 2) -> Array:
    angle = start + np.arange(sides) * 2 * np.pi / sides
    return np.stack([np.cos(angle), np.sin(angle)], 1).astype(np.float32)


def _polar(radius: Array, start: float = -np.pi / 2) -> Array:
    angle = start + np.arange(len(radius)) * 2 * np.pi / len(radius)
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], 1).astype(np.float32)


def _points(*xy: tuple[float, float]) -> Array:
    return np.array(xy, np.float32)


def _heart() -> Array:
    t = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    x = 16 * np.sin(t) ** 3
    y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return np.stack([x / 17, -(y + 2) / 17], 1).astype(np.float32)


def _crescent() -> Array:
    outer = np.linspace(np.pi * 0.3, np.pi * 1.7, 30)
    inner = np.linspace(np.pi * 1.62, np.pi * 0.38, 30)
    outside = np.stack([np.cos(outer), np.sin(outer)], 1)
    inside = np.stack([0.35 + 0.78 * np.cos(inner), 0.84 * np.sin(inner)], 1)
    return (np.concatenate([outside, inside]) + np.array([0.2, 0])).astype(np.float32)


def _semicircle() -> Array:
    t = np.linspace(np.pi, 2 * np.pi, 30)
    return np.stack([np.cos(t), np.sin(t) + 0.5], 1).astype(np.float32)


def _drop() -> Array:
    t = np.linspace(-0.25 * np.pi, 1.25 * np.pi, 30)
    arc = np.stack([0.68 * np.cos(t), 0.32 + 0.68 * np.sin(t)], 1)
    return np.concatenate([arc, [[0, -1]]]).astype(np.float32)


def _fish() -> Array:
    t = np.linspace(0.12 * np.pi, 1.88 * np.pi, 30)
    body = np.stack([0.68 * np.cos(t) - 0.22, 0.5 * np.sin(t)], 1)
    return np.concatenate([body, [[0.95, -0.55], [0.75, 0.0], [0.95, 0.55]]]).astype(np.float32)


def _star() -> Array:
    return _polar(np.tile(np.array([1.0, 0.42], np.float32), 5))


def _flower() -> Array:
    t = np.arange(60) * 2 * np.pi / 60
    return _polar((0.74 + 0.26 * np.cos(6 * t)).astype(np.float32))


OUTLINES: dict[str, Array] = {
    "circle": _regular(40),
    "square": _points((-0.85, -0.85), (0.85, -0.85), (0.85, 0.85), (-0.85, 0.85)),
    "triangle": _points((0, -0.95), (0.95, 0.75), (-0.95, 0.75)),
    "star": _star(),
    "heart": _heart(),
    "cross": _points((-0.3, -0.95), (0.3, -0.95), (0.3, -0.3), (0.95, -0.3), (0.95, 0.3), (0.3, 0.3),
                     (0.3, 0.95), (-0.3, 0.95), (-0.3, 0.3), (-0.95, 0.3), (-0.95, -0.3), (-0.3, -0.3)),
    "ring": _regular(40),
    "crescent": _crescent(),
    "hexagon": _regular(6, 0.0),
    "diamond": _points((0, -1), (0.66, 0), (0, 1), (-0.66, 0)),
    "arrow": _points((-0.95, -0.28), (0.15, -0.28), (0.15, -0.8), (0.98, 0), (0.15, 0.8), (0.15, 0.28), (-0.95, 0.28)),
    "oval": _regular(40) * np.array([1.0, 0.55], np.float32),
    "semicircle": _semicircle(),
    "flower": _flower(),
    "drop": _drop(),
    "bolt": _points((0.25, -1), (-0.6, 0.15), (-0.05, 0.15), (-0.3, 1), (0.6, -0.25), (0.05, -0.25)),
    "house": _points((0, -1), (0.9, -0.15), (0.68, -0.15), (0.68, 0.9), (-0.68, 0.9), (-0.68, -0.15), (-0.9, -0.15)),
    "fish": _fish(),
}  # fmt: skip
HOLES: dict[str, Array] = {"ring": _regular(40) * np.float32(0.56)}


def transform(points: Array, *, scale: float, angle: float = 0.0, squeeze: float = 1.0, centre: tuple[float, float] = (0.0, 0.0)) -> Array:
    """Squeeze along y, rotate by `angle` radians, scale and move `points` (N, 2)."""
    c, s = np.cos(angle), np.sin(angle)
    matrix = np.array([[c, -s * squeeze], [s, c * squeeze]], np.float32) * scale
    return (points @ matrix.T + np.asarray(centre, np.float32)).astype(np.float32)


# ---- textures: scalar fields in [0, 1] over pixel coordinates x, y in [-1, 1], with `f` repeats across ----


def _saw(z: Array) -> Array:
    """Triangle wave of period 1 in [0, 1]."""
    return np.abs((z % 1) * 2 - 1)


def _soft(z: Array, sharp: float = 8.0) -> Array:
    """Smooth step around 0."""
    return (1 / (1 + np.exp(np.clip(-sharp * z, -30, 30)))).astype(np.float32)


def smooth_noise(rng: np.random.Generator, size: int, cells: int) -> Array:
    """Bilinearly interpolated noise in [0, 1], (size, size), with `cells` grid cells across."""
    grid = rng.random((cells + 2, cells + 2)).astype(np.float32)
    at = np.arange(size, dtype=np.float32) * cells / size
    low = at.astype(int)
    t = at - low
    rows = grid[low] * (1 - t)[:, None] + grid[low + 1] * t[:, None]
    return rows[:, low] * (1 - t) + rows[:, low + 1] * t


class _Grid(NamedTuple):
    """Pixel coordinates x, y; shifted and scaled u, v with a period of 1; polar r, a; `f` repeats across."""

    x: Array
    y: Array
    u: Array
    v: Array
    r: Array
    a: Array
    f: float
    rng: np.random.Generator


def texture(name: str, x: Array, y: Array, rng: np.random.Generator, f: float) -> Array:
    """Field of the named texture.

    Args:
        name: one of `TEXTURES`.
        x, y: pixel coordinates (H, W), about -1 to 1; may be warped.
        f: repeats across the image.
    """
    u, v = x * f / 2 + rng.random(), y * f / 2 + rng.random()
    return _FIELDS[name](_Grid(x, y, u, v, np.hypot(x, y), np.arctan2(y, x), f, rng))


def _marble(g: _Grid) -> Array:
    size = g.x.shape[0]
    n = smooth_noise(g.rng, size, 3) + 0.5 * smooth_noise(g.rng, size, 7)
    return _soft(_saw(0.4 * (g.u + g.v) + 1.4 * n) - 0.6, 7)


def _fish_scales(g: _Grid) -> Array:
    row = np.floor(g.v * 1.2)
    return _soft(np.hypot((g.u + 0.5 * (row % 2)) % 1 - 0.5, g.v * 1.2 % 1) * 1.4 - 0.75, 14)


def _bricks(g: _Grid) -> Array:
    row = np.floor(g.v * 1.3)
    return _soft(np.maximum(_saw(g.v * 1.3), _saw(g.u * 0.7 + 0.5 * (row % 2))) - 0.84, 25)


def _gradient(g: _Grid) -> Array:
    return np.clip((g.x * np.cos(g.rng.random() * 6.3) + g.y) / 2 + 0.5, 0, 1)


def _honeycomb(u: Array, v: Array) -> Array:
    """1 on the walls between hexagonal cells: small difference of the two nearest centres' distances."""
    w = np.float32(np.sqrt(3))

    def nearest(du: float, dv: float) -> Array:
        return np.hypot((u + du) % 1 - 0.5, ((v / w + dv) % 1 - 0.5) * w)

    first, second = nearest(0, 0), nearest(0.5, 0.5)
    between = np.abs(first - second)
    own = np.minimum(first, second)
    walls = np.minimum(between, np.abs(own - np.minimum(1 - own, 0.5)) * 1.2)
    return _soft(0.1 - walls, 30)


_FIELDS: dict[str, Callable[[_Grid], Array]] = {
    "horizontal stripes": lambda g: _soft(_saw(g.v) - 0.5),
    "vertical stripes": lambda g: _soft(_saw(g.u) - 0.5),
    "diagonal stripes": lambda g: _soft(_saw((g.u + g.v) * 0.75) - 0.5),
    "polka dots": lambda g: _soft(0.32 - np.hypot(g.u % 1 - 0.5, g.v % 1 - 0.5), 25),
    "checkerboard": lambda g: _soft(np.sin(np.pi * g.u) * np.sin(np.pi * g.v), 12),
    "grid lines": lambda g: _soft(np.maximum(_saw(g.u), _saw(g.v)) - 0.82, 25),
    "zigzag": lambda g: _soft(_saw(g.v + 0.5 * _saw(g.u)) - 0.5),
    "waves": lambda g: _soft(_saw(g.v * 1.2 + 0.28 * np.sin(2 * np.pi * g.u * 0.8)) - 0.5),
    "bricks": _bricks,
    "concentric rings": lambda g: _soft(_saw(g.r * g.f / 2) - 0.5),
    "rays": lambda g: _soft(_saw(g.a * max(4, round(g.f * 1.6)) / (2 * np.pi)) - 0.5),
    "spiral": lambda g: _soft(_saw(g.r * g.f / 2.6 + g.a / (2 * np.pi)) - 0.5),
    "honeycomb": lambda g: _honeycomb(g.u, g.v),
    "crosshatch": lambda g: _soft(np.maximum(_saw((g.u + g.v) * 1.1), _saw((g.u - g.v) * 1.1)) - 0.78, 18),
    "speckles": lambda g: (g.rng.random(g.x.shape) < 0.12).astype(np.float32),
    "marble": _marble,
    "fish scales": _fish_scales,
    "smooth gradient": _gradient,
}
TEXTURES: tuple[str, ...] = tuple(_FIELDS)

# ---- digits as pen strokes: control points on a 0..4 x 0..6 sheet, smoothed by a Catmull-Rom curve ----

NUMBER_WORDS: tuple[str, ...] = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_PEN: dict[str, list[list[list[tuple[float, float]]]]] = {
    "0": [[[(2, 0), (0.4, 1.5), (0.3, 4.2), (2, 6), (3.7, 4.3), (3.6, 1.5), (2, 0)]]],
    "1": [[[(2.2, 0), (2.1, 3), (2, 6)]], [[(0.8, 1.4), (2.2, 0), (2.15, 3), (2.1, 6)]],
          [[(0.8, 1.4), (2.2, 0), (2.15, 3), (2.1, 6)], [(0.9, 6), (3.3, 6)]]],
    "2": [[[(0.5, 1.4), (1.6, 0.1), (3.3, 0.8), (3.2, 2.4), (1.6, 4.4), (0.4, 5.9), (0.5, 5.95)], [(0.4, 5.9), (3.7, 5.8)]],
          [[(0.5, 1.2), (2, 0), (3.4, 1.3), (2.4, 3.4), (0.7, 5.6), (1.4, 5.2), (2.5, 5.8), (3.7, 5.6)]]],
    "3": [[[(0.5, 0.7), (2.2, 0), (3.3, 1.2), (2.6, 2.6), (1.5, 2.9), (3, 3.3), (3.6, 4.6), (2.2, 6), (0.4, 5.3)]]],
    "4": [[[(2.8, 6), (2.8, 3), (2.8, 0)], [(2.8, 0), (0.4, 3.9)], [(0.4, 3.9), (3.8, 3.9)]],
          [[(0.9, 0.2), (0.6, 1.8), (0.7, 3.2)], [(0.7, 3.2), (3.6, 3.1)], [(3.1, 0.6), (2.9, 3), (2.8, 6)]]],
    "5": [[[(3.4, 0.1), (0.9, 0.1)], [(0.9, 0.1), (0.7, 2.6)], [(0.7, 2.6), (2.2, 2.1), (3.6, 3.4), (3.2, 5.2), (1.8, 6), (0.4, 5.3)]]],
    "6": [[[(3, 0.1), (1.4, 1.5), (0.5, 3.8), (1, 5.6), (2.4, 6), (3.5, 4.8), (2.9, 3.3), (1.5, 3.3), (0.6, 4.4)]]],
    "7": [[[(0.4, 0.3), (3.6, 0.2)], [(3.6, 0.2), (2.3, 3), (1.6, 6)]],
          [[(0.4, 0.3), (3.6, 0.2)], [(3.6, 0.2), (2.3, 3), (1.6, 6)], [(1.1, 3.1), (3.2, 3)]]],
    "8": [[[(3.1, 0.9), (1.9, 0), (0.8, 1.1), (1.6, 2.5), (3, 3.7), (3.3, 5), (2, 6), (0.7, 5), (1.1, 3.7), (2.6, 2.4), (3.1, 0.9)]]],
    "9": [[[(3.3, 1.6), (2.2, 0), (0.7, 1), (0.9, 2.7), (2.3, 2.9), (3.3, 1.4), (3.2, 3.6), (2.7, 6)]],
          [[(3.3, 1.6), (2.2, 0), (0.7, 1), (0.9, 2.7), (2.3, 2.9), (3.3, 1.4), (3.2, 4.4), (2, 6), (0.7, 5.4)]]],
}  # fmt: skip


@lru_cache(maxsize=16)
def _curve_weights(points: int) -> Array:
    """Catmull-Rom weights from `points` control points to samples along the curve, (samples, points)."""
    weights = []
    for i in range(points - 1):
        around = [max(i - 1, 0), i, i + 1, min(i + 2, points - 1)]
        for t in np.linspace(0, 1, 7, endpoint=i == points - 2):
            row = np.zeros(points, np.float32)
            basis = (-t + 2 * t**2 - t**3, 2 - 5 * t**2 + 3 * t**3, t + 4 * t**2 - 3 * t**3, -(t**2) + t**3)
            for at, b in zip(around, basis):
                row[at] += b / 2
            weights.append(row)
    return np.stack(weights)


def pen_strokes(digit: str, rng: np.random.Generator, wobble: float) -> list[Array]:
    """Strokes (N, 2) in [-1, 1] of a handwritten `digit` "0".."9"; `wobble` is the hand's unsteadiness."""
    variants = _PEN[digit]
    strokes = variants[rng.integers(len(variants))]
    slant = rng.normal(0, 0.16)
    stretch = np.array([rng.uniform(0.75, 1.25), rng.uniform(0.88, 1.1)], np.float32)
    out = []
    for stroke in strokes:
        points = (np.array(stroke, np.float32) - [2, 3]) / 3
        points = points + rng.normal(0, wobble, points.shape)
        points[:, 0] -= slant * points[:, 1]
        out.append((_curve_weights(len(points)) @ (points * stretch)).astype(np.float32))
    return out


# ---- arrangements of several things ----


def _line(n: int, angle: float, length: float) -> Array:
    t = np.linspace(-1, 1, n) * length
    return np.stack([t * np.cos(angle), t * np.sin(angle)], 1).astype(np.float32)


def arrangement(name: str, rng: np.random.Generator) -> Array:
    """Centres (N, 2) of the things arranged as `name`, one of `ARRANGEMENTS`, with some disorder."""
    n = int(rng.integers(4, 7))
    length = rng.uniform(0.6, 0.8)
    side = rng.choice([-1.0, 1.0])
    if name == "row":
        points = _line(n, 0, length)
    elif name == "column":
        points = _line(n, np.pi / 2, length)
    elif name == "diagonal":
        points = _line(n, side * np.pi / 4, length)
    elif name == "ring":
        points = _regular(n + 2, rng.random() * 6) * np.float32(length)
    elif name == "grid":
        points = np.array([(i, j) for i in (-1, 0, 1) for j in (-1, 0, 1)], np.float32) * np.float32(length * 0.85)
    elif name == "plus":
        points = np.concatenate([_line(5, 0, length), _line(5, np.pi / 2, length)])
    elif name == "arch":
        t = np.linspace(np.pi, 2 * np.pi, n + 2)
        points = np.stack([np.cos(t) * length, np.sin(t) * length + 0.35], 1).astype(np.float32)
    elif name == "pyramid":
        rows = [(0.0, -0.6), (-0.36, 0.0), (0.36, 0.0), (-0.7, 0.6), (0.0, 0.6), (0.7, 0.6)]
        points = np.array(rows, np.float32) * np.float32(length / 0.75)
    elif name == "pair":
        points = _line(2, rng.uniform(-0.3, 0.3), rng.uniform(0.35, 0.6))
    elif name == "corners":
        points = np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)], np.float32) * np.float32(length)
    elif name == "crowd":
        points = rng.uniform(-0.85, 0.85, (int(rng.integers(11, 16)), 2)).astype(np.float32)
    else:  # single
        points = rng.uniform(-0.4, 0.4, (1, 2)).astype(np.float32)
    return points + rng.normal(0, 0.03, points.shape).astype(np.float32)


ARRANGEMENTS: tuple[str, ...] = (
    "row", "column", "diagonal", "ring", "grid", "plus", "arch", "pyramid", "pair", "corners", "crowd", "single",
)  # fmt: skip
