"""Images whose classes can be told apart, and passes over them: a `FeatureSource` for methods that work on features."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from mmrl.clip import Clip
from mmrl.methods import Method, Task
from tests.oracle.methods.compare import NAMES, TEMPLATE


@dataclass
class Images:
    """Of each class one pattern, plus noise; images are (N, 3, 32, 32), classes mixed, not of equal number.

    A view is the image plus the noise of its number. `passes` says what was asked for.
    """

    clip: Clip
    classes: int = len(NAMES)
    noise: float = 3.0
    seed: int = 0

    def __post_init__(self) -> None:
        generator = torch.Generator().manual_seed(self.seed)
        self.passes: list[tuple[str, int]] = []
        self.patterns = torch.randn(self.classes, 3, 32, 32, generator=generator)
        self.labels = {"train": self._labels(3, generator), "val": self._labels(4, generator), "test": self._labels(4, generator)}
        self.images = {part: self._drawn(labels, generator) for part, labels in self.labels.items()}

    def _labels(self, shots: int, generator: torch.Generator) -> Tensor:
        labels = torch.arange(self.classes).repeat(shots)[:-1]  # of the last class one less
        return labels[torch.randperm(len(labels), generator=generator)]

    def _drawn(self, labels: Tensor, generator: torch.Generator) -> Tensor:
        images = self.patterns[labels] + self.noise * torch.randn(len(labels), 3, 32, 32, generator=generator)
        return images.to(next(self.clip.model.parameters()).dtype)

    def views(self, part: str, views: int) -> Tensor:
        """(V, N, 3, 32, 32)."""
        images = self.images[part]
        noise = (torch.randn(images.shape, generator=torch.Generator().manual_seed(i), dtype=images.dtype) for i in range(views))
        return torch.stack([images + each for each in noise]) if views else images.unsqueeze(0)

    def __call__(self, part: Literal["train", "val"], views: int = 0) -> tuple[Tensor, Tensor]:
        self.passes.append((part, views))
        images = self.views(part, views)
        features = self.clip.encode_image(images.flatten(0, 1), normalise=False)
        return features.unflatten(0, images.shape[:2]), self.labels[part]

    def accuracy(self, method: Method) -> float:
        """On the test images."""
        logits = method.logits(self.images["test"], method.head(method.class_list(NAMES, TEMPLATE)), True)
        return float((logits.argmax(-1) == self.labels["test"]).double().mean())

    def task(self, names: tuple[str, ...] = NAMES, *, validation: bool = True) -> Task:
        val = len(self.labels["val"]) if validation else 0
        return Task(names, TEMPLATE, len(self.labels["train"]), val, features=self)


def shapes(method: Method) -> dict[str, tuple[torch.Size, torch.dtype]]:
    """Of all tensors that an adapter of the method has."""
    return {name: (value.shape, value.dtype) for name, value in method.state_dict().items()}
