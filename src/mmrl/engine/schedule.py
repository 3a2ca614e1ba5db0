"""The learning rate: constant during warm-up, then a cosine."""

from __future__ import annotations

import math


def learning_rates(
    length: int, lr: float, *, warmup: int = 0, warmup_lr: float = 0.0, final_lr: float = 0.0, cosine: bool = True
) -> list[float]:
    """Learning rate of every epoch (or step) of `length`, equal to the published runs'.

    The cosine starts when warm-up ends but has the length of *all* epochs, so a run with w warm-up epochs ends w epochs before the
    cosine would reach `final_lr`.

    Args:
        warmup: epochs (or steps) at the constant rate `warmup_lr`.
        cosine: whether the rate falls; else it stays `lr`.
    """
    rest = range(length - warmup)
    falling = [final_lr + (lr - final_lr) * (1 + math.cos(math.pi * i / length)) / 2 for i in rest] if cosine else [lr for _ in rest]
    return [warmup_lr] * min(warmup, length) + falling
