"""MaPLe the plain way: whole prompts and images, tokens put in block by block, one linear map a layer."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmrl.methods.maple import MaPLe
from tests.oracle.methods.encoders import Encoders, copies


class Plain:
    def __init__(self, method: MaPLe, names: Sequence[str], template: str | Sequence[str]) -> None:
        self.parameters, self.encoders = copies(method), Encoders(method)
        self.n, self.classes, self.scale = method.options.n_ctx, len(names), method.clip.model.logit_scale.exp()
        words = method.options.ctx_init or " ".join(["X"] * self.n)
        self.tokens = self.encoders.tokens(words + " {}.", names)  # MaPLe has this prompt for every data set

    def text_block(self, layer: int, block: nn.Module, x: Tensor, mask: Tensor | None) -> Tensor:
        deep = self.parameters.get("deep")
        if deep is not None and 1 <= layer <= len(deep):
            x = torch.cat([x[:, :1], deep[layer - 1].expand(len(x), -1, -1), x[:, 1 + self.n :]], dim=1)
        return block(x, attn_mask=mask)

    def image_block(self, layer: int, block: nn.Module, x: Tensor, mask: Tensor | None) -> Tensor:
        p = self.parameters
        if "deep" in p and 1 <= layer <= len(p["deep"]):
            i = layer - 1
            tokens = F.linear(p["deep"][i], p["deep_projections.weight"][i], p["deep_projections.bias"][i])
            x = torch.cat([x[:, : -self.n], tokens.expand(len(x), -1, -1)], dim=1)
        return block(x, attn_mask=mask)

    def logits(self, images: Tensor) -> Tensor:
        p = self.parameters
        text = self.encoders.text(self.tokens, self.classes, self.text_block, p["ctx"])
        first = F.linear(p["ctx"], p["projection.weight"], p["projection.bias"])
        return self.scale * self.encoders.image(images, self.image_block, first) @ text.T

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(self.logits(images), labels)


def plain(method: MaPLe, names: Sequence[str], template: str | Sequence[str]) -> Plain:
    return Plain(method, names, template)
