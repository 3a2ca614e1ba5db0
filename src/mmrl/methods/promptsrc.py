"""PromptSRC: self-regulating prompts (Khattak et al., ICCV 2023)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from mmrl.clip import AnyImages, ClassList, Clip, Edit, Edits, Images
from mmrl.errors import UsageError
from mmrl.methods.authors import SavedAs, require_tower, sizes_of
from mmrl.methods.exchange import Loss
from mmrl.methods.options import MethodOptions
from mmrl.methods.prompts import (
    LEARNER,
    LEARNER_CONSTANTS,
    MOST_WORDS,
    context_edit,
    context_of,
    context_texts,
    random_context,
    with_prompts,
)
from mmrl.methods.registry import register
from mmrl.methods.two_tower import ImageFeatures, TwoTower, cosine_logits
from mmrl.templates import MOST_TEMPLATES, check_template, fill

DEPTH = 9  # layers with prompts, where the tower has as many
_TEXTS = """
a photo of a {} | a bad photo of a {} | a photo of many {} | a sculpture of a {} | a photo of the hard to see {} | a low resolution
photo of the {} | a rendering of a {} | graffiti of a {} | a bad photo of the {} | a cropped photo of the {} | a tattoo of a {} | the
embroidered {} | a photo of a hard to see {} | a bright photo of a {} | a photo of a clean {} | a photo of a dirty {} | a dark photo of
the {} | a drawing of a {} | a photo of my {} | the plastic {} | a photo of the cool {} | a close-up photo of a {} | a black and white
photo of the {} | a painting of the {} | a painting of a {} | a pixelated photo of the {} | a sculpture of the {} | a bright photo of
the {} | a cropped photo of a {} | a plastic {} | a photo of the dirty {} | a jpeg corrupted photo of a {} | a blurry photo of the {} |
a photo of the {} | a good photo of the {} | a rendering of the {} | a {} in a video game | a photo of one {} | a doodle of a {} | a
close-up photo of the {} | the origami {} | the {} in a video game | a sketch of a {} | a doodle of the {} | a origami {} | a low
resolution photo of a {} | the toy {} | a rendition of the {} | a photo of the clean {} | a photo of a large {} | a rendition of a {} |
a photo of a nice {} | a photo of a weird {} | a blurry photo of a {} | a cartoon {} | art of a {} | a sketch of the {} | a embroidered
{} | a pixelated photo of a {} | itap of the {}
"""
TEACHER_TEMPLATES = tuple(f"{text}." for text in " ".join(_TEXTS.split()).split(" | "))  # 60 of the 80 of CLIP's authors


class PromptSRCOptions(MethodOptions):
    n_ctx_text: int = Field(4, ge=1, le=70, description="number of prompts in every text layer that has some")
    n_ctx_vision: int = Field(4, ge=1, le=256, description="number of prompts in every image layer that has some")
    ctx_init: str = Field(
        "a photo of a",
        max_length=500,
        description="text in front of the class name; its first n_ctx_text tokens start the prompts, the rest stays; empty: random prompts",
    )
    depth_text: int | None = Field(None, ge=1, le=200, description=f"text layers with prompts, from the first; default: {DEPTH}, or all")
    depth_vision: int | None = Field(None, ge=1, le=200, description=f"image layers with prompts, from the first; default: {DEPTH}, or all")
    text_loss_weight: float = Field(25.0, ge=0, le=1e4, description="weight of the distance to the frozen class features")
    image_loss_weight: float = Field(10.0, ge=0, le=1e4, description="weight of the distance to the frozen image features")
    logit_loss_weight: float = Field(1.0, ge=0, le=1e4, description="weight of the divergence from the frozen model's probabilities")
    gpa_mean: float = Field(15.0, ge=0, le=1e5, description="epoch that counts most in the average of the prompts over epochs")
    gpa_std: float = Field(1.0, ge=1e-3, le=1e5, description="standard deviation of the epochs' weights in that average, in epochs")
    teacher_templates: tuple[str, ...] = Field(
        TEACHER_TEMPLATES,
        min_length=1,
        max_length=MOST_TEMPLATES,
        description="prompts whose features are averaged to the frozen class features",
    )


@register("promptsrc")
class PromptSRC(TwoTower):
    """Prompts of their own in the lower layers of both towers, held to the frozen features; what is tested is their Gaussian-weighted
    average over the epochs (section 3.2).

    The adapted and the frozen pass of an image share what enters the first layer.
    """

    title = "PromptSRC"
    summary = "deep prompts in both towers, held to the frozen model and averaged over epochs"
    source = "Khattak et al., ICCV 2023"
    Options = PromptSRCOptions
    options: PromptSRCOptions
    edits_layers = True
    authors_names: ClassVar[Mapping[str, str]] = {
        "ctx_text": "prompt_learner.ctx",
        "deep_text": "text_encoder.transformer.resblocks.{i}.VPT_shallow",
        "ctx_vision": "image_encoder.VPT",
        "deep_vision": "image_encoder.transformer.resblocks.{i}.VPT_shallow",
    }
    saved_as = SavedAs(
        optional=frozenset({"deep_text", "deep_vision"}),  # none at depth 1
        constant=(*LEARNER_CONSTANTS, f"{LEARNER}.ZS_image_encoder"),
    )
    deep_text: nn.Parameter | None  # (depth - 1, n, d), of the layers after the first
    deep_vision: nn.Parameter | None

    def __init__(self, clip: Clip, options: PromptSRCOptions) -> None:
        super().__init__(clip, options)
        check_template(options.teacher_templates, of=" of the teacher")
        depth_text = self._checked("depth_text", options.depth_text, "text", clip.text.depth)
        depth_vision = self._checked("depth_vision", options.depth_vision, "image", clip.vision.depth)
        n, width, text = options.n_ctx_text, clip.text.width, options.ctx_init
        self.ctx_text = nn.Parameter(context_of(clip, text, n) if text else random_context(n, width))
        self.ctx_vision = nn.Parameter(random_context(options.n_ctx_vision, clip.vision.width))
        self.deep_text = _deep(depth_text - 1, *self.ctx_text.shape)
        self.deep_vision = _deep(depth_vision - 1, *self.ctx_vision.shape)
        for name, parameter in list(self.named_parameters()):  # sums over the epochs so far; they end in the parameters themselves
            self.register_buffer(f"sum_{name}", torch.zeros_like(parameter, requires_grad=False), persistent=False)
        self._taught: tuple[ClassList, Tensor] | None = None

    def _checked(self, option: str, given: int | None, tower: str, depth: int) -> int:
        if given is not None and given > depth:
            raise UsageError(f"{option} is {given}, but the {tower} tower of '{self.clip.name}' has {depth} layers; give 1 to {depth}.")
        return min(DEPTH, depth) if given is None else given

    @property
    def modality(self) -> str:
        return "V, L"

    @classmethod
    def options_of(cls, tensors: Mapping[str, Tensor], clip: Clip, *, where: str) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for side, tower in (("text", "text"), ("vision", "visual")):
            n, width = sizes_of(tensors, f"ctx_{side}", 2, where=where)
            depth = 1 + len(tensors.get(f"deep_{side}", ()))
            require_tower(clip, tower, width=width, layers=depth, where=where)
            found |= {f"n_ctx_{side}": n, f"depth_{side}": depth}
        return found | ({"ctx_init": ""} if found["n_ctx_text"] > MOST_WORDS else {})

    # ---- passes ----

    def texts(self, names: Sequence[str], template: str | Sequence[str]) -> list[str]:
        init = self.options.ctx_init
        return fill(init + " {}.", names) if init else context_texts(names, self.options.n_ctx_text)

    def class_list(self, names: Sequence[str], template: str | Sequence[str], *, memory_gib: float | None = None) -> ClassList:
        n = self.options.n_ctx_text
        return with_prompts(self.clip, names, template, self.texts(names, template), slots=n, memory_gib=memory_gib)

    def teacher(self, classes: ClassList) -> Tensor:
        """The frozen class features that training holds the adapted ones to, (C, embed_dim), normalised.

        Made when a list of classes is first trained on, and kept for it: at test, where nobody asks, 60 prompts a class cost nothing.
        """
        if classes.teacher is not None:
            return classes.teacher
        if self._taught is None or self._taught[0] is not classes:
            self._taught = classes, self._encode_teacher(classes.names)
        return self._taught[1]

    @torch.no_grad()
    def _encode_teacher(self, names: Sequence[str]) -> Tensor:
        """Template by template, so that only one's prompts are held at a time, and all its words in front of the name run once."""
        with torch.autocast(self.clip.device.type, enabled=False):
            features = (self.clip.encode_text(fill(one, names), normalise=False) for one in self.options.teacher_templates)
            return F.normalize(sum(features, start=torch.zeros((), device=self.clip.device)), dim=-1)

    def text_features(self, classes: ClassList) -> Tensor:
        return self.clip.encode_prompts(classes.fed, _edits(context_edit(self.clip, self.ctx_text), self.deep_text))

    def image_features(self, images: AnyImages) -> ImageFeatures:
        tower = self.clip.vision
        edits = _edits(Edit(tower.pre_norm(self.ctx_vision)), self.deep_vision)
        pooled = tower.finish(self.clip.enter_image(images, 0), 0, edits)
        return ImageFeatures(F.normalize(pooled.class_token @ tower.projection, dim=-1))

    # ---- training ----

    def loss(self, images: AnyImages, labels: Tensor, classes: ClassList) -> Loss:
        """Cross-entropy, L1 distances of both towers' features to the frozen ones, and the divergence of the logits from the frozen ones.

        Distances and divergence are means over all elements (section 3.2.1, with the divergence as the authors' code has it).
        """
        o, teacher = self.options, self.teacher(classes)
        images = Images.of(images)
        image, text = self.image_features(images).class_token, self.text_features(classes)
        frozen = self.clip.encode_image(images)
        with torch.no_grad():
            frozen_logits = cosine_logits(frozen, teacher, self.logit_scale)
        logits = cosine_logits(image, text, self.logit_scale)
        divergence = F.kl_div(logits.log_softmax(-1), frozen_logits.log_softmax(-1), reduction="sum", log_target=True)
        terms = {
            "ce": F.cross_entropy(logits, labels),
            "reg_text": F.l1_loss(text, teacher),
            "reg_image": F.l1_loss(image, frozen),
            "kl": divergence / logits.numel(),
        }
        regularisers = o.text_loss_weight * terms["reg_text"] + o.image_loss_weight * terms["reg_image"] + o.logit_loss_weight * terms["kl"]
        return Loss(terms["ce"] + regularisers, terms, logits.detach())

    @torch.no_grad()
    def epoch_ended(self, epoch: int, epochs: int) -> None:
        """Gaussian-weighted prompt aggregation (section 3.2.2): adds this epoch's prompts to the average, which the last epoch's become."""
        weight = epoch_weights(epochs, self.options.gpa_mean, self.options.gpa_std)[epoch - 1]
        for name, parameter in self.named_parameters():
            total = self.get_buffer(f"sum_{name}")
            if epoch == 1:
                total.zero_()
            total.add_(parameter, alpha=weight)
            if epoch == epochs:
                parameter.copy_(total)


def epoch_weights(epochs: int, mean: float, std: float) -> list[float]:
    """Weights of epochs 1 to `epochs`, Gaussian and with sum 1, also where the mean is so far away that every density is 0."""
    exponents = [-0.5 * ((epoch - mean) / std) ** 2 for epoch in range(1, epochs + 1)]
    highest = max(exponents)
    densities = [math.exp(exponent - highest) for exponent in exponents]
    return [density / sum(densities) for density in densities]


def _deep(layers: int, n: int, width: int) -> nn.Parameter | None:
    return nn.Parameter(random_context(layers, n, width)) if layers else None


def _edits(first: Edit, deep: Tensor | None) -> Edits:
    """Of the first layer, and of those above it, whose prompts take the place of what the layer below put out."""
    return {0: first} if deep is None else {0: first, **{i: Edit(tokens) for i, tokens in enumerate(deep.unbind(0), start=1)}}
