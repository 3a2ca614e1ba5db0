"""`mini:digits`: the real handwritten digits that scikit-learn ships (UCI, 1797 scans of 8 x 8 pixels with 17 greys)."""

from __future__ import annotations

import random
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mmrl.data.mini.light import SIZE, Pixels
from mmrl.data.mini.primitives import NUMBER_WORDS

CLASSES = NUMBER_WORDS
SCANS_PER_CLASS = (178, 182, 177, 183, 181, 182, 181, 179, 174, 180)
SHARES = (0.5, 0.2, 0.3)  # of each class, to train, val, test


@lru_cache(maxsize=1)
def _scans() -> tuple[NDArray[np.uint8], tuple[tuple[int, ...], ...]]:
    """All scans (1797, 8, 8), 0 to 16, and for each digit its scans in a fixed shuffled order."""
    from sklearn.datasets import load_digits  # heavy, wanted by this set alone

    bunch = load_digits()
    order = []
    for digit in range(10):
        mine = np.flatnonzero(bunch.target == digit).tolist()
        random.Random(digit).shuffle(mine)
        order.append(tuple(mine))
    return bunch.images.astype(np.uint8), tuple(order)


def sizes(split: str) -> tuple[int, ...]:
    """Scans of each class in "train", "val" or "test"."""
    out = []
    for n in SCANS_PER_CLASS:
        train, val = round(n * SHARES[0]), round(n * SHARES[1])
        out.append({"train": train, "val": val, "test": n - train - val}[split])
    return tuple(out)


def scan(split: str, label: int, index: int) -> Pixels:
    """One scan, enlarged (64, 64, 3): white on black."""
    images, order = _scans()
    first = {"train": 0, "val": sizes("train")[label], "test": sizes("train")[label] + sizes("val")[label]}[split]
    small = Image.fromarray((images[order[label][first + index]].astype(np.float32) * (255 / 16)).round().astype(np.uint8))
    large = np.asarray(small.resize((SIZE, SIZE), Image.Resampling.BICUBIC))
    return np.repeat(large[..., None], 3, axis=2)
