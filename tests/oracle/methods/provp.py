"""ProVP the plain way: whole images, prompted and frozen, prompts put behind the class token block by block."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmrl.methods.provp import ProVP
from tests.oracle.methods.encoders import Encoders, copies


class Plain:
    def __init__(self, method: ProVP, names: Sequence[str], template: str | Sequence[str]) -> None:
        self.parameters, self.encoders, self.options = copies(method), Encoders(method), method.options
        self.scale = method.clip.model.logit_scale.exp()
        with torch.no_grad():
            self.text = self.encoders.text(self.encoders.tokens(self.options.template or template, names), len(names))

    def block(self, layer: int, block: nn.Module, x: Tensor, mask: Tensor | None) -> Tensor:
        prompts, n, old = self.parameters["prompts"], self.options.n_ctx_vision, self.options.progressive_alpha
        if layer < len(prompts):
            own = prompts[layer].expand(len(x), -1, -1)
            if layer == 0:
                x = torch.cat([x[:, :1], own, x[:, 1:]], dim=1)
            else:
                x = torch.cat([x[:, :1], old * x[:, 1 : 1 + n] + (1 - old) * own, x[:, 1 + n :]], dim=1)
        return block(x, attn_mask=mask)

    def logits(self, images: Tensor) -> Tensor:
        return self.scale * self.encoders.image(images, self.block) @ self.text.T

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        with torch.no_grad():
            frozen = self.encoders.image(images)
        image = self.encoders.image(images, self.block)
        contrast = F.nll_loss((image @ frozen.T).log_softmax(-1), torch.arange(len(images), device=images.device))
        return F.cross_entropy(self.scale * image @ self.text.T, labels) + self.options.ref_loss_weight * contrast


def plain(method: ProVP, names: Sequence[str], template: str | Sequence[str]) -> Plain:
    return Plain(method, names, template)
