"""Photos to predict in bulk, and a classifier that answers hundreds of them a second."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

from mmrl import methods
from mmrl.bulk.answers import AskedOfEach
from mmrl.bulk.stream import BlockJudge
from mmrl.classifier.predictor import Classifier
from tests.unit.colours import smallest_clip

clip = cache(smallest_clip)
CLASSES = ("cat", "AC/DC", "..", "red panda")


def classifier(seed: int = 0) -> Classifier:
    return Classifier(methods.build("zero-shot", clip(seed)), template="a {}.")


def judge(seed: int = 0, **asked: object) -> BlockJudge:
    return BlockJudge(classifier(seed), AskedOfEach(**{"classes": CLASSES, **asked}))  # type: ignore[arg-type]


def photo(path: Path, seed: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (3, 3, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((40, 36)).save(path)
    return path


def photos(root: Path, count: int = 30) -> Path:
    """In two folders, which have the same names; one in ten is broken, and one name has a line break."""
    for i in range(count):
        place = root / ("a" if i % 2 else "b/deep") / f"{i // 2:03}.png"
        photo(place, i)
        if i % 10 == 5:
            place.write_bytes(b"no photo")
    photo(root / "a" / "two\nlines, \"quoted\"\r.png", 99)
    return root
