"""LP++ (Huang et al., CVPR 2024) the plain way: a layer of torch, torch's SGD, gradients by autograd, whole encoders."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmrl.methods.lpp import LPPlusPlus
from tests.oracle.methods.encoders import Encoders, copies


class Step(NamedTuple):
    weight: Tensor
    bias: Tensor
    alpha: Tensor
    loss: Tensor


def procedure(
    x: Tensor, y: Tensor, text: Tensor, bias: Tensor, *, steps: int, momentum: float, every: int, scale: float
) -> Iterator[Step]:
    """State after every step; features (N, d) and class features (C, d) are normalised."""
    classes = range(len(text))
    layer = nn.Linear(x.shape[1], len(text)).to(x)
    with torch.no_grad():
        layer.weight.copy_(torch.stack([x[y == c].sum(0) for c in classes]))
        layer.bias.copy_(bias)
    cosines = [float((x[y == c] @ text[c]).mean()) for c in classes]
    alpha = nn.Parameter(torch.full((len(text),), scale * sum(cosines) / len(cosines), dtype=x.dtype))
    largest = torch.linalg.svdvals(x)[0] ** 2
    sgd = torch.optim.SGD(layer.parameters(), lr=float(4 * len(x) / largest), momentum=momentum)
    rate = len(x) / (4 * max(float(sum((one @ text[c]) ** 2 for one in x)) for c in classes))
    for step in range(steps):
        loss = F.cross_entropy(layer(x) + alpha * (x @ text.T), y)
        sgd.zero_grad()
        loss.backward()  # that of alpha is never set to zero
        sgd.step()
        if (step + 1) % every == 0:
            assert alpha.grad is not None
            alpha.data -= rate * alpha.grad
        yield Step(layer.weight.detach().clone(), layer.bias.detach().clone(), alpha.detach().clone(), loss.detach())


class Plain:
    """With the weights that the method has."""

    def __init__(self, method: LPPlusPlus, names: Sequence[str], template: str | Sequence[str]) -> None:
        assert method.task is not None
        self.parameters: dict[str, nn.Parameter] = copies(method)
        self.model, encoders = method.clip.model, Encoders(method)
        with torch.no_grad():
            self.text = encoders.text(encoders.tokens(method.options.templates or template, names), len(names))
        rows = [method.task.names.index(name) for name in names]
        self.weight, self.bias, self.alpha = method.weight[rows], method.bias[rows], method.alpha[rows]

    def logits(self, images: Tensor) -> Tensor:
        with torch.no_grad():
            image = F.normalize(self.model.encode_image(images), dim=-1)
        return F.linear(image, self.weight, self.bias) + self.alpha * (image @ self.text.T)

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(self.logits(images), labels)


def plain(method: LPPlusPlus, names: Sequence[str], template: str | Sequence[str]) -> Plain:
    return Plain(method, names, template)
