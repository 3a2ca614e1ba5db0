"""Tensors under the names of the authors' code, from and to ours."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from mmrl.errors import UsageError
from mmrl.methods.base import Method


def from_authors(method: type[Method], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our state dict of `method` from tensors under the authors' names; one tensor a layer is stacked.

    Raises:
        UsageError: a tensor is missing.
    """
    out = {}
    for ours, theirs in method.authors_names.items():
        if "{i}" not in theirs:
            names = [theirs]
        else:
            names = [
                theirs.replace("{i}", str(i)) for i in range(sum(theirs.replace("{i}", str(i)) in tensors for i in range(len(tensors))))
            ]
            names = names or [theirs.replace("{i}", "0")]
        missing = [name for name in names if name not in tensors]
        if missing:
            raise UsageError(f"the checkpoint is no {method.name} of the authors' code: it has no tensor '{missing[0]}'.")
        parts = [tensors[name].float() for name in names]
        out[ours] = torch.stack(parts) if "{i}" in theirs else parts[0]
    return out


def guess_method(tensors: Mapping[str, Tensor], methods: Mapping[str, type[Method]]) -> type[Method]:
    """The method whose tensors these are.

    Raises:
        UsageError: none of them.
    """
    for method in methods.values():
        wanted = [name.replace("{i}", "0") for name in method.authors_names.values()]
        if wanted and all(name in tensors for name in wanted):
            return method
    known = [name for name, method in methods.items() if method.authors_names]
    raise UsageError(f"the checkpoint holds none of the methods that can be imported ({', '.join(known)}).")
