"""CLIP-LoRA the plain way: every block written out, with changed projections, over all positions of all prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmrl.methods.clip_lora import CLIPLoRA
from tests.oracle.methods.encoders import Encoders, Run, copies


def changed_layers(position: str, depth: int) -> list[int]:
    """Layers, from 0; a tower of less than three layers has at least one in each part."""
    parts = {"bottom": (0, 1, 3), "mid": (1, 2, 3), "up": (2, 3, 3), "half-bottom": (0, 1, 2), "half-up": (1, 2, 2)}
    if position == "all":
        return list(range(depth))
    if position == "top3":
        return list(range(depth))[-3:]
    first, behind, of = parts[position]
    return list(range(first * depth // of, behind * depth // of))


class Plain:
    """
    Attributes:
        masks: what dropout keeps, by the names of the golden files, (positions, classes or images, d); None: it draws.
    """

    def __init__(self, method: CLIPLoRA, names: Sequence[str], template: str | Sequence[str]) -> None:
        self.parameters, self.encoders, self.options = copies(method), Encoders(method), method.options
        self.classes = len(names)
        self.masks: Mapping[str, Tensor] | None = None
        self.tokens = self.encoders.tokens(self.options.template or template, names)
        with torch.no_grad():
            self.constant = self.encoders.text(self.tokens, self.classes) if self.options.encoder == "vision" else None

    def drop(self, x: Tensor, name: str) -> Tensor:
        if self.masks is None:
            return F.dropout(x, self.options.dropout)
        return x * self.masks[name].transpose(0, 1) / (1 - self.options.dropout)

    def run(self, tower: str, depth: int, training: bool) -> Run:
        o, p, layers = self.options, self.parameters, changed_layers(self.options.position, depth)
        scale, prefix = o.alpha / o.rank**0.5, "visual." if tower == "visual" else ""

        def change(x: Tensor, layer: int, part: str) -> Tensor:
            x = x.detach() if o.detach_input else x
            x = self.drop(x, f"dropout_keep.{prefix}transformer.resblocks.{layer}.attn.{part}_proj") if training and o.dropout else x
            i = layers.index(layer)
            return x @ p[f"{tower}.{part}.A"][i].T @ p[f"{tower}.{part}.B"][i].T * scale

        def run(layer: int, block: nn.Module, x: Tensor, mask: Tensor | None) -> Tensor:
            if layer not in layers:
                return block(x, attn_mask=mask)
            attention, h = block.attn, block.ln_1(x)
            weights, biases = attention.in_proj_weight.chunk(3), attention.in_proj_bias.chunk(3)
            projected = []
            for part, weight, bias in zip("qkv", weights, biases):
                y = F.linear(h, weight, bias)
                y = y + change(h, layer, part) if part in o.matrices else y
                projected.append(y.unflatten(-1, (attention.num_heads, -1)).transpose(1, 2))
            mixed = F.scaled_dot_product_attention(*projected, attn_mask=mask).transpose(1, 2).flatten(2)
            x = x + attention.out_proj(mixed)
            return x + block.mlp(block.ln_2(x))

        return run

    def _logits(self, images: Tensor, *, training: bool) -> Tensor:
        model = self.encoders.model
        if self.constant is None:
            text = self.encoders.text(self.tokens, self.classes, self.run("text", len(model.transformer.resblocks), training))
        else:
            text = self.constant
        if self.options.encoder == "text":
            with torch.no_grad():
                image = self.encoders.image(images)
        else:
            image = self.encoders.image(images, self.run("visual", len(model.visual.transformer.resblocks), training))
        return 100 * image @ text.T

    def logits(self, images: Tensor) -> Tensor:
        return self._logits(images, training=False)

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(self._logits(images, training=True), labels)


def plain(method: CLIPLoRA, names: Sequence[str], template: str | Sequence[str]) -> Plain:
    return Plain(method, names, template)
