"""Methods with one vector a class and one an image, compared by cosine."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mmrl.clip import AnyImages, ClassList
from mmrl.methods.base import Method
from mmrl.methods.exchange import Loss


class ImageFeatures(NamedTuple):
    """Normalised image features (B, embed_dim): of the class token and, where a method has them, of the representation tokens."""

    class_token: Tensor
    representation: Tensor | None = None

    def rows(self, at: Sequence[int]) -> ImageFeatures:
        """Those of the images at these positions."""
        own = list(at)
        return ImageFeatures(self.class_token[own], None if self.representation is None else self.representation[own])


class TwoTower(Method):
    """A method with one vector a class and one an image, compared by cosine. Its head are the class features."""

    @abstractmethod
    def text_features(self, classes: ClassList) -> Tensor:
        """Adapted class features (C, embed_dim), normalised."""

    @property
    def frozen_images(self) -> bool:
        """As in `Method`: True where both `image_features` and `logits` are left as they are."""
        return type(self).image_features is TwoTower.image_features and type(self).logits is TwoTower.logits

    def image_features(self, images: AnyImages) -> ImageFeatures:
        """Image features of images (B, 3, H, W): `image_features_of` the frozen ones, unless a method adapts the image tower."""
        return self.image_features_of(self.clip.encode_image(images, normalise=False))

    def image_features_of(self, features: Tensor) -> ImageFeatures:
        """Image features of what the frozen tower puts out (B, embed_dim), without gradient and not normalised. A method that adapts
        features alone overrides this."""
        return ImageFeatures(F.normalize(features, dim=-1))

    def combine(self, images: ImageFeatures, text: Tensor, seen: Tensor | bool) -> Tensor:
        """Logits (B, C) from image features and class features (C, embed_dim); `seen` as in `logits`."""
        return cosine_logits(images.class_token, text, self.logit_scale)

    def rule(self) -> dict[str, Any]:
        """What `combine` does, in plain data, for exported classifiers (docs/export.md). A method that overrides `combine` says its own
        here too, or only its trained classes can be exported."""
        return {"name": "cosine"}

    def loss(self, images: AnyImages, labels: Tensor, classes: ClassList) -> Loss:
        """Cross-entropy, unless a method overrides it."""
        logits = self.combine(self.image_features(images), self.text_features(classes), seen=True)
        total = F.cross_entropy(logits, labels)
        return Loss(total, {"ce": total}, logits.detach())

    def head(self, classes: ClassList) -> Tensor:
        return self.text_features(classes)

    def logits(self, images: AnyImages, head: Tensor, seen: Tensor | bool) -> Tensor:
        return self.combine(self.image_features(images), head, seen)

    def logits_of_features(self, features: Tensor, head: Tensor, seen: Tensor | bool) -> Tensor:
        return self.combine(self.image_features_of(features), head, seen)

    def logits_each(self, images: AnyImages, asked: Sequence[tuple[Any, Tensor | bool]]) -> list[Tensor]:
        if type(self).logits is not TwoTower.logits:
            return super().logits_each(images, asked)
        features = self.image_features(images)
        return [self.combine(features, head, seen) for head, seen in asked]

    def logits_of_some(self, images: Tensor, asked: Sequence[tuple[Any, Tensor | bool, Sequence[int]]]) -> list[Tensor]:
        if type(self).logits is not TwoTower.logits:
            return super().logits_of_some(images, asked)
        features = self.image_features(images)
        return [self.combine(features.rows(at), head, seen) for head, seen, at in asked]


def cosine_logits(image: Tensor, text: Tensor, scale: float) -> Tensor:
    """scale x cosine of normalised features (B, d) and (C, d), in float32 at least: half precision would round logits to a tenth."""
    dtype = torch.promote_types(torch.promote_types(image.dtype, text.dtype), torch.float32)
    with torch.autocast(image.device.type, enabled=False):
        return scale * image.to(dtype) @ text.to(dtype).T
