"""The few-shot linear probe of CoOp's authors (Zhou et al., IJCV 2022) the plain way: every fit of their search, and whole encoders."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmrl.methods.linear_probe import LinearProbe
from tests.oracle.methods.encoders import copies


class Probe(NamedTuple):
    """The fitted model of scikit-learn, its C, and the C of all fits in order."""

    model: Any
    c: float
    fits: list[float]


def procedure(x: Any, y: Any, val_x: Any, val_y: Any, grid: Sequence[float], steps: int, *, tol: float) -> Probe:
    """C by validation on the grid, then steps that fit both ends of an interval around it, halved on a logarithmic scale.

    Args:
        x, val_x: numpy's features (N, d).
        y, val_y: labels (N,).
    """
    from sklearn.linear_model import LogisticRegression

    fits: list[float] = []

    def fitted(c: float) -> tuple[Any, float]:
        fits.append(c)
        model = LogisticRegression(C=c, max_iter=1000, tol=tol).fit(x, y)
        return model, float(np.mean(model.predict(val_x) == val_y))

    peak = grid[int(np.argmax([fitted(c)[1] for c in grid]))]
    left, right = 0.1 * peak, 10 * peak
    for _ in range(steps):
        (model_left, acc_left), (model_right, acc_right) = fitted(left), fitted(right)
        middle = 0.5 * (np.log10(left) + np.log10(right))
        if acc_left < acc_right:
            model, c, left = model_right, right, 10**middle
        else:
            model, c, right = model_left, left, 10**middle
    return Probe(model, c, fits)


class Plain:
    """With the weights that the method has."""

    def __init__(self, method: LinearProbe, names: Sequence[str]) -> None:
        assert method.task is not None
        self.parameters: dict[str, nn.Parameter] = copies(method)
        self.model = method.clip.model
        rows = [method.task.names.index(name) for name in names]
        self.weight, self.bias = method.weight[rows], method.bias[rows]

    def logits(self, images: Tensor) -> Tensor:
        with torch.no_grad():
            return F.linear(self.model.encode_image(images), self.weight, self.bias)

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(self.logits(images), labels)


def plain(method: LinearProbe, names: Sequence[str], template: str | Sequence[str]) -> Plain:
    """`template` is not used: the probe knows no text."""
    return Plain(method, names)
