"""Scaled dot-product attention, by the kernel that is fast where it runs."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Mask = Tensor | Literal["causal"] | None
MASKLESS = ("cuda",)  # devices whose fused kernels know a causal mask that is aligned at the last query and key
_MASKLESS_TYPES = (torch.float32, torch.float16, torch.bfloat16)
_HALF = (torch.float16, torch.bfloat16)


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Mask = None) -> Tensor:
    """Attention of queries (B, heads, N, d) to keys and values (B, heads, S, d): (B, heads, N, d).

    Args:
        mask: boolean, True where a query may look, broadcastable to (B, heads, N, S); or "causal": the last query sees all keys, each
            query before it one fewer (N <= S). A causal mask is no tensor where a kernel does without.
    """
    device = q.device.type
    if torch.is_autocast_enabled(device):  # as autocast does for torch's own function, which not every branch calls
        q, k, v = (x.to(torch.get_autocast_dtype(device)) for x in (q, k, v))
    if isinstance(mask, str):
        if device in MASKLESS and q.dtype in _MASKLESS_TYPES:
            from torch.nn.attention.bias import causal_lower_right  # brings torch's compiler along, which takes a second

            return F.scaled_dot_product_attention(q, k, v, attn_mask=causal_lower_right(q.shape[-2], k.shape[-2]))
        mask = causal_mask(q.shape[-2], k.shape[-2] - q.shape[-2], q.device)
    if device == "cpu" and q.dtype in _HALF:
        return by_products(q, k, v, mask)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def causal_mask(queries: int, before: int, device: torch.device) -> Tensor:
    """(queries, before + queries), True where a query may look: all that is before, itself, and its predecessors."""
    return torch.ones(queries, before + queries, dtype=torch.bool, device=device).tril(before)


def by_products(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Attention as two matrix products, with scores and softmax in float32, as fused kernels have them.

    For half precision on a processor: the backward pass of torch's fused kernel takes many times as long there, the more so the shorter
    the sequences are. Sequences are short here, so that the scores take little memory.
    """
    with torch.autocast(q.device.type, enabled=False):
        scores = (q.float() * q.shape[-1] ** -0.5) @ k.float().transpose(-2, -1)
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    return scores.softmax(-1).to(v.dtype) @ v
