"""CLAP and ZS-LP (Silva-Rodriguez et al., CVPR 2024) the plain way: a parameter, torch's SGD and whole encoders."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmrl.methods.clap import CLAP
from tests.oracle.methods.encoders import copies


def text_features(method: CLAP, names: Sequence[str], template: str | Sequence[str]) -> Tensor:
    """(C, d): of each class the mean over the prompts of what the text encoder puts out."""
    templates = method.options.templates or ([template] if isinstance(template, str) else template)
    rows = []
    for name in names:
        prompts = [one.replace("{}", name.replace("_", " ")) for one in templates]
        tokens = method.clip.tokenizer(prompts, context_length=method.clip.context_length)
        with torch.no_grad():
            rows.append(method.clip.model.encode_text(tokens).mean(0))
    return torch.stack(rows)


def cosines(image: Tensor, prototypes: Tensor) -> Tensor:
    return (image / image.norm(dim=-1, keepdim=True)) @ (prototypes / prototypes.norm(dim=-1, keepdim=True)).T


def procedure(
    x: Tensor, y: Tensor, text: Tensor, order: Sequence[Tensor], scale: float, *, batch: int, lr: float, momentum: float, penalty: str
) -> Tensor:
    """Prototypes after training on raw features (N, d), in the order of the epochs."""
    probability = (scale * cosines(x, text)).softmax(-1)
    alpha = torch.stack([probability[y == c, c].mean() for c in range(len(text))])
    prototypes = nn.Parameter(text.clone())
    sgd = torch.optim.SGD([prototypes], lr=lr, momentum=momentum)
    for epoch, rows in enumerate(order):
        sgd.param_groups[0]["lr"] = 1e-5 if epoch == 0 else 0.5 * lr * (1 + math.cos(math.pi * (epoch - 1) / len(order)))
        for i in range(0, len(rows), batch):
            some = rows[i : i + batch]
            loss = F.cross_entropy(scale * cosines(x[some], prototypes), y[some])
            if penalty == "l2":
                loss = loss + torch.mean(alpha * (prototypes - text).pow(2).sum(-1))
            sgd.zero_grad()
            loss.backward()
            sgd.step()
    return prototypes.detach()


class Plain:
    """With the prototypes that the method has."""

    def __init__(self, method: CLAP, names: Sequence[str]) -> None:
        assert method.task is not None
        self.parameters: dict[str, nn.Parameter] = copies(method)
        self.model, self.scale = method.clip.model, float(method.clip.model.logit_scale.exp())
        self.prototypes = method.prototypes[[method.task.names.index(name) for name in names]]

    def logits(self, images: Tensor) -> Tensor:
        with torch.no_grad():
            return self.scale * cosines(self.model.encode_image(images), self.prototypes)

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(self.logits(images), labels)


def plain(method: CLAP, names: Sequence[str], template: str | Sequence[str]) -> Plain:
    """`template` is not used: what it says is in the prototypes."""
    return Plain(method, names)
