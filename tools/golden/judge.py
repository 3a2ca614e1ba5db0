"""How numbers are compared with golden ones, and which errors count: shared by the replays of every format."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from mmrl import methods
from mmrl.methods.authors import stacked

TOLERANCE = 1e-4


class GoldenError(Exception):
    """A folder or a case that cannot be replayed; the message is one line."""


class Error(NamedTuple):
    """Worst errors of a group of tensors, and how many elements were left out of the second."""

    norm: float = 0.0
    element: float = 0.0
    left_out: int = 0


Errors = dict[str, Error]


class Pair(NamedTuple):
    """Errors of one case by group, as computed in either precision."""

    float64: Errors
    float32: Errors


def over_tolerance(exact: Error, single: Error) -> list[str]:
    """Which of the judged errors are over the tolerance: both of float64, the norm of float32."""
    judged = {"float64 norm": exact.norm, "float64 element": exact.element, "float32 norm": single.norm}
    return [name for name, error in judged.items() if error > TOLERANCE]


def rounding_decides(gradient: Tensor, final: Tensor, *, lr: float, eps: float) -> Tensor:
    """Elements whose first update of Adam, lr g / (|g| + eps), one epsilon of the largest gradient moves past the tolerance."""
    rounding = torch.finfo(gradient.dtype).eps * gradient.abs().max()
    return lr * eps * rounding / (gradient.abs() + eps) ** 2 > TOLERANCE * final.abs().max()


def ratio(over: Tensor, under: Tensor) -> float:
    found = float(over / under.clamp_min(1e-30))
    return found if math.isfinite(found) else math.inf  # a NaN compares with nothing, so it would be lost in a maximum


def note(errors: Errors, group: str, ours: Tensor | float, theirs: Tensor | float, leave_out: Tensor | None = None) -> None:
    """Enter the difference of a tensor from the golden one of the same shape into its group."""
    theirs = torch.as_tensor(theirs, dtype=torch.float64)
    ours = torch.as_tensor(ours, dtype=torch.float64).detach()
    if ours.shape != theirs.shape:
        raise GoldenError(f"{group}: shape {tuple(ours.shape)} here, {tuple(theirs.shape)} in the file")
    difference = ours - theirs
    kept = difference if leave_out is None else difference[~leave_out]
    worst = errors.get(group, Error())
    errors[group] = Error(
        max(worst.norm, ratio(difference.norm(), theirs.norm())),
        max(worst.element, ratio(kept.abs().max(), theirs.abs().max()) if kept.numel() else 0.0),
        worst.left_out + (0 if leave_out is None else int(leave_out.sum())),
    )


class Tensors(dict[str, Tensor]):
    """Tensors of a file; one that is missing is named."""

    def __missing__(self, name: str) -> Tensor:
        raise GoldenError(f"the file has no tensor {name}")

    def behind(self, prefix: str) -> dict[str, Tensor]:
        """Those whose names begin with `prefix`, without it."""
        return {name.removeprefix(prefix): tensor for name, tensor in self.items() if name.startswith(prefix)}


def read_tensors(file: Path) -> Tensors:
    """Tensors of a file of a golden folder."""
    try:
        return Tensors(load_file(file))
    except (OSError, SafetensorError) as error:
        raise GoldenError(f"cannot read {file}: {str(error).splitlines()[0]}") from error


def value(case: Mapping[str, Any], key: str) -> Any:
    """An entry of golden.json that the format has."""
    if key not in case:
        raise GoldenError(f"golden.json has no '{key}' here")
    return case[key]


def ours(method: methods.Method, tensors: Tensors, prefix: str) -> dict[str, Tensor]:
    """The tensors behind `prefix` for the method's parameters, under our names, one a layer stacked, in the file's own precision."""
    names = {}
    for own, _ in method.named_parameters():
        if own not in method.authors_names:
            raise GoldenError(f"'{own}' of {method.name} has no name in the authors' code")
        names[own] = method.authors_names[own]
    try:
        return stacked(names, tensors.behind(prefix))
    except KeyError as error:
        raise GoldenError(f"the file has no tensor {prefix}{error.args[0]}") from error


def load(method: methods.Method, tensors: Tensors) -> None:
    """Give the method the case's initial parameters."""
    start = ours(method, tensors, "init.")
    with torch.no_grad():
        for own, parameter in method.named_parameters():
            if parameter.shape != start[own].shape:
                raise GoldenError(f"init.* of '{own}': shape {tuple(parameter.shape)} here, {tuple(start[own].shape)} in the file")
            parameter.copy_(start[own])
    method.train()


def count(method: nn.Module) -> int:
    return sum(p.numel() for p in method.parameters())
