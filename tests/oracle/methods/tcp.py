"""TCP (Yao et al., CVPR 2024) the plain way: whole prompts, into whose layers each class's tokens are put."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmrl.methods.tcp import TCP
from tests.oracle.methods.encoders import Encoders, copies


class Plain:
    def __init__(self, method: TCP, names: Sequence[str], template: str | Sequence[str]) -> None:
        self.parameters, self.options, self.layer = copies(method), method.options, method.layer
        self.encoders, self.scale = Encoders(method), method.clip.model.logit_scale.exp()
        self.tokens = self.encoders.tokens("X " * len(self.parameters["ctx"]) + self.options.template, names)
        with torch.no_grad():
            self.teacher = self.encoders.text(self.encoders.tokens(self.options.teacher_template or template, names), len(names))

    def class_tokens(self) -> Tensor:
        """(C, n, d)."""
        p = self.parameters
        x = self.teacher @ p["meta_net.linear1.weight"].T + p["meta_net.linear1.bias"]
        x = x * torch.sigmoid(1.702 * x)
        x = x @ p["meta_net.linear2.weight"].T + p["meta_net.linear2.bias"]
        return x.reshape(len(x), *p["ctx"].shape)

    def text(self) -> Tensor:
        """Class features (C, embed_dim), normalised."""
        tokens, weight, ctx = self.class_tokens(), self.options.insert_weight, self.parameters["ctx"]

        def run(layer: int, block: nn.Module, x: Tensor, mask: Tensor | None) -> Tensor:
            if layer == self.layer:
                before, context, behind = x[:, :1], x[:, 1 : 1 + len(ctx)], x[:, 1 + len(ctx) :]
                x = torch.cat([before, weight * tokens + (1 - weight) * context, behind], dim=1)
            return block(x, attn_mask=mask)

        return self.encoders.text(self.tokens, len(tokens), run, ctx)

    def scored(self, images: Tensor, text: Tensor) -> Tensor:
        with torch.no_grad():
            image = self.encoders.image(images)
        return self.scale * image @ text.T

    def logits(self, images: Tensor) -> Tensor:
        return self.scored(images, self.text())

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy, and the weighted distance of the text features to the teacher's."""
        text = self.text()
        distance = 1 - (text * self.teacher).sum(-1).mean()
        return F.cross_entropy(self.scored(images, text), labels) + self.options.reg_weight * distance


def plain(method: TCP, names: Sequence[str], template: str | Sequence[str]) -> Plain:
    return Plain(method, names, template)
