"""One transformer layer over open_clip's weights, and what a method may change in it.

The towers (`vision.py`, `text.py`) run layers [a, b) on hidden states. A method hands them an `Edit` per layer;
MMRL, MMRL++, MaPLe, PromptSRC and MMA differ only in these edits. The layer itself computes outputs for exactly the
tokens it is given as queries, so a token that serves as key and value only costs neither a query nor an MLP.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

KeysValues = tuple[Tensor, Tensor]  # each (B or 1, heads, N, d / heads)


@dataclass(frozen=True)
class Edit:
    """What a method changes in one layer.

    Attributes:
        tokens: extra tokens (K, d) for the positions between the first token and the rest. They are inserted if the
            sequence has none yet; else they take the place of what the previous layer put out there.
        keep: share of the previous layer's output that stays: `(1 - keep) * tokens + keep * output`. 0 replaces.
        residual: added to the layer's output; called with the hidden states (..., d) that enter the MLP block.
    """

    tokens: Tensor | None = None
    keep: float = 0.0
    residual: Callable[[Tensor], Tensor] | None = None


Edits = Mapping[int, Edit]  # layer index from 0
NO_EDITS: Edits = {}
_NOTHING = Edit()


def edit_of(edits: Edits, layer: int) -> Edit:
    return edits.get(layer, _NOTHING)


def output_is_used(edits: Edits, layer: int) -> bool:
    """Whether the layer after `layer` reads what `layer` puts out at the extra positions."""
    following = edit_of(edits, layer + 1)
    return following.tokens is None or following.keep > 0


def place(edit: Edit, extra: Tensor | None) -> Tensor | None:
    """The extra tokens (B or 1, K, d) that enter a layer, given those the previous one put out."""
    if edit.tokens is None:
        return extra
    tokens = edit.tokens.unsqueeze(0)  # (1, K, d)
    if extra is None or edit.keep == 0:
        return tokens
    return (1 - edit.keep) * tokens + edit.keep * extra


class Layer:
    """A pre-norm residual attention block of open_clip, with queries apart from keys and values."""

    def __init__(self, block: Any) -> None:  # open_clip's ResidualAttentionBlock; Any, since torch types attributes of modules loosely
        self.block = block
        self.heads: int = block.attn.num_heads

    def _split(self, x: Tensor, parts: int) -> list[Tensor]:
        """(B, N, parts * d) -> `parts` of (B, heads, N, d / heads)."""
        batch, length, _ = x.shape
        return list(x.view(batch, length, parts, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0))

    def keys_values(self, x: Tensor) -> KeysValues:
        """Keys and values of tokens (B, N, d) that others attend to."""
        attention, d = self.block.attn, x.shape[-1]
        k, v = self._split(F.linear(self.block.ln_1(x), attention.in_proj_weight[d:], attention.in_proj_bias[d:]), 2)
        return k, v

    def __call__(
        self,
        x: Tensor,
        others: Sequence[KeysValues] = (),
        *,
        own: bool = True,
        mask: Tensor | None = None,
        residual: Callable[[Tensor], Tensor] | None = None,
    ) -> Tensor:
        """Outputs (B, N, d) of tokens `x` (B, N, d), which attend to `others` and, if `own`, to themselves.

        Args:
            others: keys and values that come before `x` in the order of the mask; a batch of 1 is shared by all of B.
            mask: boolean, True where a query may look: broadcastable to (B, heads, N, keys).
        """
        block, attention, d = self.block, self.block.attn, x.shape[-1]
        normed = block.ln_1(x)
        if own:
            q, k, v = self._split(F.linear(normed, attention.in_proj_weight, attention.in_proj_bias), 3)
            others = (*others, (k, v))
        else:
            (q,) = self._split(F.linear(normed, attention.in_proj_weight[:d], attention.in_proj_bias[:d]), 1)
        if len(others) == 1:
            k, v = others[0]
        else:
            k = torch.cat([key.expand(len(x), -1, -1, -1) for key, _ in others], dim=2)
            v = torch.cat([value.expand(len(x), -1, -1, -1) for _, value in others], dim=2)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)  # (B, heads, N, d / heads)
        x = x + block.ls_1(attention.out_proj(mixed.transpose(1, 2).flatten(2)))
        out = x + block.ls_2(block.mlp(block.ln_2(x)))
        return out if residual is None else out + residual(x)
