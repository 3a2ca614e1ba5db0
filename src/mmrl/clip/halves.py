"""Frozen weights in the type that autocast computes in, so that they are not cast again in every step."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from threading import Lock
from typing import Any

import torch
from torch import nn

from mmrl.clip.layers import Layer

_LOCK = Lock()  # trainings of one process may share a CLIP


@contextmanager
def weights_in(layers: Sequence[Layer], kind: torch.dtype) -> Iterator[int]:
    """While it lasts, `layers` have the weights of their products in `kind` too, and use them where autocast would cast them to it.

    The float32 ones stay where they are: whoever computes without autocast, or in another type, gets the same numbers as ever. Gives the
    bytes that the copies take: half of what the float32 ones do. Several may ask at the same time; the last one frees them.
    """
    with _LOCK:
        for layer in layers:
            users, twin = layer.twins.get(kind) or (0, _twin(layer.frozen, kind))
            layer.twins[kind] = (users + 1, twin)
        taken = sum(p.nbytes for layer in layers for p in layer.twins[kind][1].parameters() if p.dtype == kind)
    try:
        yield taken
    finally:
        with _LOCK:
            for layer in layers:
                users, twin = layer.twins.pop(kind)
                if users > 1:
                    layer.twins[kind] = (users - 1, twin)


def _twin(block: Any, kind: torch.dtype) -> Any:
    """A block that shares all of `block`, but has the float32 weights of products in `kind`."""
    twin = copy.deepcopy(block, memo={id(tensor): tensor for tensor in (*block.parameters(), *block.buffers())})
    for module in twin.modules():
        if isinstance(module, (nn.Linear, nn.MultiheadAttention)):
            for name, weight in list(module.named_parameters(recurse=False)):
                if weight.dtype == torch.float32:  # autocast leaves float64 alone
                    setattr(module, name, nn.Parameter(weight.detach().to(kind), requires_grad=False))
    return twin
