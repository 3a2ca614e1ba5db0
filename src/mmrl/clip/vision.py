"""The image tower in stages: embed -> layers [a, b) -> pool and project, over open_clip's weights."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from mmrl.clip.layers import NO_EDITS, Edit, Edits, Layer, check_edits, edit_of, join, output_is_used, place


class ImageHidden(NamedTuple):
    """Hidden states between two layers. Attention has no order here, so a method's tokens are kept apart.

    Attributes:
        main: class token and patches (B, 1 + M, d).
        extra: tokens of a method (B or 1, K, d), or None.
        readers: tokens that only read (B or 1, K', d), or None.
    """

    main: Tensor
    extra: Tensor | None = None
    readers: Tensor | None = None


class Pooled(NamedTuple):
    """What comes out of the image tower, after its final LayerNorm and not projected: the class token (B, d) and, where asked for, the
    method's tokens (B, K, d), the readers (B, K', d) and the patches (B, M, d)."""

    class_token: Tensor
    extra: Tensor | None = None
    readers: Tensor | None = None
    patches: Tensor | None = None


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

    @property
    def class_token(self) -> Tensor:
        """Embedding (d,) of the class token, without its position, frozen."""
        token: Tensor = self.visual.class_embedding
        return token

    def pre_norm(self, tokens: Tensor) -> Tensor:
        """The LayerNorm before layer 0, for tokens (..., d) that stand beside the patches from there on."""
        normed: Tensor = self.visual.ln_pre(tokens)
        return normed

    def embed(self, images: Tensor) -> ImageHidden:
        """Images (B, 3, H, W), normalised -> the states that enter layer 0."""
        visual = self.visual
        patches = visual.conv1(images).flatten(2).transpose(1, 2)  # (B, M, d)
        first = visual.class_embedding.to(patches.dtype).expand(images.shape[0], 1, -1)
        x = torch.cat([first, patches], dim=1) + visual.positional_embedding.to(patches.dtype)
        return ImageHidden(visual.ln_pre(x))

    def run(self, hidden: ImageHidden, start: int, stop: int, edits: Edits = NO_EDITS) -> ImageHidden:
        """Layers [start, stop), from 0. A method's tokens get an output only where a later layer reads it."""
        for i in range(start, stop):
            layer, edit = self.layers[i], edit_of(edits, i)
            x, extra, readers = self._entering(hidden, edit)
            if readers is not None:
                readers = layer(readers, [layer.keys_values(join(x, extra), edit)], own=False, edit=edit)
            if extra is None:
                x = layer(x, edit=edit)
            elif output_is_used(edits, i):
                count = x.shape[1]
                both = layer(join(x, extra), edit=edit)
                x, extra = both[:, :count], both[:, count:]
            else:
                x = layer(x, [layer.keys_values(extra, edit)], edit=edit)
            hidden = ImageHidden(x, extra, readers)
        return hidden

    def finish(
        self, hidden: ImageHidden, start: int, edits: Edits = NO_EDITS, *, extra: bool = False, patches: bool = False
    ) -> Pooled:
        """Layers [start, depth) and the final LayerNorm, computed only at the positions that are asked for.

        Args:
            extra: whether the method's tokens are pooled.
            patches: whether the patches are wanted.

        Raises:
            ValueError: an edit of a layer that is not run.
        """
        check_edits(edits, start, self.depth)
        hidden = self.run(hidden, start, self.depth - 1, edits)
        layer, edit = self.layers[-1], edit_of(edits, self.depth - 1)
        x, own, readers = self._entering(hidden, edit)
        asked = [x if patches else x[:, :1], *([own] if extra and own is not None else [])]
        rest = [*([] if patches else [x[:, 1:]]), *([own] if own is not None and not extra else [])]
        out = self.visual.ln_post(layer(join(*asked), [layer.keys_values(part, edit) for part in rest], edit=edit))
        count = asked[0].shape[1]
        read = None
        if readers is not None:
            read = self.visual.ln_post(layer(readers, [layer.keys_values(join(x, own), edit)], own=False, edit=edit))
        return Pooled(out[:, 0], out[:, count:] if len(asked) > 1 else None, read, out[:, 1:count] if patches else None)

    @staticmethod
    def _entering(hidden: ImageHidden, edit: Edit) -> ImageHidden:
        """What enters a layer, the tokens of its edit in place."""
        main, extra, readers = hidden
        if edit.readers is not None:
            readers = edit.readers.expand(main.shape[0], -1, -1)  # (B, K', d)
        return ImageHidden(main, place(edit, extra), readers)
