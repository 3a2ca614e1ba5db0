"""Replays recorded dropout masks in CLIP-LoRA, so that a training step with dropout can be compared number by number."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from mmrl.clip import ClassList
from mmrl.methods.clip_lora import CLIPLoRA

MASK = "dropout_keep.{tower}transformer.resblocks.{layer}.attn.{part}_proj"  # of the golden files; (positions, classes or images, d)


@contextmanager
def replayed_dropout(method: CLIPLoRA, tensors: Mapping[str, Tensor], classes: ClassList) -> Iterator[None]:
    """Inside, `method` drops in training what the masks of `tensors` say, whatever is asked of it: loss, class features or logits.

    All classes must be encoded at once (no `memory_gib`). The towers ask for the text's prefix first, then for its body, and in the last
    layer for the query at EOT alone; and for all of an image, but in the last layer for the class token and the patches apart.
    """
    prompts = classes.fed
    shared, depth = prompts.hidden.prefix.shape[1], method.clip.text.depth
    calls: Counter[tuple[int, str]] = Counter()

    def drop(x: Tensor, tower: str, layer: int, part: str) -> Tensor:
        if not method.training:
            return x
        name = MASK.format(tower="visual." if tower == "image" else "", layer=layer, part=part)
        keep = tensors[name].to(x.device).transpose(0, 1)  # (classes or images, positions, d)
        length = x.shape[1]
        if tower == "image":
            first = 1 if length == keep.shape[1] - 1 else 0
            keep = keep[:, first : first + length]
        elif layer == depth - 1 and part == "q":
            keep = keep[torch.arange(len(keep), device=x.device), shared + prompts.end].unsqueeze(1)
        else:
            first = shared if calls[layer, part] % 2 else 0
            calls[layer, part] += 1
            keep = keep[:, first : first + length]
        if keep.shape != x.shape:
            raise ValueError(f"{name}: the mask has shape {tuple(keep.shape)} where the tower asks for {tuple(x.shape)}")
        return x * keep / (1 - method.options.dropout)

    object.__setattr__(method, "drop", drop)  # an attribute of this object alone; nothing that is saved
    try:
        yield
    finally:
        object.__delattr__(method, "drop")
