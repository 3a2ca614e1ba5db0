"""PromptSRC (Khattak et al., ICCV 2023) the plain way: whole prompts and images, adapted and frozen, prompts put in block by block."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmrl.methods.promptsrc import PromptSRC
from tests.oracle.methods.encoders import Encoders, copies


class Plain:
    def __init__(self, method: PromptSRC, names: Sequence[str]) -> None:
        self.parameters, self.encoders, self.options = copies(method), Encoders(method), method.options
        self.model, self.classes, self.scale = method.clip.model, len(names), method.clip.model.logit_scale.exp()
        words = self.options.ctx_init or " ".join(["X"] * self.options.n_ctx_text)
        self.tokens = self.encoders.tokens(words + " {}.", names)  # PromptSRC has this prompt for every data set
        with torch.no_grad():
            features = [self.model.encode_text(self.encoders.tokens(one, names)) for one in self.options.teacher_templates]
            self.teacher = F.normalize(torch.stack(features).mean(0), dim=-1)  # of features that are not normalised

    def text_block(self, layer: int, block: nn.Module, x: Tensor, mask: Tensor | None) -> Tensor:
        deep, n = self.parameters.get("deep_text"), self.options.n_ctx_text
        if deep is not None and 1 <= layer <= len(deep):
            x = torch.cat([x[:, :1], deep[layer - 1].expand(len(x), -1, -1), x[:, 1 + n :]], dim=1)
        return block(x, attn_mask=mask)

    def image_block(self, layer: int, block: nn.Module, x: Tensor, mask: Tensor | None) -> Tensor:
        deep, n = self.parameters.get("deep_vision"), self.options.n_ctx_vision
        if deep is not None and 1 <= layer <= len(deep):
            x = torch.cat([x[:, :-n], deep[layer - 1].expand(len(x), -1, -1)], dim=1)
        return block(x, attn_mask=mask)

    def features(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Adapted image and class features, normalised."""
        text = self.encoders.text(self.tokens, self.classes, self.text_block, self.parameters["ctx_text"])
        return self.encoders.image(images, self.image_block, self.parameters["ctx_vision"]), text

    def logits(self, images: Tensor) -> Tensor:
        image, text = self.features(images)
        return self.scale * image @ text.T

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        with torch.no_grad():
            frozen = self.encoders.image(images)
        image, text = self.features(images)
        log_p = (self.scale * image @ text.T).log_softmax(-1)
        log_q = (self.scale * frozen @ self.teacher.T).log_softmax(-1)
        return (
            F.nll_loss(log_p, labels)
            + self.options.text_loss_weight * (text - self.teacher).abs().mean()
            + self.options.image_loss_weight * (image - frozen).abs().mean()
            + self.options.logit_loss_weight * (log_q.exp() * (log_q - log_p)).mean()
        )


def averaged(epochs: Sequence[Mapping[str, Tensor]], mean: float, std: float) -> dict[str, Tensor]:
    """Gaussian-weighted average of the parameters at the end of each epoch."""
    densities = (-(((torch.arange(1, len(epochs) + 1, dtype=torch.float64) - mean) / std) ** 2) / 2).exp()
    weights = densities / densities.sum()
    return {name: torch.stack([w * epoch[name] for w, epoch in zip(weights, epochs)]).sum(0) for name in epochs[0]}


def plain(method: PromptSRC, names: Sequence[str], template: str | Sequence[str]) -> Plain:
    return Plain(method, names)
