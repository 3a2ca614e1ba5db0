"""Arguments of the functions here, checked once."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mmrl.errors import UsageError

Floats = NDArray[np.float64]


def rows(values: ArrayLike, *, what: str) -> Floats:
    """(N, C) in float64, N and C at least 1, all finite. Raises UsageError otherwise."""
    array = np.asarray(values, np.float64)
    if array.ndim != 2 or not array.size:
        raise UsageError(f"{what} have shape {array.shape}; they must be (images, classes), at least one of each.")
    if not np.isfinite(array).all():
        raise UsageError(f"{what} of image {int(np.argwhere(~np.isfinite(array))[0][0])} are not finite.")
    return array


def labels_of(labels: ArrayLike, like: Floats) -> NDArray[np.int64]:
    """(N,) whole numbers, each a column of `like` (N, C). Raises UsageError otherwise."""
    given = np.asarray(labels)
    array = given.astype(np.int64)
    if array.shape != like.shape[:1] or (given.dtype.kind not in "iub" and (given != array).any()):
        raise UsageError(f"labels have shape {array.shape} and type {given.dtype}; {len(like)} images need {len(like)} whole numbers.")
    if array.min() < 0 or array.max() >= like.shape[1]:
        raise UsageError(f"labels go from {array.min()} to {array.max()}, but there are {like.shape[1]} classes, counted from 0.")
    return array


def line(values: ArrayLike, *, what: str) -> Floats:
    """(N,) in float64, N at least 1, all finite. Raises UsageError otherwise."""
    array = np.asarray(values, np.float64)
    if array.ndim != 1 or not array.size:
        raise UsageError(f"{what} have shape {array.shape}; they must be a list of at least one number.")
    if not np.isfinite(array).all():
        raise UsageError(f"{what} hold a number that is not finite, at place {int(np.argwhere(~np.isfinite(array))[0][0])}.")
    return array


def share(value: float, *, what: str) -> float:
    """A number in (0, 1]. Raises UsageError otherwise."""
    if not 0 < value <= 1:  # also false for NaN
        raise UsageError(f"{what} is {value}; it is a share of the images, above 0 and at most 1, such as 0.95.")
    return float(value)


def positive(value: float, *, what: str) -> float:
    """A finite number above 0. Raises UsageError otherwise."""
    if not 0 < value < math.inf:
        raise UsageError(f"{what} is {value}; it must be a number above 0.")
    return float(value)


def counted(part: float, total: int) -> int:
    """ceil(part * total), where a product that is whole but for rounding is that whole number: 0.07 of 100 is 7."""
    return math.ceil(part * total - 1e-9)


def log_softmax(z: Floats) -> Floats:
    """(N, C) of (N, C). In numpy, since importing scipy.special takes longer than classifying a photo."""
    shifted = z - z.max(1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
