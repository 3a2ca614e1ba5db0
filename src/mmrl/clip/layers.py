"""One transformer layer over open_clip's weights, and what a method may change in it.

The towers (`vision.py`, `text.py`) run layers [a, b) on hidden states, and a method hands them an `Edit` per layer. A layer computes
outputs for exactly the tokens it is given as queries, so a token that only serves as key and value costs neither a query nor an MLP.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mmrl.clip.attention import Mask, attend
from mmrl.clip.packing import Packing

KeysValues = tuple[Tensor, Tensor]  # each (M, heads, N, d / heads)


@dataclass(frozen=True)
class Edit:
    """What a method changes in one layer.

    Attributes:
        tokens: the method's own tokens behind the first position, (K, d). They take the place of what the previous layer put out at
            their positions, or are inserted if there are none yet. In the text tower also (C, K, d), other ones for each class, or
            (S, 1, K, d) and (S, C, K, d), S sets of prompts at once.
        keep: share of the previous layer's output that stays: `(1 - keep) * tokens + keep * output`. 0 replaces.
        readers: tokens (K, d) that attend to all others from this layer on and that no token attends to, not even themselves.
        parallel: a module beside the whole layer: of ln_1 of the layer's input (..., d), added to the layer's output.
        qkv: a change of the attention's projections: of ln_1 of the layer's input (B, N, d) and one of 'q', 'k', 'v', added to that one.
            Like `parallel` it changes each token by itself: prompts of several lengths come one behind the other, (1, n, d).
    """

    tokens: Tensor | None = None
    keep: float = 0.0
    readers: Tensor | None = None
    parallel: Callable[[Tensor], Tensor] | None = None
    qkv: Callable[[Tensor, str], Tensor] | None = None


Edits = Mapping[int, Edit]  # layer index from 0
NO_EDITS: Edits = {}
_NOTHING = Edit()


def edit_of(edits: Edits, layer: int) -> Edit:
    return edits.get(layer, _NOTHING)


def check_edits(edits: Edits, start: int, depth: int) -> None:
    """Raises ValueError for an edit of a layer that is not among [start, depth): it would be left out in silence."""
    outside = [layer for layer in edits if not start <= layer < depth]
    if outside:
        raise ValueError(f"layer {outside[0]} is edited, but only layers {start} to {depth - 1} are run; the first {start} are kept as run")


def output_is_used(edits: Edits, layer: int) -> bool:
    """Whether the layer after `layer` reads what `layer` puts out at the positions of the method's tokens."""
    following = edit_of(edits, layer + 1)
    return following.tokens is None or following.keep > 0


def place(edit: Edit, extra: Tensor | None) -> Tensor | None:
    """The method's tokens (M, K, d) that enter a layer, given those that the previous one put out."""
    if edit.tokens is None:
        return extra
    tokens = edit.tokens.unsqueeze(0) if edit.tokens.dim() == 2 else edit.tokens.flatten(0, -3)  # (M, K, d)
    if extra is None or edit.keep == 0:
        return tokens
    return (1 - edit.keep) * tokens + edit.keep * extra


def join(*parts: Tensor | None) -> Tensor:
    """Parts (M or 1, N_i, d) of one sequence, one behind the other: (M, sum of N_i, d)."""
    present = [part for part in parts if part is not None and part.shape[1]]
    batch = max(part.shape[0] for part in present)
    return present[0] if len(present) == 1 else torch.cat([each_of(part, batch) for part in present], dim=1)


def each_of(x: Tensor, batch: int) -> Tensor:
    """`x` (M, ...) for a batch of B = M * n, each of its M standing n times in a row."""
    count = x.shape[0]
    if count == batch:
        return x
    return x.expand(batch, *x.shape[1:]) if count == 1 else x.repeat_interleave(batch // count, dim=0)


class Layer:
    """A pre-norm residual attention block of open_clip, with queries apart from keys and values.

    Attributes:
        frozen: the block of the model.
        twins: by type, how many use it and a block with the weights in that type; see `halves.weights_in`.
    """

    def __init__(self, block: Any) -> None:  # open_clip's ResidualAttentionBlock; Any, since torch types attributes of modules loosely
        self.frozen = block
        self.twins: dict[torch.dtype, tuple[int, Any]] = {}
        self.heads: int = block.attn.num_heads

    @property
    def block(self) -> Any:
        """The block to compute with: where autocast is on and its twin is there, that one."""
        if self.twins:
            device = self.frozen.attn.in_proj_weight.device.type
            if torch.is_autocast_enabled(device):
                return self.twins.get(torch.get_autocast_dtype(device), (0, self.frozen))[1]
        return self.frozen

    def _project(self, normed: Tensor, parts: str, edit: Edit, packing: Packing | None = None) -> list[Tensor]:
        """Projections of ln_1 of the input (B, N, d): for each of `parts`, neighbours among 'qkv', (B, heads, N, d / heads)."""
        attention, d = self.block.attn, normed.shape[-1]
        rows = slice("qkv".index(parts[0]) * d, ("qkv".index(parts[-1]) + 1) * d)
        x = F.linear(normed, attention.in_proj_weight[rows], attention.in_proj_bias[rows])
        if edit.qkv is not None:
            x = x + torch.cat([edit.qkv(normed, part) for part in parts], dim=-1)
        if packing is not None:
            x = packing.pad(x)
        return list(x.view(*x.shape[:2], len(parts), self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0))

    def keys_values(self, x: Tensor, edit: Edit = _NOTHING, packing: Packing | None = None) -> KeysValues:
        """Keys and values of tokens (B, N, d) that others attend to; with `packing`, of packed ones (1, n, d)."""
        k, v = self._project(self.block.ln_1(x), "kv", edit, packing)
        return k, v

    def __call__(
        self,
        x: Tensor,
        others: Sequence[KeysValues] = (),
        *,
        own: bool = True,
        mask: Mask = None,
        edit: Edit = _NOTHING,
        packing: Packing | None = None,
    ) -> Tensor:
        """Outputs (B, N, d) of tokens `x` (B, N, d), which attend to `others` and, if `own`, to themselves.

        Args:
            others: keys and values that come before `x` in the order of the mask, of M tokens sets; each serves B / M of `x` in a row.
            mask: as in `attend`: boolean, broadcastable to (B, heads, N, keys), or "causal".
            packing: where `x` (1, n, d) are the tokens of B sequences packed; all is computed on them alone but attention itself.
        """
        block = self.block
        normed = block.ln_1(x)
        if own:
            q, k, v = self._project(normed, "qkv", edit, packing)
            others = (*others, (k, v))
        else:
            (q,) = self._project(normed, "q", edit, packing)
        k, v = (torch.cat([each_of(part, q.shape[0]) for part in parts], dim=2) for parts in zip(*others)) if len(others) > 1 else (
            each_of(part, q.shape[0]) for part in others[0]
        )
        mixed = attend(q, k, v, mask).transpose(1, 2).flatten(2)  # (B, N, d)
        x = x + block.ls_1(block.attn.out_proj(mixed if packing is None else packing.pack(mixed)))
        out: Tensor = x + block.ls_2(block.mlp(block.ln_2(x)))
        return out if edit.parallel is None else out + edit.parallel(normed)
