"""Linear classifiers on image features: what the methods share that fit one."""

from __future__ import annotations

import warnings
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from mmrl.errors import Notice, UsageError
from mmrl.methods.exchange import Task

Selection = Literal["validation", "fixed", "authors"]
AS_AUTHORS = (
    "authors: on the data set's whole validation part, and where it has none, as ImageNet, on its test images, which flatters the score"
)


class Rows(NamedTuple):
    """Weights (C, embed_dim) and biases (C,) of the classes asked for."""

    weight: Tensor
    bias: Tensor

    def logits(self, features: Tensor) -> Tensor:
        """(B, C) of features (B, embed_dim), in float32 at least: half precision would round logits to a tenth."""
        dtype = torch.promote_types(features.dtype, self.weight.dtype)
        with torch.autocast(features.device.type, enabled=False):
            return features.to(dtype) @ self.weight.to(dtype).T + self.bias.to(dtype)


def exact(features: Tensor) -> Tensor:
    """In float32, or as exact as they are."""
    return features.to(torch.promote_types(features.dtype, torch.float32))


def say_unselected(method: str, what: str, instead: str) -> None:
    """Warn that there are no validation images to select `what` on; `instead` says what is taken."""
    warnings.warn(
        f"method '{method}' has no validation images to select {what} on, and {instead}. It needs some, best of every class "
        "(a folder val/ beside train/ and test/, or a list's validation part); selection=fixed needs none.",
        Notice,
        stacklevel=3,
    )


def require_images(method: str, task: Task, labels: Tensor) -> None:
    """Raises UsageError for fewer than two classes, or a class that none of the training images' labels (N,) names."""
    if len(task.names) < 2:
        raise UsageError(f"method '{method}' tells classes apart, and '{task.names[0]}' is the only one; give at least two.")
    counts = torch.bincount(labels.cpu(), minlength=len(task.names)).tolist()
    without = [name for name, count in zip(task.names, counts) if not count]
    if without:
        raise UsageError(
            f"method '{method}' needs a training image of every class, and '{without[0]}' has none "
            f"({len(without)} of {len(task.names)} classes). Give it one, or leave the class out."
        )
