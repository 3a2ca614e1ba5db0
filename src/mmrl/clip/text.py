"""The text tower in stages, for many prompts that share their beginning.

The encoder is causal. So a prompt needs nothing after its EOT, and what all prompts begin with (BOT, the tokens of a method behind it,
words such as "a photo of a") is the same for every class: this prefix runs once, and the prompts attend to its keys and values. Prompts
of several lengths are packed one behind the other, so that a short one costs its own tokens and not those of the longest.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mmrl.clip.attention import causal_mask
from mmrl.clip.layers import NO_EDITS, Edits, KeysValues, Layer, each_of, edit_of, join, output_is_used, place
from mmrl.clip.packing import Packing


class TextHidden(NamedTuple):
    """Hidden states of N prompts between two layers.

    Attributes:
        prefix: what they begin with: BOT, the tokens of a method, words (M, P, d). M is 1 where all prompts share it; else each prefix
            serves N / M prompts in a row.
        body: the rest, up to the longest one's EOT (N, T, d).
        slots: number of positions behind BOT that hold tokens of a method.
    """

    prefix: Tensor
    body: Tensor
    slots: int = 0


class TextTower:
    """Staged passes of open_clip's causal text transformer. Holds no state of its own."""

    def __init__(self, text: Any) -> None:
        self.text = text  # the CLIP itself, or its `text` module
        self.layers = [Layer(block) for block in text.transformer.resblocks]
        self.depth = len(self.layers)
        self.width = int(text.positional_embedding.shape[1])

    @property
    def positions(self) -> Tensor:
        """Positional embeddings (context, d), frozen."""
        positions: Tensor = self.text.positional_embedding
        return positions

    def words(self, tokens: Tensor) -> Tensor:
        """Embeddings (..., d) of token ids (...), without positions."""
        embedded: Tensor = self.text.token_embedding(tokens)
        return embedded

    def project(self, x: Tensor) -> Tensor:
        """P_t: (C, d) after the final norm -> (C, embed_dim)."""
        projection = self.text.text_projection
        if projection is None:
            return x
        projected: Tensor = projection(x) if isinstance(projection, nn.Linear) else x @ projection
        return projected

    def embed(self, tokens: Tensor, end: Tensor, *, slots: int = 0) -> TextHidden:
        """Token ids (N, context) whose EOT is at `end` (N,) -> the states that enter layer 0.

        Args:
            slots: number of positions behind BOT that a method puts its own tokens at.
        """
        tokens = tokens[:, : int(end.max()) + 1]
        differs = (tokens != tokens[:1]).any(0)
        alike = int(differs.int().argmax()) if bool(differs.any()) else tokens.shape[1]
        shared = max(1 + slots, min(alike, int(end.min())))  # EOT, at least, is left to the body
        x = self.words(tokens) + self.positions[: tokens.shape[1]]
        return TextHidden(x[:1, :shared], x[:, shared:], slots)

    def run_prefix(self, hidden: TextHidden, start: int, stop: int, edits: Edits = NO_EDITS) -> tuple[TextHidden, list[KeysValues]]:
        """Layers [start, stop) of the prefix: its states behind them, and the keys and values that each layer offers the prompts.

        In the last layer of the tower nobody reads what the prefix puts out: there its states are those that enter the layer.
        """
        prefix, body, slots = hidden
        first, extra, rest = prefix[:, :1], prefix[:, 1 : 1 + slots] if slots else None, prefix[:, 1 + slots :]
        shared: list[KeysValues] = []
        for i in range(start, stop):
            layer, edit = self.layers[i], edit_of(edits, i)
            extra = place(edit, extra)
            whole = join(first, extra, rest)
            shared.append(layer.keys_values(whole, edit))
            if i == self.depth - 1:
                break
            slots = 0 if extra is None else extra.shape[1]
            if extra is None or output_is_used(edits, i):
                out = layer(whole, [shared[-1]], own=False, mask="causal", edit=edit)
                first, extra, rest = out[:, :1], out[:, 1 : 1 + slots] if slots else None, out[:, 1 + slots :]
            else:
                mask = causal_mask(whole.shape[1], 0, whole.device)
                mask = torch.cat([mask[:1], mask[1 + slots :]])
                out = layer(each_of(join(first, rest), whole.shape[0]), [shared[-1]], own=False, mask=mask, edit=edit)
                first, rest = out[:, :1], out[:, 1:]
        return TextHidden(join(first, extra, rest), body, 0 if extra is None else extra.shape[1]), shared

    def run_body(self, body: Tensor, packing: Packing | None, shared: list[KeysValues]) -> Tensor:
        """Layers [0, len(shared)) of prompts (N, T, d), unedited. With `packing`, what is behind their ends comes out as zeros."""
        if not shared:
            return body
        x = body if packing is None else packing.pack(body)
        for i, keys_values in enumerate(shared):
            x = self._body_layer(i, x, packing, keys_values)
        return x if packing is None else packing.pad(x)

    def finish_body(
        self, body: Tensor, end: Tensor, packing: Packing | None, start: int, shared: list[KeysValues], edits: Edits = NO_EDITS
    ) -> Tensor:
        """Layers [start, depth) of prompts (N, T, d), pooled at EOT and projected: (N, embed_dim). With K readers, which see what EOT
        sees, (N, 1 + K, embed_dim): theirs behind it.

        Args:
            end: position of each prompt's EOT in the body (N,).
            packing: of the prompts, where they are not all as long. What stands behind EOT is then skipped.
            shared: keys and values of the prefix in these layers, from `run_prefix`.
        """
        count, length, _ = body.shape
        x, readers = body if packing is None else packing.pack(body), None
        positions = torch.arange(shared[-1][0].shape[2] + length, device=body.device)
        for i, keys_values in zip(range(start, self.depth), shared):
            layer, edit, last = self.layers[i], edit_of(edits, i), i == self.depth - 1
            readers = readers if edit.readers is None else edit.readers.expand(count, -1, -1)  # (N, K, d)
            if last or readers is not None:
                before = keys_values[0].shape[2]
                up_to_end = (positions[: before + length] <= before + end[:, None])[:, None, None]
                keys = [keys_values, layer.keys_values(x, edit, packing)]
            if last:
                at_end = x[torch.arange(count, device=x.device), end] if packing is None else x[0].index_select(0, packing.ends)
                asked = join(at_end.unsqueeze(1), readers)
                pooled = self.project(self.text.ln_final(layer(asked, keys, own=False, mask=up_to_end, edit=edit)))
                return pooled[:, 0] if readers is None else pooled
            if readers is not None:
                readers = layer(readers, keys, own=False, mask=up_to_end, edit=edit)
            x = self._body_layer(i, x, packing, keys_values, edits)
        raise ValueError(f"start is {start}, but the tower has {self.depth} layers")

    def _body_layer(self, i: int, x: Tensor, packing: Packing | None, shared: KeysValues, edits: Edits = NO_EDITS) -> Tensor:
        """Layer `i` of prompts (N, T, d), or packed, given the prefix's keys and values there."""
        return self.layers[i](x, [shared], mask="causal", edit=edit_of(edits, i), packing=packing)


def rows_of(shared: list[KeysValues], rows: slice, count: int) -> list[KeysValues]:
    """Keys and values for the prompts `rows` of `count`; a prefix that all share stays as it is."""

    def part(x: Tensor) -> Tensor:
        if x.shape[0] == 1 or rows == slice(0, count):
            return x
        each = count // x.shape[0]
        return x[rows] if each == 1 else x[torch.arange(rows.start, rows.stop, device=x.device) // each]

    return [(part(k), part(v)) for k, v in shared]
