"""The sets of the mini benchmark: classes, prompt, sizes, who draws them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from mmrl.data.mini import digits, glyphs, layouts, objects, shifts, textures
from mmrl.data.mini.light import Pixels

SPLITS = ("train", "val", "test")
VERSION = 1  # a new one whenever any picture changes: caches of other versions are not read


@dataclass(frozen=True)
class MiniSet:
    """One set. `render(split, label, index)` gives the picture (64, 64, 3), decided by its arguments alone."""

    name: str
    summary: str
    classes: tuple[str, ...]
    template: str
    sizes: dict[str, tuple[int, ...]]  # pictures of each class, by split
    render: Callable[[str, int, int], Pixels]
    flip: bool = True  # whether a mirror image still shows its class
    same_classes_as: str | None = None

    def key(self, split: str, label: int, index: int) -> str:
        return f"{split}/{self.classes[label].replace(' ', '_')}/{index:03d}"


def seed_of(name: str, split: str, label: int, index: int) -> int:
    """The seed of one picture: 64 bits of a hash, so that no two pictures of any sets share one."""
    return int.from_bytes(hashlib.sha256(f"{name}/{split}/{label}/{index}".encode()).digest()[:8], "big")


def _drawn(name: str, draw: Callable[[int, np.random.Generator], Pixels]) -> Callable[[str, int, int], Pixels]:
    def render(split: str, label: int, index: int) -> Pixels:
        return draw(label, np.random.default_rng(seed_of(name, split, label, index)))

    return render


def _even(classes: tuple[str, ...], train: int, val: int, test: int) -> dict[str, tuple[int, ...]]:
    return {split: (n,) * len(classes) for split, n in zip(SPLITS, (train, val, test), strict=True)}


def _objects(name: str, summary: str, draw: Callable[[int, np.random.Generator], Pixels]) -> MiniSet:
    """A set of the objects' classes. The shifted ones have few training pictures: they are for testing on."""
    own = name == "mini:objects"
    sizes = _even(objects.CLASSES, *((32, 4, 40) if own else (8, 4, 40)))
    return MiniSet(
        name, summary, objects.CLASSES, "a photo of a {}.", sizes, _drawn(name, draw), same_classes_as=None if own else "mini:objects"
    )


_ALL = (
    _objects("mini:objects", "20 coloured shapes in relief, lit by a lamp, on wood, cloth or stone", objects.draw),
    MiniSet(
        "mini:textures", "15 patterns as worn surfaces, seen at an angle", textures.CLASSES, "{} texture.",
        _even(textures.CLASSES, 32, 4, 40), _drawn("mini:textures", textures.draw),
    ),
    MiniSet(
        "mini:glyphs", "20 capital letters, carved, cast, painted, stencilled or in neon", glyphs.CLASSES, "a photo of the letter {}.",
        _even(glyphs.CLASSES, 32, 4, 40), _drawn("mini:glyphs", glyphs.draw), flip=False,
    ),
    MiniSet(
        "mini:layouts", "12 arrangements of balls or pebbles on a table", layouts.CLASSES, "a photo of {}.",
        _even(layouts.CLASSES, 32, 4, 50), _drawn("mini:layouts", layouts.draw),
    ),
    MiniSet(
        "mini:digits", "10 handwritten digits: real scans, the ones scikit-learn ships", digits.CLASSES, "the handwritten digit {}.",
        {split: digits.sizes(split) for split in SPLITS}, digits.scan, flip=False,
    ),
    _objects("mini:objects-resampled", "the objects on another day: other surfaces, lamp and camera", objects.draw_resampled),
    _objects("mini:objects-sketch", "the objects in coloured pencil", shifts.draw_sketch),
    _objects("mini:objects-cluttered", "the objects small, among rubbish and partly covered", shifts.draw_cluttered),
    _objects("mini:objects-rendition", "the objects as mosaic, leaded glass, paint, embroidery or print", shifts.draw_rendition),
)  # fmt: skip
MINI_SETS: dict[str, MiniSet] = {mini.name: mini for mini in _ALL}
