"""A data set of four colours, a few kilobytes large, and a CLIP that trains on it in milliseconds a step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mmrl import engine, methods
from mmrl.clip import Clip, random_clip
from mmrl.data import Dataset, Draw, Item, draw_shots
from mmrl.engine.batches import Batches

COLOURS = {"red": (200, 40, 40), "green": (40, 200, 40), "blue": (40, 40, 200), "grey": (120, 120, 120)}
NAMES = tuple(COLOURS)
OPTIONS = {"rep_tokens": 2, "rep_dim": 8}
PROMPT = "a photo of {}."
Batch = tuple[Tensor, Tensor]


def read(key: str) -> Image.Image:
    name, number = key.split("/")
    noise = np.random.default_rng(int(number)).normal(0, 40, (32, 32, 3))
    return Image.fromarray(np.clip(np.array(COLOURS[name]) + noise, 0, 255).astype(np.uint8))


def items(first: int, last: int) -> list[Item]:
    return [Item(f"{name}/{number}", label) for label, name in enumerate(NAMES) for number in range(first, last)]


def colours() -> Dataset:
    return Dataset("colours", NAMES, PROMPT, items(0, 8), items(8, 12), items(12, 20), read)


def base_draw(shots: int = 4) -> Draw:
    return draw_shots(colours(), shots, seed=1, classes="base")


def smallest_clip(seed: int = 0, text_width: int = 32) -> Clip:
    vision = {"layers": 2, "width": 32, "image_size": 32, "patch_size": 16, "head_width": 32}
    text = {"layers": 2, "width": text_width, "heads": 1, "context_length": 16}
    return random_clip("ViT-B-32", seed=seed, embed_dim=16, vision_cfg=vision, text_cfg=text)


def clip_on_one_thread() -> Iterator[Clip]:
    """The body of a fixture: so small a model is slower on several threads, and very slow on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield smallest_clip()
    torch.set_num_threads(before)


def fresh(clip: Clip, name: str = "mmrl", **options: Any) -> methods.Method:
    return methods.build(name, clip, {**(OPTIONS if name in ("mmrl", "mmrlpp") else {}), **options}, seed=1)


def noise(batches: int, size: int = 2, seed: int = 0) -> list[Batch]:
    """Random images (size, 3, 32, 32) with random labels."""
    generator = torch.Generator().manual_seed(seed)
    return [(torch.randn(size, 3, 32, 32, generator=generator), torch.randint(0, 4, (size,), generator=generator)) for _ in range(batches)]


class Same:
    """Batches that are the same in every epoch; counts what was taken."""

    def __init__(self, batches: list[Batch]) -> None:
        self.batches, self.taken = batches, 0

    def __len__(self) -> int:
        return len(self.batches)

    def epoch(self, number: int, start: int = 0) -> Iterator[Batch]:
        for batch in self.batches[start:]:
            self.taken += 1
            yield batch


class Shuffled:
    """Other batches in every epoch, decided by its number alone; the process is interrupted before it takes batch number `until`."""

    def __init__(self, count: int = 3, until: int | None = None) -> None:
        self.count, self.until, self.taken = count, until, 0

    def __len__(self) -> int:
        return self.count

    def epoch(self, number: int, start: int = 0) -> Iterator[Batch]:
        for batch in noise(self.count, seed=number)[start:]:
            if self.taken == self.until:
                raise KeyboardInterrupt
            self.taken += 1
            yield batch


def train(
    method: methods.Method, batches: list[Batch] | Batches, config: engine.FitConfig, out: Path | None = None, *, resume: bool = False,
    classes: Sequence[str] = NAMES, template: str = PROMPT,
) -> engine.FitResult:  # fmt: skip
    """On batches as they are."""
    data = engine.TrainingData(Same(batches) if isinstance(batches, list) else batches, tuple(classes), template)
    return engine.fit(method, data, config, engine.Place(out, resume=resume, progress=False))


def train_on(
    method: methods.Method, dataset: Dataset, items: Draw | Sequence[Item], values: dict[str, Any], out: Path | None = None
) -> engine.FitResult:
    """On images of a data set."""
    config, place = engine.make_config(values), engine.Place(out, progress=False)
    return engine.fit(method, engine.TrainingData.of(method.clip, dataset, items, config, place), config, place)
