"""Zero-shot CLIP: nothing is trained."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from mmrl.clip import ClassList
from mmrl.methods.registry import register
from mmrl.methods.two_tower import TwoTower


@register("zero-shot")
class ZeroShot(TwoTower):
    """Cosine between the frozen features of image and prompt (Radford et al., 2021). Works with every backbone."""

    title = "zero-shot CLIP"
    published = "CLIP"
    summary = "the frozen CLIP, nothing trained"
    source = "Radford et al., ICML 2021"

    @classmethod
    def trained_by(cls) -> Literal["nothing"]:
        return "nothing"

    def text_features(self, classes: ClassList) -> Tensor:
        return classes.zero_shot
