"""Zero-shot CLIP: nothing is trained."""

from __future__ import annotations

from torch import Tensor

from mmrl.clip import ClassList
from mmrl.errors import UsageError
from mmrl.methods.base import ImageFeatures, Loss, Method, cosine_logits, register


@register("zero-shot")
class ZeroShot(Method):
    """Cosine between the frozen features of image and prompt (Radford et al., 2021). Works with every backbone."""

    summary = "the frozen CLIP, nothing trained"
    source = "Radford et al., ICML 2021"

    def loss(self, images: Tensor, labels: Tensor, classes: ClassList) -> Loss:
        raise UsageError("method 'zero-shot' has nothing to train; evaluate it, or train another method.")

    def text_features(self, classes: ClassList) -> Tensor:
        return classes.zero_shot

    def image_features(self, images: Tensor) -> ImageFeatures:
        return ImageFeatures(self.clip.encode_image(images))

    def combine(self, images: ImageFeatures, text: Tensor, seen: Tensor | bool) -> Tensor:
        return cosine_logits(images.class_token, text, self.clip.logit_scale)
