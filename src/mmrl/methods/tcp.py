"""TCP: textual-based class-aware prompt tuning (Yao et al., CVPR 2024)."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from mmrl.clip import AnyImages, ClassList, Clip, Edit
from mmrl.errors import UsageError
from mmrl.methods.authors import meta_net_sizes, require_tower, sizes_of
from mmrl.methods.exchange import Loss
from mmrl.methods.kgcoop import held_loss
from mmrl.methods.options import MethodOptions
from mmrl.methods.prompts import LEARNER_ALONE, META_NET_LEARNER, context_edit, context_of, random_context, with_prompts, with_teacher
from mmrl.methods.registry import register
from mmrl.methods.two_tower import TwoTower
from mmrl.templates import check_template, fill


class TCPOptions(MethodOptions):
    n_ctx: int = Field(4, ge=1, le=70, description="number of context tokens, and of each class's own; with ctx_init, as many as it has")
    ctx_init: str = Field("", max_length=500, description="text that the context starts from; default: random")
    template: str = Field("{}.", max_length=500, description="what follows the context in the prompt, {} for the class name")
    teacher_template: str | None = Field(
        None,
        max_length=500,
        description="prompt of the frozen class features, of which class tokens are made; the learned ones are held to them; "
        "default: the data set's own",
    )
    insert_layer: int | None = Field(
        None,
        ge=1,
        le=1000,
        description="text layer, from 0, where class tokens take the context's place; default: at two thirds of the depth, 8 of 12",
    )
    insert_weight: float = Field(1.0, gt=0, le=1, description="share of the class tokens there; the rest is what the layer below put out")
    reduction: int = Field(4, ge=1, le=10_000, description="the meta-net's hidden layer is the joint space's width divided by this")
    reg_weight: float = Field(8.0, ge=0, le=1e4, description="weight of the distance to the frozen class features")


class QuickGELU(nn.Module):
    """x sigmoid(1.702 x), as in OpenAI's CLIP, whatever the backbone's own activation."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


@register("tcp")
class TCP(TwoTower):
    """Learned context whose place, in an upper text layer, tokens take that a small network makes of each class's frozen feature
    (section 3.2). The class features stay near the frozen ones, as in KgCoOp.

    Below that layer BOT and the context are the same for all classes and run once.
    """

    title = "TCP"
    summary = "learned context, replaced in an upper layer by tokens made of each class's frozen feature"
    source = "Yao et al., CVPR 2024"
    Options = TCPOptions
    options: TCPOptions
    edits_layers = True
    authors_names: ClassVar[Mapping[str, str]] = META_NET_LEARNER
    saved_as = LEARNER_ALONE

    def __init__(self, clip: Clip, options: TCPOptions) -> None:
        super().__init__(clip, options)
        check_template(options.template, of=" behind the context")
        if options.teacher_template is not None:
            check_template(options.teacher_template, of=" of the teacher")
        depth, width = clip.text.depth, clip.text.width
        if depth < 2:
            raise UsageError(f"the text tower of '{clip.name}' has 1 layer, and TCP needs one below its class tokens; take a deeper one.")
        self.layer = options.insert_layer or max(1, 2 * depth // 3)
        if self.layer >= depth:
            raise UsageError(
                f"insert_layer is {self.layer}, but the last text layer of '{clip.name}' is {depth - 1}, from 0; give 1 to {depth - 1}."
            )
        self.ctx = nn.Parameter(context_of(clip, options.ctx_init) if options.ctx_init else random_context(options.n_ctx, width))  # (n, d)
        self.n_ctx, hidden = len(self.ctx), max(1, clip.embed_dim // options.reduction)
        first, second = nn.Linear(clip.embed_dim, hidden), nn.Linear(hidden, self.n_ctx * width)
        layers = (("linear1", first), ("activation", QuickGELU()), ("linear2", second))
        self.meta_net = nn.Sequential(OrderedDict[str, nn.Module](layers))

    @property
    def modality(self) -> str:
        return "L"

    @classmethod
    def options_of(cls, tensors: Mapping[str, Tensor], clip: Clip, *, where: str) -> dict[str, Any]:
        n, width = sizes_of(tensors, "ctx", 2, where=where)
        require_tower(clip, "text", width=width, layers=2, where=where)
        hidden, joint = meta_net_sizes(tensors, clip, where=where)
        if (out := sizes_of(tensors, "meta_net.linear2.bias", 1, where=where)[0]) != n * width:
            raise UsageError(f"{where} is no TCP: its meta-net puts out {out} numbers, not the {n * width} of {n} tokens.")
        return {"n_ctx": n, "ctx_init": "", "reduction": joint // hidden}

    def texts(self, names: Sequence[str], template: str | Sequence[str]) -> list[str]:
        return fill(" ".join(["X"] * self.n_ctx + [self.options.template]), names)

    def class_list(self, names: Sequence[str], template: str | Sequence[str], *, memory_gib: float | None = None) -> ClassList:
        classes = with_prompts(self.clip, names, template, self.texts(names, template), slots=self.n_ctx, memory_gib=memory_gib)
        return with_teacher(self.clip, classes, template, self.options.teacher_template)

    def class_tokens(self, classes: ClassList) -> Tensor:
        """What the meta-net makes of the frozen class features: (C, n, d)."""
        tokens: Tensor = self.meta_net(classes.held_to)
        return tokens.unflatten(-1, (self.n_ctx, -1))

    def text_features(self, classes: ClassList) -> Tensor:
        inserted = Edit(self.class_tokens(classes), keep=1 - self.options.insert_weight)
        return self.clip.encode_prompts(classes.fed, {0: context_edit(self.clip, self.ctx), self.layer: inserted})

    def loss(self, images: AnyImages, labels: Tensor, classes: ClassList) -> Loss:
        """As `held_loss`, to the features that the class tokens are made of."""
        text = self.text_features(classes)
        logits = self.combine(self.image_features(images), text, seen=True)
        return held_loss(logits, labels, text, classes.held_to, self.options.reg_weight)
