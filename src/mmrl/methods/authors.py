"""Tensors under the names of the authors' code, as ours."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from mmrl.clip import Clip
from mmrl.errors import UsageError
from mmrl.methods.base import Method, SavedAs

TOWERS = ("image_encoder", "text_encoder", "logit_scale")  # of the whole CLIP that the authors' checkpoints may have beside their own


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


def whole_names(method: type[Method], names: Collection[str]) -> dict[str, str]:
    """Names of the authors' whole model -> `names`, which may be of the part of it that they save alone."""
    part = f"{_saved(method).module}."
    lacks = part != "." and not any(name.startswith(part) for name in names)
    return {part + name if lacks else name: name for name in names}


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
    layers = layer_names(method.authors_names.values(), tensors)
    names = {
        ours: theirs
        for ours, theirs in method.authors_names.items()
        if ours not in _saved(method).optional or any(name in tensors for name in layers[theirs])
    }
    try:
        return {name: tensor.float() for name, tensor in stacked(names, tensors).items()}
    except KeyError as error:
        raise UsageError(f"the checkpoint is no {method.name} of the authors' code: it has no tensor '{error.args[0]}'.") from error


def guess_method(
    tensors: Collection[str], methods: Mapping[str, type[Method]], fits: Callable[[type[Method]], bool] = lambda method: True
) -> type[Method]:
    """The method whose tensors these are: of those that find all of theirs and leave none over, the one that has most.

    Args:
        fits: asked where several have as many, whether a method's sizes are those of the tensors.

    Raises:
        UsageError: none of them, or several alike.
    """
    found: dict[str, int] = {}
    strange: dict[str, str] = {}  # method -> a tensor that it does not have
    for name, method in methods.items():
        whole = whole_names(method, tensors)
        own = _own_names(method, whole)
        others = [one for one in whole if one not in own and not _constant(method, one)]
        if own and others:
            strange[name] = whole[others[0]]
        elif own:
            found[name] = len(own)
    if not found:
        known = [name for name, method in methods.items() if method.authors_names]
        beside = "".join(f" Beside the tensors of {name} it has '{other}', of something else." for name, other in list(strange.items())[:1])
        raise UsageError(f"the checkpoint holds none of the methods that can be imported ({', '.join(known)}).{beside}")
    alike = [name for name, count in found.items() if count == max(found.values())]
    best = [name for name in alike if fits(methods[name])] or alike if len(alike) > 1 else alike
    if len(best) > 1:
        raise UsageError(f"the checkpoint may be of {' or '.join(best)}, whose tensors have the same names; say which (--method).")
    return methods[best[0]]


def _saved(method: type[Method]) -> SavedAs:
    return method.saved_as or SavedAs()


def _own_names(method: type[Method], tensors: Collection[str]) -> set[str]:
    """The names among `tensors` that are of `method`; none where it lacks one that it must have."""
    saved = _saved(method)
    patterns = dict.fromkeys(saved.patterns, True) or {
        theirs: ours in saved.optional for ours, theirs in method.authors_names.items()
    }  # -> whether it may be lacking
    own = set[str]()
    for pattern, names in layer_names(patterns, tensors).items():
        there = {name for name in names if name in tensors}
        if len(there) < len(names) and (there or not patterns[pattern]):
            return set()
        own |= there
    return own


def _constant(method: type[Method], name: str) -> bool:
    return name.split(".")[0] in TOWERS or any(name == one or name.startswith(f"{one}.") for one in _saved(method).constant)


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
