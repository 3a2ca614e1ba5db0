"""Exported programs beside torch: the same numbers, at batch sizes that no trace saw."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mmrl.errors import MmrlError

SIZES = (1, 3, 5)  # of batches; a program is traced with two
TOLERANCE = 1e-4  # largest difference, in units of the largest number that comes out, or of 1 where that is smaller

Run = Callable[[Sequence[NDArray[np.generic]]], Sequence[NDArray[np.generic]]]


def largest_difference(program: nn.Module, run: Run, inputs: Callable[[int], list[Tensor]], *, what: str) -> float:
    """The largest difference between what `run` and the torch program put out, over all `SIZES`, in units as of `TOLERANCE`.

    Args:
        run: the exported program, of arrays.
        inputs: of a batch of some size.

    Raises:
        MmrlError: it is above the tolerance, or shapes differ.
    """
    worst = 0.0
    for size in SIZES:
        given = inputs(size)
        with torch.no_grad():
            found = program(*given)
        wanted = [each.float().cpu().numpy() for each in (found if isinstance(found, tuple) else (found,))]
        try:
            made = run([each.cpu().numpy() for each in given])
        except Exception as error:
            raise MmrlError(f"{what} was traced, but does not run on a batch of {size}: {error}") from error
        for own, other in zip(made, wanted, strict=True):
            if own.shape != other.shape or not np.isfinite(own).all():
                raise MmrlError(f"{what} puts out {own.shape} for a batch of {size}, where torch has {other.shape}, or is not finite.")
            worst = max(worst, float(np.abs(own - other).max()) / max(1.0, float(np.abs(other).max())))
    if worst > TOLERANCE:
        raise MmrlError(f"{what} differs from torch by {worst:.2g}, more than {TOLERANCE:g}: nothing was written. Please report it.")
    return worst
