"""A method as somebody outside the package would write it: a learned offset of every class feature."""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from mmrl.clip import ClassList, Clip
from mmrl.methods import MethodOptions, TwoTower, register


class ToyOptions(MethodOptions):
    scale: float = Field(0.1, gt=0, le=10, description="size of the offset")


@register("toy-offset")
class ToyOffset(TwoTower):
    title = "Toy"
    summary = "one learned offset of all class features"
    source = "nowhere"
    Options = ToyOptions
    options: ToyOptions
    recipe: ClassVar = {"rules": [{"source": "nowhere", "method": {"scale": 0.2}, "fit": {"lr": 0.01, "epochs": 2}}]}

    def __init__(self, clip: Clip, options: ToyOptions) -> None:
        super().__init__(clip, options)
        self.offset = nn.Parameter(torch.randn(clip.embed_dim) * 0.02)

    @property
    def modality(self) -> str:
        return "L"

    def text_features(self, classes: ClassList) -> Tensor:
        return F.normalize(classes.zero_shot + self.options.scale * self.offset * classes.zero_shot.abs(), dim=-1)
