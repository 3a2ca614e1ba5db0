"""CLIP-LoRA: low-rank few-shot adaptation of vision-language models (Zanella and Ben Ayed, CVPR Workshops 2024)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from mmrl.clip import AnyImages, ClassList, Clip, Edit, Edits
from mmrl.errors import UsageError
from mmrl.methods.authors import AuthorsFile, SavedAs, require_tower, sizes_of
from mmrl.methods.options import MethodOptions
from mmrl.methods.prompts import with_prompts
from mmrl.methods.registry import make_options, register
from mmrl.methods.two_tower import ImageFeatures, TwoTower
from mmrl.templates import DEFAULT_TEMPLATE, check_template, fill

LOGIT_SCALE = 100.0  # as in the authors' code, whatever the backbone learned
Position = Literal["all", "bottom", "mid", "up", "half-bottom", "half-up", "top3"]
Tower = Literal["image", "text"]


class CLIPLoRAOptions(MethodOptions):
    """Defaults are the authors' few-shot values."""

    rank: int = Field(2, ge=1, le=10_000, description="rank of each change of a weight matrix")
    alpha: float = Field(1.0, gt=0, le=10_000, description="a change is multiplied with alpha / sqrt(rank)")
    dropout: float = Field(0.25, ge=0, lt=1, description="share of the changes' inputs left out in training")
    matrices: Literal["q", "k", "v", "qk", "qv", "kv", "qkv"] = Field("qkv", description="what is changed: query, key, value projections")
    encoder: Literal["both", "text", "vision"] = Field("both", description="towers that are changed")
    position: Position = Field(
        "all", description="layers that are changed: all, a third (bottom, mid, up), a half (half-bottom, half-up), or the last three"
    )
    detach_input: bool = Field(
        False, description="no gradient through what a change reads: what the authors' code does where dropout is 0, and only there"
    )
    template: str | None = Field(DEFAULT_TEMPLATE, max_length=2000, description="prompt for every data set; null: the data set's own")


def layers_at(position: Position, depth: int) -> range:
    """Layers, from 0, of a tower of `depth`; at least one, however shallow it is."""
    third, half = depth // 3, depth // 2
    return {
        "all": range(depth),
        "bottom": range(max(1, third)),
        "mid": range(third, max(third + 1, 2 * depth // 3)),
        "up": range(min(2 * depth // 3, depth - 1), depth),
        "half-bottom": range(max(1, half)),
        "half-up": range(half, depth),
        "top3": range(max(0, depth - 3), depth),
    }[position]


class LowRank(nn.Module):
    """A change B A of a weight (d, d), one a layer: A (n, r, d) uniform in +-1/sqrt(d), and B (n, d, r), zero."""

    def __init__(self, layers: int, d: int, rank: int) -> None:
        super().__init__()
        self.A = nn.Parameter((2 * torch.rand(layers, rank, d) - 1) * d**-0.5)
        self.B = nn.Parameter(torch.zeros(layers, d, rank))

    def layers(self) -> list[tuple[Tensor, Tensor]]:
        return list(zip(self.A.unbind(0), self.B.unbind(0)))


_SAVED = "weights.layer_{i}.{part}_proj.w_lora_{m}"  # in a checkpoint, whose layers are those of text and then those of the image


def _names(prefix: str, ours: str) -> dict[str, str]:
    return {f"{ours}.{part}.{m}": f"{prefix}transformer.resblocks.{{i}}.attn.{part}_proj.w_lora_{m}" for part in "qkv" for m in "AB"}


@register("clip-lora")
class CLIPLoRA(TwoTower):
    """Query, key and value projections W x + alpha / sqrt(r) B A dropout(x) in the layers of both towers (section 3).

    Dropout draws for each projection, layer, position and class or image anew. So in training with dropout no two prompts share their
    beginning; without it, and at test, they do. Gradients are the true ones. The authors' code has them with dropout, its published
    setting; without, it merges a change into its weight and takes it out again before the backward pass, so that none flows through the
    change to the layers below: `detach_input`.
    """

    title = "CLIP-LoRA"
    summary = "low-rank changes of the attention of both towers"
    source = "Zanella and Ben Ayed, CVPRW 2024"
    Options = CLIPLoRAOptions
    options: CLIPLoRAOptions
    edits_layers = True
    authors_names: ClassVar[Mapping[str, str]] = _names("visual.", "visual") | _names("", "text")
    saved_as = SavedAs(patterns=tuple(_SAVED.format(i="{i}", part=part, m=m) for part in "qkv" for m in "AB"))

    def __init__(self, clip: Clip, options: CLIPLoRAOptions) -> None:
        super().__init__(clip, options)
        if options.template is not None:
            check_template(options.template, of=" of the option 'template'")
        self.at: dict[Tower, range] = {
            "image": layers_at(options.position, clip.vision.depth),
            "text": layers_at(options.position, clip.text.depth),
        }
        if options.encoder != "text":
            self.visual = self._changes(self.at["image"], clip.vision.width)
        if options.encoder != "vision":
            self.text = self._changes(self.at["text"], clip.text.width)

    @classmethod
    def from_checkpoint(cls, file: AuthorsFile, clip: Clip) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """What is changed, and with which factor, stands in notes beside the tensors."""
        options = cls._noted(file)
        noted = make_options(cls, options)
        assert isinstance(noted, CLIPLoRAOptions)
        tensors, done = dict[str, Tensor](), 0
        for name, tower, skipped in (("text", clip.text, "vision"), ("visual", clip.vision, "text")):
            if noted.encoder == skipped:
                continue
            layers = range(done, done := done + len(layers_at(noted.position, tower.depth)))
            for part, m in ((part, m) for part in noted.matrices for m in "AB"):
                rows = [_SAVED.format(i=i, part=part, m=m) for i in layers]
                lost = next((row for row in rows if row not in file.tensors), None)
                if lost is not None:
                    raise UsageError(f"{file.where} is no {cls.name} of all layers that '{clip.name}' has: it lacks '{lost}'.")
                tensors[f"{name}.{part}.{m}"] = torch.stack([file.tensors[row].float() for row in rows])
            width = sizes_of(tensors, f"{name}.{noted.matrices[0]}.A", 3, where=file.where)[-1]
            require_tower(clip, name, width=width, layers=len(layers), where=file.where)
        if len(file.tensors) > 2 * len(noted.matrices) * done:
            raise UsageError(f"{file.where} changes more layers than the {done} that it says it has on '{clip.name}'. Give its backbone.")
        return tensors, options | {"rank": next(iter(tensors.values())).shape[1]}

    @classmethod
    def _noted(cls, file: AuthorsFile) -> dict[str, Any]:
        """The options that the file notes. Raises UsageError where it notes none, or one that is not known here."""
        given = file.notes.get("params")
        named = "".join(sorted(map(str, given), key="qkvo".find)) if isinstance(given, list) else given
        options = {key: file.notes.get(key) for key in ("encoder", "position", "alpha")} | {"matrices": named}
        try:
            make_options(cls, options)
        except UsageError as error:
            raise UsageError(f"the metadata of {file.where} cannot be imported: {error}") from error
        return options

    def _changes(self, layers: range, d: int) -> nn.ModuleDict:
        return nn.ModuleDict({part: LowRank(len(layers), d, self.options.rank) for part in self.options.matrices})

    @property
    def modality(self) -> str:
        return {"both": "V, L", "vision": "V", "text": "L"}[self.options.encoder]

    @property
    def frozen_text_layers(self) -> int:
        return 0 if self.options.encoder == "vision" else self.at["text"].start

    @property
    def logit_scale(self) -> float:
        return LOGIT_SCALE

    def class_list(self, names: Sequence[str], template: str | Sequence[str], *, memory_gib: float | None = None) -> ClassList:
        own = self.options.template
        if own is None or own == template:
            return super().class_list(names, template, memory_gib=memory_gib)
        classes = with_prompts(self.clip, names, template, fill(own, names), start=self.frozen_text_layers, memory_gib=memory_gib)
        if self.options.encoder == "vision":  # then class features are constant: those of this prompt
            with torch.no_grad():
                classes = replace(classes, teacher=self.clip.encode_prompts(classes.fed))
        return classes

    def drop(self, x: Tensor, tower: Tower, layer: int, part: str) -> Tensor:
        """`x` (B, N, d), the input of the change of `part`, one of 'q', 'k', 'v', with dropout in training. All dropout happens here."""
        return F.dropout(x, self.options.dropout, self.training)

    def _edits(self, tower: Tower, changes: nn.ModuleDict) -> Edits:
        layers = {part: change.layers() for part, change in changes.items() if isinstance(change, LowRank)}
        return {i: Edit(qkv=self._change(tower, i, {part: m[n] for part, m in layers.items()})) for n, i in enumerate(self.at[tower])}

    def _change(self, tower: Tower, layer: int, changes: dict[str, tuple[Tensor, Tensor]]) -> Callable[[Tensor, str], Tensor]:
        scale = self.options.alpha / self.options.rank**0.5

        def change(x: Tensor, part: str) -> Tensor:
            if part not in changes:
                return torch.zeros_like(x)
            down, up = changes[part]
            read = self.drop(x.detach() if self.options.detach_input else x, tower, layer, part)
            return F.linear(scale * F.linear(read, down), up)

        return change

    def text_features(self, classes: ClassList) -> Tensor:
        if self.options.encoder == "vision":
            return classes.zero_shot if classes.teacher is None else classes.teacher
        alike = not (self.training and self.options.dropout > 0)
        return self.clip.encode_prompts(classes.fed, self._edits("text", self.text), share=alike)

    @property
    def frozen_images(self) -> bool:
        return self.options.encoder == "text"

    def image_features(self, images: AnyImages) -> ImageFeatures:
        if self.options.encoder == "text":
            return super().image_features(images)
        vision, start = self.clip.vision, self.at["image"].start
        pooled = vision.finish(self.clip.enter_image(images, start), start, self._edits("image", self.visual))
        return ImageFeatures(F.normalize(pooled.class_token @ vision.projection, dim=-1))
