"""MMA the plain way: every layer of both encoders, adapters after each block, gradients scaled by hooks."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from mmrl.methods.mma import MMA
from tests.oracle.methods.encoders import Encoders, Run, copies


def gradient_times(x: Tensor, factor: float) -> Tensor:
    """`x`, whose gradient is multiplied."""
    if x.requires_grad:
        x = x.view_as(x)
        x.register_hook(lambda gradient: gradient * factor)
    return x


class Plain:
    def __init__(self, method: MMA, names: Sequence[str], template: str | Sequence[str]) -> None:
        self.parameters, self.encoders, self.options = copies(method), Encoders(method), method.options
        depth = min(len(method.clip.model.visual.transformer.resblocks), len(method.clip.model.transformer.resblocks))
        end = self.options.adapter_end or min(12, depth)
        self.first, self.last = (self.options.adapter_start or min(5, end)) - 1, end - 1  # from 0
        self.classes, self.scale = len(names), method.clip.model.logit_scale.exp()
        self.tokens = self.encoders.tokens(self.options.template or template, names)

    def run(self, tower: str) -> Run:
        p, scale = self.parameters, self.options.adapter_scale

        def linear(x: Tensor, name: str, i: int) -> Tensor:
            return F.linear(x, p[f"{name}.weight"][i], p[f"{name}.bias"][i])

        def run(layer: int, block: nn.Module, x: Tensor, mask: Tensor | None) -> Tensor:
            out = block(x, attn_mask=mask)
            if not self.first <= layer <= self.last:
                return out
            i = layer - self.first
            inner = linear(gradient_times(block.ln_1(x), scale), f"{tower}_down", i).relu()
            return out + scale * gradient_times(linear(linear(inner, "shared", i).relu(), f"{tower}_up", i), 1 / scale)

        return run

    def logits(self, images: Tensor) -> Tensor:
        text = self.encoders.text(self.tokens, self.classes, self.run("text"))
        return self.scale * self.encoders.image(images, self.run("visual")) @ text.T

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(self.logits(images), labels)


def plain(method: MMA, names: Sequence[str], template: str | Sequence[str]) -> Plain:
    return Plain(method, names, template)
