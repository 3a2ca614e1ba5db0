"""MMRL++: shared-residual aligners and progressive composition of the tokens (Guo and Gu, IJCV 2026)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from mmrl.clip import Clip
from mmrl.methods.mmrl import RepresentationMethod, RepresentationOptions, normal_tokens
from mmrl.methods.registry import register


class MMRLPlusPlusOptions(RepresentationOptions):
    beta: float = Field(
        0.9, ge=0, le=1, description="share of a layer's own tokens; 1 - beta comes from the previous layer's output at their positions"
    )
    layer_rank: int = Field(4, ge=1, le=100_000, description="rank of each layer's residual to the shared map")
    projection_rank: int = Field(64, ge=1, le=100_000, description="rank of the residual of the representation projection")


def _down(*shape: int) -> nn.Parameter:
    """Kaiming-uniform with a = sqrt 5: U(-1/sqrt(rank), 1/sqrt(rank)), rank being the last size."""
    return nn.Parameter(torch.empty(*shape).uniform_(-1, 1) / math.sqrt(shape[-1]))


class SharedResidualAligner(nn.Module):
    """One map W (d, d_r) for all n layers, and for each a residual A_i B_i of low rank and a bias (SRRA)."""

    def __init__(self, layers: int, d_r: int, d: int, rank: int) -> None:
        super().__init__()
        shared = nn.Linear(d_r, d)
        self.weight = nn.Parameter(shared.weight.detach().clone())  # (d, d_r)
        self.bias = nn.Parameter(shared.bias.detach().repeat(layers, 1))  # (n, d)
        self.a = _down(layers, d, rank)  # (n, d, rank)
        self.b = nn.Parameter(torch.zeros(layers, rank, d_r))  # (n, rank, d_r)

    def forward(self, space: Tensor) -> Tensor:
        """R (K, d_r) -> tokens of every layer, R (W + A_i B_i)^T + bias_i: (n, K, d)."""
        shared = (space @ self.weight.T).unsqueeze(0) + self.bias.unsqueeze(1)  # (n, K, d)
        return shared + (space @ self.b.transpose(1, 2)) @ self.a.transpose(1, 2)


@register("mmrlpp")
class MMRLPlusPlus(RepresentationMethod):
    """MMRL with far fewer parameters, whose tokens carry what they saw from layer to layer, in both towers (PRC)."""

    title = "MMRL++"
    summary = "MMRL with shared maps, low-rank residuals and tokens that build on the previous layer's"
    source = "Guo and Gu, IJCV 2026"
    Options = MMRLPlusPlusOptions
    options: MMRLPlusPlusOptions
    authors_names: ClassVar[Mapping[str, str]] = {
        "rep_space": "representation_learner.compound_rep_tokens",
        "visual.weight": "representation_learner.srra_r2vproj.weight",
        "visual.bias": "representation_learner.srra_r2vproj.srra.{i}.bias",
        "visual.a": "representation_learner.srra_r2vproj.srra.{i}.A",
        "visual.b": "representation_learner.srra_r2vproj.srra.{i}.B",
        "text.weight": "representation_learner.srra_r2tproj.weight",
        "text.bias": "representation_learner.srra_r2tproj.srra.{i}.bias",
        "text.a": "representation_learner.srra_r2tproj.srra.{i}.A",
        "text.b": "representation_learner.srra_r2tproj.srra.{i}.B",
        "projection_a": "image_encoder.A",
        "projection_b": "image_encoder.B",
    }

    def __init__(self, clip: Clip, options: MMRLPlusPlusOptions) -> None:
        super().__init__(clip, options)
        d_r, rank, d_v = options.rep_dim, options.layer_rank, clip.vision.width
        self.rep_space = normal_tokens(options.rep_tokens, d_r)
        self.text = SharedResidualAligner(self.text_layers, d_r, clip.text.width, rank) if options.textual else None
        self.visual = SharedResidualAligner(self.visual_layers, d_r, d_v, rank) if options.visual else None
        if options.visual:
            self.projection_a = _down(d_v, options.projection_rank)
            self.projection_b = nn.Parameter(torch.zeros(options.projection_rank, clip.embed_dim))

    @classmethod
    def options_of(cls, tensors: Mapping[str, Tensor], clip: Clip, *, where: str) -> dict[str, Any]:
        found = super().options_of(tensors, clip, where=where)
        return found | {"layer_rank": tensors["visual.a"].shape[-1], "projection_rank": tensors["projection_a"].shape[-1]}

    def tokens(self) -> tuple[Tensor | None, Tensor | None]:
        return (
            None if self.visual is None else self.visual(self.rep_space),
            None if self.text is None else self.text(self.rep_space),
        )

    def rep_projection(self) -> Tensor:
        return self.clip.vision.projection + self.projection_a @ self.projection_b

    def keep(self) -> float:
        return 1 - self.options.beta
