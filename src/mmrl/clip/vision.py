"""The image tower in stages: embed -> layers [a, b) -> pool and project, over open_clip's weights."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from mmrl.clip.layers import NO_EDITS, Edits, Layer, edit_of, output_is_used, place


class ImageHidden(NamedTuple):
    """Hidden states between two layers.

    Attributes:
        main: class token and patches (B, 1 + M, d).
        extra: tokens a method added (B or 1, K, d), or None. Attention has no order here, so they are kept apart.
    """

    main: Tensor
    extra: Tensor | None = None


class VisionTower:
    """Staged passes of an open_clip `VisionTransformer` with a class token. Holds no state of its own."""

    def __init__(self, visual: Any) -> None:
        self.visual = visual
        self.layers = [Layer(block) for block in visual.transformer.resblocks]
        self.depth = len(self.layers)
        self.width = int(visual.conv1.out_channels)

    @property
    def projection(self) -> Tensor:
        """P_v^c (d, embed_dim), frozen."""
        projection: Tensor = self.visual.proj
        return projection

    def embed(self, images: Tensor) -> ImageHidden:
        """Images (B, 3, H, W), normalised -> the states that enter layer 0."""
        visual = self.visual
        patches = visual.conv1(images).flatten(2).transpose(1, 2)  # (B, M, d)
        first = visual.class_embedding.to(patches.dtype).expand(len(images), 1, -1)
        x = torch.cat([first, patches], dim=1) + visual.positional_embedding.to(patches.dtype)
        return ImageHidden(visual.ln_pre(x))

    def run(self, hidden: ImageHidden, start: int, stop: int, edits: Edits = NO_EDITS) -> ImageHidden:
        """Layers [start, stop), from 0. Extra positions get an output only where a later layer reads it."""
        x, extra = hidden
        for i in range(start, stop):
            layer, edit = self.layers[i], edit_of(edits, i)
            extra = place(edit, extra)
            if extra is None:
                x = layer(x, residual=edit.residual)
            elif output_is_used(edits, i):
                count = x.shape[1]
                both = layer(torch.cat([x, extra.expand(len(x), -1, -1)], dim=1), residual=edit.residual)
                x, extra = both[:, :count], both[:, count:]
            else:
                x = layer(x, [layer.keys_values(extra)], residual=edit.residual)
        return ImageHidden(x, extra)

    def finish(self, hidden: ImageHidden, start: int, edits: Edits = NO_EDITS) -> tuple[Tensor, Tensor | None]:
        """Layers [start, depth) and the final norm, at the pooled positions only.

        Returns:
            class token (B, d) and extra tokens (B, K, d) or None, both after the final LayerNorm, not projected.
        """
        x, extra = self.run(hidden, start, self.depth - 1, edits)
        layer, edit = self.layers[-1], edit_of(edits, self.depth - 1)
        extra = place(edit, extra)
        pooled = x[:, :1] if extra is None else torch.cat([x[:, :1], extra.expand(len(x), -1, -1)], dim=1)
        pooled = layer(pooled, [layer.keys_values(x[:, 1:])], residual=edit.residual)
        pooled = self.visual.ln_post(pooled)
        return pooled[:, 0], None if extra is None else pooled[:, 1:]
