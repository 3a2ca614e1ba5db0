"""`mini:layouts`: balls and pebbles on a table, set out in a row, a ring, a grid ..."""

from __future__ import annotations

import numpy as np

from mmrl.data.mini.light import SIZE, Field, Lamp, Pixels, X, Y, apart, backdrop, blur, finish, noise, over, rgb
from mmrl.data.mini.primitives import ARRANGEMENTS, COLOURS, arrangement

# The order was shuffled once: the first half are the base classes, the second the novel ones.
_LAYOUTS: tuple[tuple[str, str], ...] = (
    ("circles in a grid", "grid"), ("single circle", "single"), ("circles in a row", "row"), ("circles in an arch", "arch"),
    ("circles in the corners", "corners"), ("circles in a diagonal", "diagonal"),
    ("crowd of circles", "crowd"), ("circles in a column", "column"), ("circles in a pyramid", "pyramid"),
    ("pair of circles", "pair"), ("circles in a plus", "plus"), ("circles in a ring", "ring"),
)  # fmt: skip
CLASSES: tuple[str, ...] = tuple(name for name, _ in _LAYOUTS)
assert {kind for _, kind in _LAYOUTS} == set(ARRANGEMENTS)

_PEBBLES = ((168, 164, 156), (110, 106, 104), (196, 184, 164), (92, 84, 82), (142, 124, 108), (220, 214, 206))
_BALLS = tuple(COLOURS[name] for name in ("red", "green", "blue", "yellow", "orange", "purple", "pink", "white", "cyan"))


def _seen(points: Field, rng: np.random.Generator) -> tuple[Field, Field]:
    """Where points (N, 2) of the table top appear, (N, 2), and how large, (N,): turned a little, seen from above at an angle."""
    angle, far, flat = rng.normal(0, 0.09), rng.uniform(0.0, 0.22), rng.uniform(0.78, 1.0)
    c, s = np.cos(angle), np.sin(angle)
    x, y = points[:, 0] * c - points[:, 1] * s, (points[:, 0] * s + points[:, 1] * c) * flat
    depth = 1 / (1 - far * y)
    return np.stack([x * depth, y * depth], 1) * rng.uniform(0.82, 0.98), depth


def _specks(image: Field, rng: np.random.Generator) -> Field:
    """Crumbs: they lie about everywhere and mean nothing."""
    for _ in range(int(rng.integers(3, 10))):
        x, y, size = rng.uniform(-1, 1), rng.uniform(-1, 1), rng.uniform(0.4, 1.1)
        distance = np.hypot((X - x) * rng.uniform(0.6, 1.4), Y - y) * SIZE / 2
        image = over(image, rgb((74, 64, 56), rng, 0.08), np.clip(size + 0.5 - distance, 0, 0.8))
    return image


def _bodies(image: Field, centres: Field, radii: Field, tones: Field, lamp: Lamp, pebbles: bool, rng: np.random.Generator) -> Field:
    """`image` with balls or pebbles of the given centres (N, 2), radii (N,) in half image sides and colours (N, 3) on it."""
    px, py = X[None], Y[None]
    if pebbles:  # not quite round
        px, py = px + 0.05 * (noise(rng, 14, 14) - 0.5), py + 0.05 * (noise(rng, 14, 14) - 0.5)
    dx = (px - centres[:, :1, None]) / radii[:, None, None]  # (N, 64, 64)
    dy = (py - centres[:, 1:, None]) / radii[:, None, None]
    reach = np.hypot(dx, dy)
    front = reach.argmin(0)  # at each pixel the body that it is deepest in
    r = np.take_along_axis(reach, front[None], 0)[0]
    nx, ny = np.take_along_axis(dx, front[None], 0)[0], np.take_along_axis(dy, front[None], 0)[0]
    mask = np.clip((1 - r) * radii[front] * SIZE / 2 + 0.5, 0, 1)
    nz = np.sqrt(np.clip(1 - r**2, 0.02, 1))
    diffuse = np.maximum(nx * lamp.x + ny * lamp.y + nz * lamp.z, 0)
    shine = np.maximum(nx * lamp.half[0] + ny * lamp.half[1] + nz * lamp.half[2], 0) ** 30
    tone = tones[front] * (0.85 + 0.3 * noise(rng, 20, 20))[..., None] if pebbles else tones[front]
    body = tone * (0.34 + 0.8 * diffuse)[..., None] + (0.08 if pebbles else 0.65) * shine[..., None]
    tall = float(radii.mean()) * SIZE / 2
    ground = image * (1 - 0.6 * lamp.shadow(mask.astype(np.float32), 0.7 * tall, 0.3 * tall + 0.3))[..., None]
    ground = ground * (1 - 0.35 * blur(mask, 1.5))[..., None]  # the table is darker close to them
    return over(ground, body.astype(np.float32), mask)


def draw(label: int, rng: np.random.Generator) -> Pixels:
    """One picture (64, 64, 3) of class `CLASSES[label]`."""
    centres, depth = _seen(arrangement(_LAYOUTS[label][1], rng), rng)
    pebbles = rng.random() < 0.45
    radius = rng.uniform(0.1, 0.17) * (0.85 if len(centres) > 8 else 1.0)
    radii = (radius * depth * rng.uniform(0.88, 1.12, len(centres))).astype(np.float32)
    image = backdrop(rng, ("wood", "felt", "fabric", "stone"))
    table = image.mean((0, 1))
    palette = [rgb(tone, rng) for tone in (_PEBBLES if pebbles else _BALLS)]
    clear = [tone for tone in palette if apart(tone, table) > 0.24] or [max(palette, key=lambda tone: apart(tone, table))]
    mixed = pebbles or rng.random() < 0.4
    tones = np.stack([clear[i] for i in rng.integers(len(clear), size=len(centres))])
    if not mixed:
        tones[:] = tones[0]
    image = _bodies(_specks(image, rng), centres.astype(np.float32), radii, tones, Lamp.draw(rng, 0.65, 1.1), pebbles, rng)
    return finish(image, rng, vignette=0.25, softness=0.3, grain=0.02)
