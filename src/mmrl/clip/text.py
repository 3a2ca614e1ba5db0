"""The text tower in stages, for many prompts that share their beginning.

The encoder is causal. So a prompt needs nothing after its EOT, and BOT with the tokens a method inserts behind it is the
same for every prompt: this prefix runs once, and the prompts attend to its keys and values.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mmrl.clip.layers import NO_EDITS, Edits, KeysValues, Layer, edit_of, output_is_used, place


class TextHidden(NamedTuple):
    """Hidden states of C prompts between two layers.

    Attributes:
        prefix: BOT and, behind it, the tokens a method inserted (1, 1 + K, d).
        body: the prompts without BOT, up to the longest one's EOT (C, T, d).
    """

    prefix: Tensor
    body: Tensor


def causal_mask(queries: int, before: int, device: torch.device) -> Tensor:
    """(queries, before + queries), True where a query may look: all that is before, itself, and its predecessors."""
    return torch.ones(queries, before + queries, dtype=torch.bool, device=device).tril(before)


class TextTower:
    """Staged passes of open_clip's causal text transformer. Holds no state of its own."""

    def __init__(self, text: Any) -> None:
        self.text = text  # the CLIP itself, or its `text` module
        self.layers = [Layer(block) for block in text.transformer.resblocks]
        self.depth = len(self.layers)
        self.width = int(text.positional_embedding.shape[1])

    def project(self, x: Tensor) -> Tensor:
        """P_t: (C, d) after the final norm -> (C, embed_dim)."""
        projection = self.text.text_projection
        if projection is None:
            return x
        projected: Tensor = projection(x) if isinstance(projection, nn.Linear) else x @ projection
        return projected

    def embed(self, tokens: Tensor, end: Tensor) -> TextHidden:
        """Token ids (C, context) whose EOT is at `end` (C,) -> the states that enter layer 0."""
        tokens = tokens[:, : int(end.max()) + 1]
        x = self.text.token_embedding(tokens) + self.text.positional_embedding[: tokens.shape[1]]
        return TextHidden(x[:1, :1], x[:, 1:])

    def run(self, hidden: TextHidden, start: int, stop: int, edits: Edits = NO_EDITS) -> TextHidden:
        """Layers [start, stop), from 0, of all prompts."""
        prefix, shared = self.run_prefix(hidden.prefix, start, stop, edits)
        body = hidden.body
        for i, keys_values in zip(range(start, stop), shared):
            body = self.body_layer(i, body, keys_values, edits)
        return TextHidden(prefix, body)

    def run_prefix(self, prefix: Tensor, start: int, stop: int, edits: Edits = NO_EDITS) -> tuple[Tensor, list[KeysValues]]:
        """Layers [start, stop) of the prefix (1, 1 + K, d): its states behind them, and what each layer offers the prompts."""
        shared: list[KeysValues] = []
        first, extra = prefix[:, :1], prefix[:, 1:] if prefix.shape[1] > 1 else None
        for i in range(start, stop):
            layer, edit = self.layers[i], edit_of(edits, i)
            extra = place(edit, extra)
            whole = first if extra is None else torch.cat([first, extra], dim=1)
            shared.append(layer.keys_values(whole))
            if extra is None or not output_is_used(edits, i):
                first = layer(first, residual=edit.residual)
            else:
                whole = layer(whole, mask=causal_mask(whole.shape[1], 0, whole.device), residual=edit.residual)
                first, extra = whole[:, :1], whole[:, 1:]
        return (first if extra is None else torch.cat([first, extra], dim=1)), shared

    def finish_body(self, body: Tensor, end: Tensor, start: int, shared: list[KeysValues], edits: Edits = NO_EDITS) -> Tensor:
        """Layers [start, depth) of prompts (C, T, d), pooled at EOT and projected: (C, embed_dim).

        Args:
            end: position of each prompt's EOT in the body (C,).
            shared: keys and values of the prefix in these layers, from `run_prefix`.
        """
        for i, keys_values in zip(range(start, self.depth - 1), shared):
            body = self.body_layer(i, body, keys_values, edits)
        layer, last = self.layers[-1], self.depth - 1
        count, length, _ = body.shape
        at_end = body[torch.arange(count, device=body.device), end].unsqueeze(1)  # (C, 1, d)
        before = shared[-1][0].shape[2]
        positions = torch.arange(before + length, device=body.device)
        mask = (positions <= before + end[:, None])[:, None, None]  # (C, 1, 1, keys)
        pooled = layer(at_end, [shared[-1], layer.keys_values(body)], own=False, mask=mask, residual=edit_of(edits, last).residual)
        return self.project(self.text.ln_final(pooled[:, 0]))

    def body_layer(self, i: int, body: Tensor, shared: KeysValues, edits: Edits = NO_EDITS) -> Tensor:
        """Layer `i` of prompts (C, T, d), given the prefix's keys and values there."""
        mask = causal_mask(body.shape[1], shared[0].shape[2], body.device)
        return self.layers[i](body, [shared], mask=mask, residual=edit_of(edits, i).residual)
