"""MaPLe: multi-modal prompt learning (Khattak et al., CVPR 2023)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from mmrl.clip import AnyImages, ClassList, Clip, Edit
from mmrl.errors import UsageError
from mmrl.methods.authors import SavedAs, require_tower, sizes_of
from mmrl.methods.mmrl import Aligner
from mmrl.methods.options import MethodOptions
from mmrl.methods.prompts import (
    LEARNER_CONSTANTS,
    MOST_WORDS,
    context_edit,
    context_of,
    context_texts,
    random_context,
    with_prompts,
)
from mmrl.methods.registry import register
from mmrl.methods.two_tower import ImageFeatures, TwoTower
from mmrl.templates import fill

DEPTH = 9  # published


class MaPLeOptions(MethodOptions):
    """Defaults are the authors' for base-to-novel."""

    n_ctx: int = Field(2, ge=1, le=70, description="number of learned tokens in each layer of each tower")
    ctx_init: str = Field(
        "a photo of a",
        max_length=500,
        description="text in front of the class name; its first n_ctx tokens start the context, the rest stays; empty: random context",
    )
    depth: int | None = Field(None, ge=1, le=1000, description="number of layers, from the first, with own tokens; default: 9, or all")


@register("maple")
class MaPLe(TwoTower):
    """Learned tokens in the first layers of the text tower, mapped into the image tower layer by layer (section 3.2).

    Text: the context takes the place of the first words; layers 1 to depth - 1, from 0, replace it by tokens of their own; behind them it
    runs on. Image: the mapped tokens stand beside the patches, those of layer 0 before ln_pre. Context and the words behind it are the
    same for all classes and run once.
    """

    title = "MaPLe"
    summary = "learned tokens in the lower layers of both towers, the image's mapped from the text's"
    source = "Khattak et al., CVPR 2023"
    Options = MaPLeOptions
    options: MaPLeOptions
    edits_layers = True
    authors_names: ClassVar[Mapping[str, str]] = {
        "ctx": "prompt_learner.ctx",
        "projection.weight": "prompt_learner.proj.weight",
        "projection.bias": "prompt_learner.proj.bias",
        "deep": "prompt_learner.compound_prompts_text.{i}",
        "deep_projections.weight": "prompt_learner.compound_prompt_projections.{i}.weight",
        "deep_projections.bias": "prompt_learner.compound_prompt_projections.{i}.bias",
    }
    saved_as = SavedAs(
        optional=frozenset({"deep", "deep_projections.weight", "deep_projections.bias"}),  # none of them at depth 1
        constant=LEARNER_CONSTANTS,
    )

    def __init__(self, clip: Clip, options: MaPLeOptions) -> None:
        super().__init__(clip, options)
        depth = min(clip.vision.depth, clip.text.depth)
        self.depth = options.depth or min(DEPTH, depth)
        if self.depth > depth:
            raise UsageError(f"depth is {self.depth}, but the shallower tower of '{clip.name}' has {depth} layers; give 1 to {depth}.")
        n, d_t, d_v = options.n_ctx, clip.text.width, clip.vision.width
        self.ctx = nn.Parameter(context_of(clip, options.ctx_init, n) if options.ctx_init else random_context(n, d_t))  # (n, d_t)
        self.projection = nn.Linear(d_t, d_v)
        if self.depth > 1:
            self.deep = nn.Parameter(random_context(self.depth - 1, n, d_t))  # (depth - 1, n, d_t)
            self.deep_projections = Aligner(self.depth - 1, d_t, d_v)

    @property
    def modality(self) -> str:
        return "V-L"

    @classmethod
    def options_of(cls, tensors: Mapping[str, Tensor], clip: Clip, *, where: str) -> dict[str, Any]:
        n, width = sizes_of(tensors, "ctx", 2, where=where)
        depth = 1 + len(tensors.get("deep", ()))
        require_tower(clip, "text", width=width, layers=depth, where=where)
        require_tower(clip, "visual", width=sizes_of(tensors, "projection.bias", 1, where=where)[0], layers=depth, where=where)
        return {"n_ctx": n, "depth": depth} | ({"ctx_init": ""} if n > MOST_WORDS else {})

    def texts(self, names: Sequence[str], template: str | Sequence[str]) -> list[str]:
        init = self.options.ctx_init
        return fill(init + " {}.", names) if init else context_texts(names, self.options.n_ctx)

    def class_list(self, names: Sequence[str], template: str | Sequence[str], *, memory_gib: float | None = None) -> ClassList:
        return with_prompts(self.clip, names, template, self.texts(names, template), slots=self.options.n_ctx, memory_gib=memory_gib)

    def text_features(self, classes: ClassList) -> Tensor:
        deep = self.deep.unbind(0) if self.depth > 1 else ()
        return self.clip.encode_prompts(
            classes.fed, {0: context_edit(self.clip, self.ctx), **{i: Edit(layer) for i, layer in enumerate(deep, 1)}}
        )

    def image_features(self, images: AnyImages) -> ImageFeatures:
        vision = self.clip.vision
        deep = self.deep_projections(self.deep).unbind(0) if self.depth > 1 else ()
        edits = {0: Edit(vision.pre_norm(self.projection(self.ctx))), **{i: Edit(layer) for i, layer in enumerate(deep, 1)}}
        pooled = vision.finish(self.clip.enter_image(images, 0), 0, edits)
        return ImageFeatures(F.normalize(pooled.class_token @ vision.projection, dim=-1))
