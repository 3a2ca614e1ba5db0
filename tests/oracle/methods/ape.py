"""APE and APE-T (Zhu et al., ICCV 2023) the plain way: whole encoders, every pair of vectors and every point of the grid by itself."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations, product
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmrl.methods.ape import APE, APET
from tests.oracle.methods.encoders import Encoders, copies
from tests.oracle.methods.tip_adapter import cache_keys

SCALE = 100.0


class Cache(NamedTuple):
    """Keys (N, d), normalised, one-hot labels (N, C), and class features (C, d) of all classes trained on."""

    keys: Tensor
    values: Tensor
    text: Tensor


def likeness(vectors: Sequence[Tensor]) -> Tensor:
    """Mean product (d,) of vectors of different classes, each of which has some (n, d)."""
    pairs = [torch.stack([one * other for one, other in product(ours, theirs)]).mean(0) for ours, theirs in permutations(vectors, 2)]
    return torch.stack(pairs).mean(0)


def channels(text: Tensor, keys: Tensor | None, values: Tensor, weights: tuple[float, float], count: int) -> Tensor:
    """The `count` channels with the highest score."""
    vectors = [
        torch.stack([feature, *(keys[values[:, c] == 1] if keys is not None else ())]) for c, feature in enumerate(text)
    ]  # fmt: skip
    return (weights[1] * text.var(0) - weights[0] * likeness(vectors)).argsort(descending=True)[:count]


class Refined:
    """APE's cache in its channels."""

    def __init__(self, cache: Cache, kept: Tensor) -> None:
        self.kept, self.values = kept, cache.values
        self.keys, text = (F.normalize(each[:, kept], dim=-1) for each in (cache.keys, cache.text))
        told = (self.keys @ text.T).softmax(-1)
        self.divergence = (self.values * torch.log2((self.values + 1e-6) / (told + 1e-6))).sum(-1)

    def logits(self, image: Tensor, text: Tensor, values: Tensor, beta: float, alpha: float, gamma: float) -> Tensor:
        """Of image features (B, d) and class features (C, d), normalised, with values (N, C)."""
        affinity = F.normalize(image[:, self.kept], dim=-1) @ self.keys.T
        cache = torch.exp(-(beta - beta * affinity)) @ (torch.exp(gamma * self.divergence).unsqueeze(1) * values)
        return SCALE * image @ text.T + alpha * cache

    def search(self, image: Tensor, labels: Tensor, text: Tensor, scale: Sequence[float], step: Sequence[int]) -> tuple[float, ...]:
        """Beta, alpha and gamma, the first of the most accurate."""
        most, found = 0.0, (0.0, 0.0, 0.0)
        for i, j, k in product(*map(range, step)):
            beta, alpha = i * (scale[0] - 0.1) / step[0] + 0.1, j * (scale[1] - 0.1) / step[1] + 0.1
            point = beta, alpha, k * scale[2] / step[2]
            accuracy = float((self.logits(image, text, self.values, *point).argmax(-1) == labels).double().mean())
            if accuracy > most:
                most, found = accuracy, point
        return found


def all_text(method: APE | APET, template: str | Sequence[str], names: Sequence[str]) -> Tensor:
    encoders = Encoders(method)
    with torch.no_grad():
        return encoders.text(encoders.tokens(method.options.templates or template, names), len(names))


def cache_of(method: APE | APET, views: Tensor, labels: Tensor, template: str | Sequence[str]) -> Cache:
    """From views (V, N, 3, H, W) of the training images."""
    assert method.task is not None
    with torch.no_grad():
        keys = cache_keys(method.clip.model, views)
    return Cache(keys, F.one_hot(labels, len(method.task.names)).to(keys), all_text(method, template, method.task.names))


class Plain:
    """APE-T, with the channels, the cache, alpha and beta that the method has."""

    def __init__(self, method: APET, names: Sequence[str], template: str | Sequence[str]) -> None:
        assert method.task is not None
        self.parameters: dict[str, nn.Parameter] = copies(method)
        self.model, self.kept, self.keys, self.labels = method.clip.model, method.channels, method.keys, method.labels
        self.alpha, self.beta, self.text = method.alpha.clone(), method.beta.clone(), all_text(method, template, names)
        self.rows = [method.task.names.index(name) for name in names]
        self.values = F.one_hot(self.labels, len(method.task.names)).to(self.keys)[:, self.rows]

    def moved(self) -> Tensor:
        """Residuals (C, d) of all classes trained on, zero in the other channels."""
        residual = self.parameters["residual"]
        places = torch.zeros(len(self.kept), self.keys.shape[1], dtype=self.keys.dtype)
        places[torch.arange(len(self.kept)), self.kept] = 1
        return residual @ places

    def logits(self, images: Tensor) -> Tensor:
        with torch.no_grad():
            image = F.normalize(self.model.encode_image(images), dim=-1)
        moved = self.moved()
        keys, text = self.keys + moved[self.labels], self.text + moved[self.rows]
        values = self.values * self.parameters["value_weights"].unsqueeze(1)
        return SCALE * image @ text.T + self.alpha * torch.exp(-(self.beta - self.beta * (image @ keys.T))) @ values

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(self.logits(images), labels)


def plain(method: APET, names: Sequence[str], template: str | Sequence[str]) -> Plain:
    return Plain(method, names, template)
