"""MMA: multi-modal adapter for vision-language models (Yang et al., CVPR 2024)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from mmrl.clip import AnyImages, ClassList, Clip, Edit, Edits
from mmrl.errors import UsageError
from mmrl.methods.authors import AuthorsFile, SavedAs, layer_names, require_tower, sizes_of
from mmrl.methods.options import MethodOptions
from mmrl.methods.prompts import with_prompts
from mmrl.methods.registry import register
from mmrl.methods.two_tower import ImageFeatures, TwoTower
from mmrl.templates import DEFAULT_TEMPLATE, check_template, fill

Linear = tuple[Tensor, Tensor]  # weight (out, in) and bias (out,)
FIRST, LAST = 5, 12  # published layers, from 1
LEARNER = "adapter_learner"  # of the authors' code, which saves it alone


class MMAOptions(MethodOptions):
    """Defaults are the authors' for base-to-novel."""

    adapter_start: int | None = Field(None, ge=1, le=1000, description="first layer with adapters, from 1; default: 5, or the last")
    adapter_end: int | None = Field(None, ge=1, le=1000, description="last layer with adapters, from 1; default: 12, or the last")
    adapter_dim: int = Field(32, ge=1, le=100_000, description="width inside the adapters, which both towers share")
    adapter_scale: float = Field(0.001, gt=0, le=1000, description="factor of an adapter's output; it learns as if this were 1")
    template: str | None = Field(DEFAULT_TEMPLATE, max_length=2000, description="prompt for every data set; null: the data set's own")


class _Scaled(torch.autograd.Function):
    """`value` times the input, and `gradient` times the gradient: the two need not agree."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, value: float, gradient: float) -> Tensor:
        ctx.gradient = gradient
        return x.view_as(x) if value == 1 else x * value

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = gradients
        return gradient if ctx.gradient == 1 else gradient * ctx.gradient, None, None


def scaled(x: Tensor, *, value: float = 1.0, gradient: float = 1.0) -> Tensor:
    """`value * x`, whose gradient is `gradient` times that of the result."""
    out: Tensor = _Scaled.apply(x, value, gradient)
    return out


class LinearStack(nn.Module):
    """One linear map a layer: weight (n, d_out, d_in), Kaiming-normal over the outputs, and bias (n, d_out), zero."""

    def __init__(self, layers: int, d_in: int, d_out: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(layers, d_out, d_in) * (2 / d_out) ** 0.5)
        self.bias = nn.Parameter(torch.zeros(layers, d_out))

    def layers(self) -> list[Linear]:
        return list(zip(self.weight.unbind(0), self.bias.unbind(0)))


@register("mma")
class MMA(TwoTower):
    """Bottleneck adapters beside the upper layers of both towers, whose middle map the two towers share (section 3.2).

    An adapter reads ln_1 of the layer's input and adds to the layer's output: scale * up(relu(shared(relu(down(x))))). As in the authors'
    code its parameters get 1 / scale times their gradient, while what lies below it gets its true one. Layers below the first adapter are
    frozen: in the text tower they are run once for a class list, in the image tower without gradient.
    """

    title = "MMA"
    summary = "adapters beside the upper layers, joined across the towers"
    source = "Yang et al., CVPR 2024"
    Options = MMAOptions
    options: MMAOptions
    edits_layers = True
    authors_names: ClassVar[Mapping[str, str]] = {
        "visual_down.weight": "adapter_learner.visual_adapter.{i}.down.0.weight",
        "visual_down.bias": "adapter_learner.visual_adapter.{i}.down.0.bias",
        "visual_up.weight": "adapter_learner.visual_adapter.{i}.up.weight",
        "visual_up.bias": "adapter_learner.visual_adapter.{i}.up.bias",
        "text_down.weight": "adapter_learner.text_adapter.{i}.down.0.weight",
        "text_down.bias": "adapter_learner.text_adapter.{i}.down.0.bias",
        "text_up.weight": "adapter_learner.text_adapter.{i}.up.weight",
        "text_up.bias": "adapter_learner.text_adapter.{i}.up.bias",
        "shared.weight": "adapter_learner.shared_adapter.{i}.0.weight",
        "shared.bias": "adapter_learner.shared_adapter.{i}.0.bias",
    }
    saved_as = SavedAs(module=LEARNER, constant=(f"{LEARNER}.token_embedding", f"{LEARNER}.tokenized_prompts"))

    def __init__(self, clip: Clip, options: MMAOptions) -> None:
        super().__init__(clip, options)
        self.first, self.last = self._layers(clip, options)
        if options.template is not None:
            check_template(options.template, of=" of the option 'template'")
        n, r, d_v, d_t = self.last - self.first + 1, options.adapter_dim, clip.vision.width, clip.text.width
        self.visual_down, self.text_down = LinearStack(n, d_v, r), LinearStack(n, d_t, r)
        self.shared = LinearStack(n, r, r)
        self.visual_up, self.text_up = LinearStack(n, r, d_v), LinearStack(n, r, d_t)

    @staticmethod
    def _layers(clip: Clip, options: MMAOptions) -> tuple[int, int]:
        """First and last layer with adapters, from 1, in both towers."""
        depth = min(clip.vision.depth, clip.text.depth)
        last = options.adapter_end or min(LAST, depth)
        first = options.adapter_start or min(FIRST, last)
        if last > depth:
            raise UsageError(f"adapter_end is {last}, but the shallower tower of '{clip.name}' has {depth} layers; give 1 to {depth}.")
        if first > last:
            raise UsageError(f"adapter_start is {first}, but the last layer with adapters is {last}; give 1 to {last}.")
        return first, last

    @classmethod
    def from_checkpoint(cls, file: AuthorsFile, clip: Clip) -> tuple[dict[str, Tensor], dict[str, Any]]:
        tensors, found = super().from_checkpoint(file, clip)
        pattern = cls.authors_names["shared.bias"]
        first = int(layer_names([pattern], file.tensors)[pattern][0].removeprefix(f"{LEARNER}.shared_adapter.").split(".")[0])
        if not first:
            raise UsageError(f"{file.where} has an adapter behind the token embedding (ADAPTER_START 0), which MMA has not here.")
        last = first + len(tensors["shared.bias"]) - 1
        for tower in ("text", "visual"):
            width = sizes_of(tensors, f"{tower}_up.bias", 2, where=file.where)[1]
            require_tower(clip, tower, width=width, layers=last, where=file.where)
        return tensors, {**found, "adapter_start": first, "adapter_end": last, "adapter_dim": tensors["shared.bias"].shape[-1]}

    @property
    def modality(self) -> str:
        return "V-L"

    @property
    def frozen_text_layers(self) -> int:
        return self.first - 1

    def texts(self, names: Sequence[str], template: str | Sequence[str]) -> list[str]:
        return fill(template if self.options.template is None else self.options.template, names)

    def class_list(self, names: Sequence[str], template: str | Sequence[str], *, memory_gib: float | None = None) -> ClassList:
        own = self.options.template
        if own is None or own == template:
            return super().class_list(names, template, memory_gib=memory_gib)
        return with_prompts(self.clip, names, template, self.texts(names, template), start=self.frozen_text_layers, memory_gib=memory_gib)

    def _edits(self, down: LinearStack, up: LinearStack) -> Edits:
        layers = zip(down.layers(), self.shared.layers(), up.layers())
        return {i: Edit(parallel=self._adapter(*maps)) for i, maps in enumerate(layers, self.first - 1)}

    def _adapter(self, down: Linear, shared: Linear, up: Linear) -> Callable[[Tensor], Tensor]:
        scale = self.options.adapter_scale

        def adapter(x: Tensor) -> Tensor:
            inner = F.relu(F.linear(scaled(x, gradient=scale), *down))
            return scaled(F.linear(F.relu(F.linear(inner, *shared)), *up), value=scale)

        return adapter

    def text_features(self, classes: ClassList) -> Tensor:
        return self.clip.encode_prompts(classes.fed, self._edits(self.text_down, self.text_up))

    def image_features(self, images: AnyImages) -> ImageFeatures:
        vision, start = self.clip.vision, self.first - 1
        pooled = vision.finish(self.clip.enter_image(images, start), start, self._edits(self.visual_down, self.visual_up))
        return ImageFeatures(F.normalize(pooled.class_token @ vision.projection, dim=-1))
