"""Tensors under the names of the authors' code, as ours."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping

import torch
from torch import Tensor

from mmrl.errors import UsageError
from mmrl.methods.base import Method


def layer_names(patterns: Iterable[str], tensors: Iterable[str]) -> dict[str, list[str]]:
    """The authors' names that each pattern stands for: itself, or one a layer, ascending, where it has an `{i}`.

    Layers may start at any number; those of all patterns that are alike up to the `{i}` are the same. There are as many as numbers occur,
    in a row from the lowest: where one is left out, a name stands here that is not among `tensors`.
    """
    patterns, tensors = list(patterns), list(tensors)
    numbers: dict[str, set[int]] = {}
    for pattern in patterns:
        before, _, after = pattern.partition("{i}")
        rule = re.compile(rf"{re.escape(before)}([0-9]{{1,6}}){re.escape(after)}")
        numbers.setdefault(before, set()).update(int(found[1]) for name in tensors if (found := rule.fullmatch(name)))
    out = {}
    for pattern in patterns:
        occur = numbers[pattern.partition("{i}")[0]] or {0}
        layers = range(min(occur), min(occur) + len(occur))
        out[pattern] = [pattern.replace("{i}", str(i)) for i in layers] if "{i}" in pattern else [pattern]
    return out


def stacked(names: Mapping[str, str], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors under our names, of `names` (ours -> the authors'); one tensor a layer is stacked (n, ...), in the dtype that it has.

    Raises:
        KeyError: a tensor is missing; its name.
    """
    layers = layer_names(names.values(), tensors)
    return {
        ours: torch.stack([tensors[name] for name in layers[theirs]]) if "{i}" in theirs else tensors[theirs]
        for ours, theirs in names.items()
    }


def from_authors(method: type[Method], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our state dict of `method`, in float32, from tensors under the authors' names; one tensor a layer is stacked.

    Raises:
        UsageError: a tensor is missing.
    """
    try:
        return {name: tensor.float() for name, tensor in stacked(method.authors_names, tensors).items()}
    except KeyError as error:
        raise UsageError(f"the checkpoint is no {method.name} of the authors' code: it has no tensor '{error.args[0]}'.") from error


def guess_method(tensors: Collection[str], methods: Mapping[str, type[Method]]) -> type[Method]:
    """The method whose tensors these are: of those that find all of theirs, the one that has most.

    Raises:
        UsageError: none of them, or several alike.
    """
    found: dict[str, int] = {}
    for name, method in methods.items():
        wanted = [one for layers in layer_names(method.authors_names.values(), tensors).values() for one in layers]
        if wanted and all(one in tensors for one in wanted):
            found[name] = len(wanted)
    if not found:
        known = [name for name, method in methods.items() if method.authors_names]
        raise UsageError(f"the checkpoint holds none of the methods that can be imported ({', '.join(known)}).")
    best = [name for name, count in found.items() if count == max(found.values())]
    if len(best) > 1:
        raise UsageError(f"the checkpoint may be of {' or '.join(best)}, whose tensors have the same names; say which.")
    return methods[best[0]]
