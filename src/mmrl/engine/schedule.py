"""The learning rate: constant during warm-up, then a cosine over the epochs, stepped once an epoch."""

from __future__ import annotations

import math


def learning_rates(epochs: int, lr: float, *, warmup_epochs: int = 0, warmup_lr: float = 0.0) -> list[float]:
    """Learning rate of every epoch, equal to the published runs'.

    The cosine starts when warm-up ends but has the length of *all* epochs, so a run with w warm-up epochs ends w epochs before the
    cosine would reach 0.
    """
    cosine = [lr * (1 + math.cos(math.pi * epoch / epochs)) / 2 for epoch in range(epochs - warmup_epochs)]
    return [warmup_lr] * min(warmup_epochs, epochs) + cosine
