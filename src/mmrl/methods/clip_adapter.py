"""CLIP-Adapter: better vision-language models with feature adapters (Gao et al., IJCV 2024)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from mmrl.clip import ClassList, Clip
from mmrl.errors import UsageError
from mmrl.methods.options import MethodOptions
from mmrl.methods.registry import register
from mmrl.methods.two_tower import ImageFeatures, TwoTower


class CLIPAdapterOptions(MethodOptions):
    """Defaults are those of the authors' code."""

    reduction: int = Field(4, ge=1, le=10_000, description="how many times narrower the hidden layer is than the image feature")
    ratio: float = Field(0.2, ge=0, le=1, description="share of the adapter's output in the image feature; the rest is the frozen one")
    last_relu: bool = Field(True, description="whether the adapter ends in a ReLU, as in the authors' code; in the paper it does not")


@register("clip-adapter")
class CLIPAdapter(TwoTower):
    """Two linear layers without bias on the frozen image feature, blended with it: normalise(r A(f) + (1 - r) f), where f is not
    normalised, on images alone, as in the authors' code. Class features are the zero-shot ones.

    The authors report the best ratio of each data set on its test images; here it is an option, and nothing is selected.
    """

    title = "CLIP-Adapter"
    summary = "two layers on the frozen image feature, blended with it"
    source = "Gao et al., IJCV 2024"
    Options = CLIPAdapterOptions
    options: CLIPAdapterOptions
    authors_names: ClassVar[Mapping[str, str]] = {"down": "adapter.fc.0.weight", "up": "adapter.fc.2.weight"}

    def __init__(self, clip: Clip, options: CLIPAdapterOptions) -> None:
        super().__init__(clip, options)
        width, hidden = clip.embed_dim, clip.embed_dim // options.reduction
        if not hidden:
            raise UsageError(
                f"reduction is {options.reduction}, but the image features of '{clip.name}' have {width} numbers; give 1 to {width}."
            )
        self.down = nn.Linear(width, hidden, bias=False).weight  # (h, d)
        self.up = nn.Linear(hidden, width, bias=False).weight  # (d, h)

    @property
    def modality(self) -> str:
        return "V"

    def text_features(self, classes: ClassList) -> Tensor:
        return classes.zero_shot

    def adapted(self, features: Tensor) -> Tensor:
        """What the adapter puts out (B, embed_dim), of features (B, embed_dim), not normalised."""
        out = F.linear(F.relu(F.linear(features, self.down)), self.up)
        return F.relu(out) if self.options.last_relu else out

    def image_features_of(self, features: Tensor) -> ImageFeatures:
        ratio = self.options.ratio
        return ImageFeatures(F.normalize(ratio * self.adapted(features) + (1 - ratio) * features, dim=-1))
