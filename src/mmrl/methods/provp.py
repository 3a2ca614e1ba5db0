"""ProVP: progressive visual prompt learning (Xu et al., IJCV 2024)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from mmrl.clip import AnyImages, ClassList, Clip, Edit, Images
from mmrl.errors import UsageError
from mmrl.methods.exchange import Loss
from mmrl.methods.options import MethodOptions
from mmrl.methods.prompts import with_teacher
from mmrl.methods.registry import register
from mmrl.methods.two_tower import ImageFeatures, TwoTower, cosine_logits
from mmrl.templates import check_template

PATCH = 14  # in the bound of the initial values, whatever the backbone's patch


class ProVPOptions(MethodOptions):
    """Defaults are the authors' for base-to-novel."""

    n_ctx_vision: int = Field(16, ge=1, le=1000, description="number of prompts in each image layer that has some")
    depth: int | None = Field(None, ge=1, le=1000, description="number of image layers, from the first, with prompts; default: all")
    progressive_alpha: float = Field(0.01, ge=0, lt=1, description="share of what the layer below put out that stays in a prompt")
    ref_loss_weight: float = Field(1.0, ge=0, le=1e4, description="weight of the contrast with the frozen image features; 0: without it")
    template: str | None = Field(None, max_length=2000, description="prompt of the classes; default: the data set's own")


@register("provp")
class ProVP(TwoTower):
    """Prompts behind the class token in every layer of the image tower, each blended with what the layer below made of the last ones
   , and held to the frozen image features by contrast ("feature re-formation"). Class features are the frozen ones.

    The prompted and the frozen pass of an image share what enters the first layer.
    """

    title = "ProVP"
    summary = "progressive prompts in all layers of the image tower, held to the frozen image features"
    source = "Xu et al., IJCV 2024"
    Options = ProVPOptions
    options: ProVPOptions
    edits_layers = True
    whole_batch = True  # each image is told from all others of the batch
    authors_names: ClassVar[Mapping[str, str]] = {"prompts": "prompt_learner.prompt_embeddings"}

    def __init__(self, clip: Clip, options: ProVPOptions) -> None:
        super().__init__(clip, options)
        layers, width = clip.vision.depth, clip.vision.width
        self.depth = options.depth or layers
        if self.depth > layers:
            raise UsageError(f"depth is {self.depth}, but the image tower of '{clip.name}' has {layers} layers; give 1 to {layers}.")
        if options.template is not None:
            check_template(options.template, of=" of the option 'template'")
        bound = (6 / (3 * PATCH * PATCH + width)) ** 0.5
        self.prompts = nn.Parameter((2 * torch.rand(self.depth, options.n_ctx_vision, width) - 1) * bound)  # (depth, n, d_v)

    @property
    def modality(self) -> str:
        return "V"

    def class_list(self, names: Sequence[str], template: str | Sequence[str], *, memory_gib: float | None = None) -> ClassList:
        classes = super().class_list(names, template, memory_gib=memory_gib)
        return with_teacher(self.clip, classes, template, self.options.template)

    def text_features(self, classes: ClassList) -> Tensor:
        return classes.zero_shot if classes.teacher is None else classes.teacher

    def image_features(self, images: AnyImages) -> ImageFeatures:
        tower = self.clip.vision
        edits = {i: Edit(tokens, keep=self.options.progressive_alpha) for i, tokens in enumerate(self.prompts.unbind(0))}
        pooled = tower.finish(self.clip.enter_image(images, 0), 0, edits)
        return ImageFeatures(F.normalize(pooled.class_token @ tower.projection, dim=-1))

    def loss(self, images: AnyImages, labels: Tensor, classes: ClassList) -> Loss:
        """Cross-entropy over the classes, and over the batch: each image has to find its own frozen features among those of all images,
        by cosines without a temperature."""
        images = Images.of(images)
        image = self.image_features(images)
        logits = self.combine(image, self.text_features(classes), seen=True)
        terms = {"ce": F.cross_entropy(logits, labels)}
        if not self.options.ref_loss_weight:
            return Loss(terms["ce"], terms, logits.detach())
        frozen = self.clip.encode_image(images)
        own = torch.arange(len(frozen), device=frozen.device)
        terms["ref"] = F.cross_entropy(cosine_logits(image.class_token, frozen, 1.0), own)
        return Loss(terms["ce"] + self.options.ref_loss_weight * terms["ref"], terms, logits.detach())
