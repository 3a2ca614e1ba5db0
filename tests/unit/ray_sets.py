"""Two small data sets and the jobs on them, for tests of `--engine ray`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from mmrl.clip import load_clip
from mmrl.engine import Bench, Context, Job, bind
from mmrl.protocols import base_to_novel

BENCH = Bench("tiny")
OPTIONS = {"epochs": 4, "rep_tokens": 2, "rep_dim": 8, "first_layer": 3}
WORDS = [word for key, value in OPTIONS.items() for word in ("--set", f"{key}={value}")]


def photos(root: Path) -> Path:
    random = np.random.default_rng(0)
    for label in range(4):
        folder = root / f"thing {label}"
        folder.mkdir(parents=True)
        for number in range(10):
            pixels = random.integers(0, 90, (32, 32, 3), dtype=np.uint8)
            pixels[..., label % 3] += 40 * (label + 1)
            Image.fromarray(pixels).save(folder / f"{number}.png")
    return root


def jobs_of(*roots: Path, methods: tuple[str, ...] = ("zero-shot", "mmrl"), seeds: tuple[int, ...] = (1, 2)) -> list[Job]:
    cells = base_to_novel(methods, [str(root) for root in roots], seeds, shots=(4,), overrides=OPTIONS)
    return bind(cells, Context(BENCH, load_clip("tiny")))[0]
