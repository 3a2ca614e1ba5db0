"""Tip-Adapter and Tip-Adapter-F (Zhang et al., ECCV 2022) the plain way: whole encoders, every point of the grid by itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmrl.methods.tip_adapter import TipAdapter
from tests.oracle.methods.encoders import Encoders, copies

SCALE = 100.0


def cache_keys(model: Any, views: Tensor) -> Tensor:
    """Keys (N, d) of views (V, N, 3, H, W)."""
    mean = torch.stack([model.encode_image(images) for images in views]).mean(0)
    return mean / mean.norm(dim=-1, keepdim=True)


def tip_logits(image: Tensor, text: Tensor, keys: Tensor, values: Tensor, alpha: float | Tensor, beta: float | Tensor) -> Tensor:
    """Of image (B, d) and class features (C, d), normalised, keys (N, d) and one-hot values (N, C)."""
    return SCALE * image @ text.T + alpha * torch.exp(-(beta - beta * (image @ keys.T))) @ values


def search(
    image: Tensor, labels: Tensor, text: Tensor, keys: Tensor, values: Tensor, scale: tuple[float, float], step: tuple[int, int]
) -> tuple[float, float]:
    """Beta and alpha, the first of the most accurate."""
    most, found = 0.0, (0.0, 0.0)
    for i in range(step[0]):
        beta = i * (scale[0] - 0.1) / step[0] + 0.1
        for j in range(step[1]):
            alpha = j * (scale[1] - 0.1) / step[1] + 0.1
            logits = tip_logits(image, text, keys, values, alpha, beta)
            accuracy = float((logits.argmax(-1) == labels).double().mean())
            if accuracy > most:
                most, found = accuracy, (beta, alpha)
    return found


class Plain:
    """With the cache, alpha and beta that the method has."""

    def __init__(self, method: TipAdapter, names: Sequence[str], template: str | Sequence[str]) -> None:
        assert method.task is not None
        self.parameters: dict[str, nn.Parameter] = copies(method)
        self.model, encoders = method.clip.model, Encoders(method)
        with torch.no_grad():
            self.text = encoders.text(encoders.tokens(method.options.templates or template, names), len(names))
        self.keys = self.parameters.get("keys", method.keys.detach().clone())
        self.alpha, self.beta = method.alpha.clone(), method.beta.clone()
        values = F.one_hot(method.labels, len(method.task.names)).to(self.keys.dtype)  # (N, C) of all classes trained on
        self.values = values[:, [method.task.names.index(name) for name in names]]

    def logits(self, images: Tensor) -> Tensor:
        with torch.no_grad():
            image = F.normalize(self.model.encode_image(images), dim=-1)
        return tip_logits(image, self.text, self.keys, self.values, self.alpha, self.beta)

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(self.logits(images), labels)


def plain(method: TipAdapter, names: Sequence[str], template: str | Sequence[str]) -> Plain:
    return Plain(method, names, template)
