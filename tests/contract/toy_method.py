"""A method as somebody outside the package would write it: a learned offset of every class feature."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from mmrl.clip import ClassList, Clip
from mmrl.methods import ImageFeatures, Loss, Method, MethodOptions, register


class ToyOptions(MethodOptions):
    scale: float = Field(0.1, gt=0, description="size of the offset")


@register("toy-offset")
class ToyOffset(Method):
    summary = "one learned offset of all class features"
    source = "nowhere"
    Options = ToyOptions
    options: ToyOptions

    def __init__(self, clip: Clip, options: ToyOptions) -> None:
        super().__init__(clip, options)
        self.offset = nn.Parameter(torch.randn(clip.embed_dim) * 0.02)

    def text_features(self, classes: ClassList) -> Tensor:
        return F.normalize(classes.zero_shot + self.options.scale * self.offset * classes.zero_shot.abs(), dim=-1)

    def image_features(self, images: Tensor) -> ImageFeatures:
        return ImageFeatures(self.clip.encode_image(images))

    def combine(self, images: ImageFeatures, text: Tensor, seen: Tensor | bool) -> Tensor:
        return self.clip.logit_scale * images.class_token @ text.T

    def loss(self, images: Tensor, labels: Tensor, classes: ClassList) -> Loss:
        logits = self.combine(self.image_features(images), self.text_features(classes), seen=True)
        ce = F.cross_entropy(logits, labels)
        return Loss(ce, {"ce": ce}, logits.detach())
