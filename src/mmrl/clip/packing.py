"""Prompts of several lengths without padding: what is computed token by token skips the positions behind each one's end."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor


class Packing(NamedTuple):
    """Where the n tokens of N sequences of at most T positions are, packed one sequence behind the other.

    Attributes:
        rows: place of each token (n,) among the N * T positions.
        ends: place of each sequence's last token (N,) among the n.
        sequences, length: N and T.
    """

    rows: Tensor
    ends: Tensor
    sequences: int
    length: int

    def pack(self, x: Tensor) -> Tensor:
        """(N, T, d) -> (1, n, d)."""
        return x.flatten(0, 1).index_select(0, self.rows).unsqueeze(0)

    def pad(self, x: Tensor) -> Tensor:
        """(1, n, d) -> (N, T, d), zeros behind each sequence."""
        padded = x.new_zeros(self.sequences * self.length, x.shape[-1])
        return padded.index_copy_(0, self.rows, x[0]).unflatten(0, (self.sequences, self.length))


def packing_of(lengths: Sequence[int], length: int, device: torch.device) -> Packing | None:
    """The packing of sequences of `lengths` (N,), each at most `length`; None where all are as long, so that nothing is padding."""
    return None if min(lengths) == length else _packing(tuple(lengths), length, device)


@lru_cache(maxsize=64)  # the same class list in every step, in a few chunks; kept small, and never copied to the device again
def _packing(lengths: tuple[int, ...], length: int, device: torch.device) -> Packing:
    with torch.inference_mode(False):  # used in training too
        each = torch.tensor(lengths, device="cpu")
        positions = torch.arange(length, device="cpu").expand(len(each), -1)
        rows = (positions < each[:, None]).flatten().nonzero()[:, 0]
        return Packing(rows.to(device), (each.cumsum(0) - 1).to(device), len(each), length)
