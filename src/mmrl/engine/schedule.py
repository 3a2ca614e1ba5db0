"""How long a training is, and its learning rate: constant during warm-up, then a cosine."""

from __future__ import annotations

import math

from mmrl.engine.config import FitConfig


def length_of(config: FitConfig, batches: int) -> tuple[int, int]:
    """Steps and epochs of a training with `batches` batches an epoch; the last epoch may be cut short by `iterations`."""
    each = -(-batches // config.accumulate)
    steps = config.iterations or config.epochs * each
    return steps, -(-steps // each)


def rates_of(config: FitConfig, batches: int) -> list[float]:
    """Learning rate of every epoch, or of every step."""
    steps, epochs = length_of(config, batches)
    by_step = config.schedule_step == "step"
    return learning_rates(
        steps if by_step else epochs,
        config.lr,
        warmup=config.warmup_epochs * (-(-batches // config.accumulate) if by_step else 1),
        warmup_lr=config.warmup_lr,
        final_lr=config.final_lr,
        cosine=config.schedule == "cosine",
    )


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
