"""CLIP-Adapter (Gao et al., IJCV 2024) the plain way: whole encoders, and the adapter as it is drawn."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmrl.methods.clip_adapter import CLIPAdapter
from tests.oracle.methods.encoders import Encoders, copies


class Plain:
    def __init__(self, method: CLIPAdapter, names: Sequence[str], template: str | Sequence[str]) -> None:
        self.parameters: dict[str, nn.Parameter] = copies(method)
        self.model, self.options, encoders = method.clip.model, method.options, Encoders(method)
        with torch.no_grad():
            self.text = encoders.text(encoders.tokens(template, names), len(names))

    def logits(self, images: Tensor) -> Tensor:
        with torch.no_grad():
            image = self.model.encode_image(images)
        hidden = torch.relu(image @ self.parameters["down"].T)
        out = hidden @ self.parameters["up"].T
        out = torch.relu(out) if self.options.last_relu else out
        blend = self.options.ratio * out + (1 - self.options.ratio) * image
        return self.model.logit_scale.exp() * (blend / blend.norm(dim=-1, keepdim=True)) @ self.text.T

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(self.logits(images), labels)


def plain(method: CLIPAdapter, names: Sequence[str], template: str | Sequence[str]) -> Plain:
    return Plain(method, names, template)
