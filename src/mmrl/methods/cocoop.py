"""CoCoOp: conditional prompt learning for vision-language models (Zhou et al., CVPR 2022)."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from mmrl.clip import AnyImages, ClassList, Clip, Prompts
from mmrl.clip.backbone import FROZEN_CHUNK
from mmrl.errors import UsageError
from mmrl.methods.authors import meta_net_sizes, require_tower, sizes_of
from mmrl.methods.base import Method
from mmrl.methods.exchange import Loss
from mmrl.methods.options import MethodOptions
from mmrl.methods.prompts import LEARNER_ALONE, META_NET_LEARNER, context_edit, context_of, context_texts, random_context, with_prompts
from mmrl.methods.registry import register

RANDOM_TOKENS = 4  # of a context that starts from no text


class CoCoOpOptions(MethodOptions):
    n_ctx: int | None = Field(
        None, ge=1, le=70, description="number of context tokens, the first of ctx_init; default: as many as it has, 4 where it is empty"
    )
    ctx_init: str = Field("a photo of a", max_length=500, description="text that the context starts from; empty: random")
    reduction: int = Field(16, ge=1, le=10_000, description="the meta-net's hidden layer is the joint space's width divided by this")


@register("cocoop")
class CoCoOp(Method):
    """CoOp's shared context, shifted for each image by what a small network, the meta-net, makes of its frozen feature (section 3.2).

    So every image has class features of its own, and a batch costs B x C prompts. The image pass, the prompts and what an image's prompts
    begin with (BOT and its context) are shared: they run once a batch, once a class list and once an image. The head is the class list's
    prompts, since all that follows from a parameter depends on the image too.
    """

    title = "CoCoOp"
    summary = "learned context in the prompt, shifted for each image"
    source = "Zhou et al., CVPR 2022"
    Options = CoCoOpOptions
    options: CoCoOpOptions
    edits_layers = True
    authors_names: ClassVar[Mapping[str, str]] = META_NET_LEARNER
    saved_as = LEARNER_ALONE

    def __init__(self, clip: Clip, options: CoCoOpOptions) -> None:
        super().__init__(clip, options)
        width, hidden = clip.text.width, max(1, clip.embed_dim // options.reduction)
        if options.ctx_init:
            context = context_of(clip, options.ctx_init, options.n_ctx)
        else:
            context = random_context(options.n_ctx or RANDOM_TOKENS, width)
        self.n_ctx = len(context)
        self.ctx = nn.Parameter(context)  # (n, d)
        layers = (("linear1", nn.Linear(clip.embed_dim, hidden)), ("relu", nn.ReLU()), ("linear2", nn.Linear(hidden, width)))
        self.meta_net = nn.Sequential(OrderedDict[str, nn.Module](layers))

    @property
    def modality(self) -> str:
        return "L"

    @classmethod
    def options_of(cls, tensors: Mapping[str, Tensor], clip: Clip, *, where: str) -> dict[str, Any]:
        n, width = sizes_of(tensors, "ctx", 2, where=where)
        require_tower(clip, "text", width=width, layers=1, where=where)
        hidden, joint = meta_net_sizes(tensors, clip, where=where)
        if (out := sizes_of(tensors, "meta_net.linear2.bias", 1, where=where)[0]) != width:
            raise UsageError(f"{where} is no CoCoOp: its meta-net puts out {out} numbers, not the {width} of one token.")
        return {"n_ctx": n, "ctx_init": "", "reduction": joint // hidden}

    def texts(self, names: Sequence[str], template: str | Sequence[str]) -> list[str]:
        return context_texts(names, self.n_ctx)

    def class_list(self, names: Sequence[str], template: str | Sequence[str], *, memory_gib: float | None = None) -> ClassList:
        return with_prompts(self.clip, names, template, self.texts(names, template), slots=self.n_ctx, memory_gib=memory_gib)

    def conditional_features(self, images: Tensor, prompts: Prompts) -> Tensor:
        """Class features (B, C, embed_dim), normalised, for images with features (B, embed_dim), normalised."""
        context = self.ctx + self.meta_net(images).unsqueeze(1)  # (B, n, d)
        return self.clip.encode_prompts(prompts, {0: context_edit(self.clip, context.unsqueeze(1))})

    def _logits(self, images: Tensor, prompts: Prompts) -> Tensor:
        """Logits (B, C), in float32 at least, from image features (B, embed_dim)."""
        text = self.conditional_features(images, prompts)
        dtype = torch.promote_types(torch.promote_types(images.dtype, text.dtype), torch.float32)
        with torch.autocast(images.device.type, enabled=False):
            return self.logit_scale * torch.einsum("bd,bcd->bc", images.to(dtype), text.to(dtype))

    def loss(self, images: AnyImages, labels: Tensor, classes: ClassList) -> Loss:
        """Cross-entropy over class features of each image's own."""
        logits = self._logits(self.clip.encode_image(images), classes.fed)
        total = F.cross_entropy(logits, labels)
        return Loss(total, {"ce": total}, logits.detach())

    def head(self, classes: ClassList) -> Prompts:
        return classes.fed

    def logits_of_features(self, features: Tensor, head: Prompts, seen: Tensor | bool) -> Tensor:
        """As in `Method`. Without gradient a few images are done at a time, so that memory does not grow with B x C."""
        features = F.normalize(features, dim=-1)
        at_a_time = len(features) if torch.is_grad_enabled() else max(1, FROZEN_CHUNK // head.classes)
        return torch.cat([self._logits(some, head) for some in features.split(max(1, at_a_time))])
