"""Checkpoints of the authors' code: how they name and keep a method's tensors, and those tensors as ours."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from mmrl.clip import Clip
from mmrl.errors import UsageError


@dataclass(frozen=True)
class SavedAs:
    """How the authors' code saves a method's training, so that its checkpoints can be imported.

    Attributes:
        module: the part of their model that a checkpoint has alone, as 'prompt_learner'; names in the file do not begin with it.
        optional: our names of tensors that a checkpoint may lack, since options decide whether there are any.
        constant: names, or what they begin with, of tensors in the file that follow from the backbone and the class names.
        patterns: names in the file ({i}: one tensor a layer) where they are not those of `authors_names`; each is optional.
    """

    module: str = ""
    optional: frozenset[str] = frozenset()
    constant: tuple[str, ...] = ()
    patterns: tuple[str, ...] = ()


@dataclass(frozen=True)
class AuthorsFile:
    """A checkpoint of the authors' code.

    Attributes:
        where: what messages call it.
        tensors: by the names of the authors' whole model.
        notes: plain values that stand beside the tensors.
    """

    where: str
    tensors: Mapping[str, Tensor]
    notes: Mapping[str, Any] = field(default_factory=dict)

    def constant(self, name: str) -> Tensor | None:
        """The tensor whose name ends in `.name`, if there is one."""
        return next((self.tensors[one] for one in self.tensors if one.rpartition(".")[2] == name), None)


class Renamed(Mapping[str, Tensor]):
    """Tensors under other names; each is read when asked for."""

    def __init__(self, tensors: Mapping[str, Tensor], names: Mapping[str, str]) -> None:
        self._tensors, self._names = tensors, names

    def __len__(self) -> int:
        return len(self._names)

    def __iter__(self) -> Any:
        return iter(self._names)

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __getitem__(self, name: str) -> Tensor:
        return self._tensors[self._names[name]]


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


def from_authors(
    method: str, names: Mapping[str, str], tensors: Mapping[str, Tensor], *, optional: Collection[str] = ()
) -> dict[str, Tensor]:
    """State dict of `method`, in float32, from tensors under the authors' names; one tensor a layer is stacked.

    Args:
        names: ours -> the authors'.
        optional: ours that the checkpoint may lack.

    Raises:
        UsageError: a tensor is missing.
    """
    layers = layer_names(names.values(), tensors)
    there = {ours: theirs for ours, theirs in names.items() if ours not in optional or any(name in tensors for name in layers[theirs])}
    try:
        return {name: tensor.float() for name, tensor in stacked(there, tensors).items()}
    except KeyError as error:
        raise UsageError(f"the checkpoint is no {method} of the authors' code: it has no tensor '{error.args[0]}'.") from error


# ---- what a method's `options_of` asks ----


def sizes_of(tensors: Mapping[str, Tensor], name: str, *dims: int, where: str) -> tuple[int, ...]:
    """The shape of the tensor `name`.

    Raises:
        UsageError: it has not as many sizes as one of `dims`.
    """
    shape = tuple(tensors[name].shape)
    if len(shape) not in dims:
        counts = " or ".join(str(n) for n in dims)
        raise UsageError(f"'{name}' of {where} has the shape {shape}, not {counts} sizes. It is no checkpoint of the authors' code.")
    return shape


def require_tower(clip: Clip, tower: str, *, width: int, layers: int, where: str) -> None:
    """Raises UsageError unless the tower, 'text' or 'visual', has this width and at least so many layers."""
    own = clip.text if tower == "text" else clip.vision
    if width != own.width or layers > own.depth:
        raise UsageError(
            f"{where} was made with another backbone: its {tower} tower has width {width} and at least {layers} layers, "
            f"that of '{clip.name}' width {own.width} and {own.depth} layers. Give the one it was made with."
        )


def meta_net_sizes(tensors: Mapping[str, Tensor], clip: Clip, *, where: str) -> tuple[int, ...]:
    """Width of the hidden layer of a 'meta_net', and of the features that it reads. Raises UsageError if those are not the backbone's."""
    hidden, joint = sizes_of(tensors, "meta_net.linear1.weight", 2, where=where)
    if joint != clip.embed_dim or not hidden:
        raise UsageError(
            f"{where} was made with another backbone: its meta-net reads {joint} numbers, and features of '{clip.name}' have "
            f"{clip.embed_dim}. Give the one it was made with."
        )
    return hidden, joint
