"""CoCoOp the plain way: for every image all prompts, whole, through the text tower."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmrl.methods.cocoop import CoCoOp
from tests.oracle.methods.coop import ContextPrompts
from tests.oracle.methods.encoders import copies


class Plain:
    def __init__(self, method: CoCoOp, names: Sequence[str]) -> None:
        self.parameters: dict[str, nn.Parameter] = copies(method)
        self.model, self.scale = method.clip.model, method.clip.model.logit_scale.exp()
        self.prompts = ContextPrompts(method, names, method.n_ctx, "end")

    def logits(self, images: Tensor) -> Tensor:
        p = self.parameters
        rows = []
        for image in F.normalize(self.model.encode_image(images), dim=-1):
            hidden = F.relu(F.linear(image, p["meta_net.linear1.weight"], p["meta_net.linear1.bias"]))
            shift = F.linear(hidden, p["meta_net.linear2.weight"], p["meta_net.linear2.bias"])
            text = F.normalize(self.prompts.encode(self.prompts.put_together(p["ctx"] + shift)), dim=-1)
            rows.append(self.scale * text @ image)
        return torch.stack(rows)

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(self.logits(images), labels)


def plain(method: CoCoOp, names: Sequence[str], template: str | Sequence[str]) -> Plain:
    """CoCoOp has its own prompt for every data set, so `template` is not used."""
    return Plain(method, names)
