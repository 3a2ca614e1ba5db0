"""MMRL: multi-modal representation learning (Guo and Gu, CVPR 2025)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from mmrl.clip import Clip
from mmrl.errors import UsageError
from mmrl.methods.base import register
from mmrl.methods.representation import RepresentationMethod, RepresentationOptions

TOKEN_STD = 0.02  # supplement A


class MMRLOptions(RepresentationOptions):
    space: Literal["shared", "free", "text-to-visual"] = Field(
        "shared",
        description="where tokens come from: one space shared by both towers; free tokens of each tower (Table 4, w/o RS); "
        "free text tokens, mapped to visual ones (MMRL-dagger)",
    )


def normal_tokens(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(*shape) * TOKEN_STD)


class Aligner(nn.Module):
    """n independent linear maps (from d_in to d), all equal at the start, applied at once."""

    def __init__(self, layers: int, d_in: int, d: int) -> None:
        super().__init__()
        first = nn.Linear(d_in, d)
        self.weight = nn.Parameter(first.weight.detach().repeat(layers, 1, 1))  # (n, d, d_in)
        self.bias = nn.Parameter(first.bias.detach().repeat(layers, 1))  # (n, d)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens (K, d_in), or one set a layer (n, K, d_in) -> (n, K, d)."""
        x = x.expand(len(self.weight), -1, -1)
        return torch.baddbmm(self.bias.unsqueeze(1), x, self.weight.transpose(1, 2))


@register("mmrl")
class MMRL(RepresentationMethod):
    """Tokens of a shared space R, mapped into every layer from J of both towers by a linear map of its own (section 3.2)."""

    summary = "representation tokens from one shared space in the upper layers of both towers"
    source = "Guo and Gu, CVPR 2025"
    Options = MMRLOptions
    options: MMRLOptions
    text: Aligner | None
    visual: Aligner | None
    visual_tokens: nn.Parameter | None
    text_tokens: nn.Parameter | None
    authors_names: ClassVar[Mapping[str, str]] = {
        "rep_space": "representation_learner.compound_rep_tokens",
        "visual.weight": "representation_learner.compound_rep_tokens_r2vproj.{i}.weight",
        "visual.bias": "representation_learner.compound_rep_tokens_r2vproj.{i}.bias",
        "text.weight": "representation_learner.compound_rep_tokens_r2tproj.{i}.weight",
        "text.bias": "representation_learner.compound_rep_tokens_r2tproj.{i}.bias",
        "projection": "image_encoder.proj_rep",
    }

    def __init__(self, clip: Clip, options: MMRLOptions) -> None:
        super().__init__(clip, options)
        k, d_r, d_v, d_t = options.rep_tokens, options.rep_dim, clip.vision.width, clip.text.width
        n_v, n_t = self.visual_layers, self.text_layers
        if options.space == "text-to-visual":
            if not (options.visual and options.textual) or n_v != n_t:
                raise UsageError(
                    "space 'text-to-visual' maps the tokens of text layer by layer: visual and textual must both be on, and both towers "
                    f"need as many layers from J (here {n_v} and {n_t}; set first_layer and first_text_layer)."
                )
            self.text_tokens = normal_tokens(n_t, k, d_t)
            self.visual = Aligner(n_v, d_t, d_v)
        elif options.space == "free":
            self.visual_tokens = normal_tokens(n_v, k, d_v) if options.visual else None
            self.text_tokens = normal_tokens(n_t, k, d_t) if options.textual else None
        else:
            self.rep_space = normal_tokens(k, d_r)
            self.text = Aligner(n_t, d_r, d_t) if options.textual else None
            self.visual = Aligner(n_v, d_r, d_v) if options.visual else None
        if options.visual:
            self.projection = nn.Parameter(torch.randn(d_v, clip.embed_dim) * d_v**-0.5)

    def tokens(self) -> tuple[Tensor | None, Tensor | None]:
        if self.options.space == "text-to-visual":
            assert self.visual is not None
            return self.visual(self.text_tokens), self.text_tokens
        if self.options.space == "free":
            return self.visual_tokens, self.text_tokens
        return (
            None if self.visual is None else self.visual(self.rep_space),
            None if self.text is None else self.text(self.rep_space),
        )

    def rep_projection(self) -> Tensor:
        return self.projection
