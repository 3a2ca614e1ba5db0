"""The optimiser of a training, by the kernels that are fast where it runs, and its learning rate."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mmrl.engine.config import FitConfig

BETAS = (0.9, 0.999)
FUSED = ("cuda",)  # devices where one kernel moves all parameters; elsewhere torch's own choice, the same to the bit on every processor
OF_THE_DEVICE = ("lr", "fused", "foreach", "capturable")  # of a group: how this device computes, which a checkpoint does not decide


def make_optimizer(parameters: Sequence[nn.Parameter], config: FitConfig, *, static: bool = False) -> torch.optim.Optimizer:
    """The optimiser that `config` asks for.

    Args:
        static: whether its steps are recorded and replayed. The learning rate is a tensor then, and nothing is decided in Python.
    """
    device = parameters[0].device
    rate = torch.tensor(config.lr, dtype=torch.float32, device=device) if static else config.lr  # fused kernels read float32
    fused = True if static or device.type in FUSED else None
    if config.optimizer == "sgd":
        return torch.optim.SGD(parameters, lr=rate, momentum=config.momentum, weight_decay=config.weight_decay, fused=fused)
    kind = torch.optim.AdamW if config.optimizer == "adamw" else torch.optim.Adam
    return kind(
        parameters, lr=rate, betas=BETAS, eps=config.eps, weight_decay=config.weight_decay, fused=fused,
        capturable=static and device.type == "cuda",
    )  # fmt: skip


def set_rate(optimizer: torch.optim.Optimizer, rate: float, *, static: bool = False) -> None:
    """The learning rate of the next step, in every group times its "lr_scale"; with `static`, at its place in memory."""
    for group in optimizer.param_groups:
        value = rate * group.get("lr_scale", 1.0)
        if static:
            group["lr"].fill_(value)
        else:
            group["lr"] = value


def load_state(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """What `optimizer.state_dict` gave, maybe on another device."""
    pairs = zip(state["param_groups"], optimizer.param_groups)
    groups = [{**saved, **{key: own[key] for key in OF_THE_DEVICE if key in own}} for saved, own in pairs]
    optimizer.load_state_dict({**state, "param_groups": groups})
    for group in optimizer.param_groups:
        for parameter in group["params"] if group.get("fused") else ():
            own = optimizer.state[parameter]
            own.update({name: laid_out(value, parameter) for name, value in own.items() if isinstance(value, Tensor)})


def laid_out(value: Tensor, parameter: Tensor) -> Tensor:
    """`value`, in memory as `parameter` is, if it is of its shape. Fused kernels read both side by side, on a processor without a check."""
    if value.shape != parameter.shape or value.stride() == parameter.stride():
        return value
    return torch.empty_like(parameter, requires_grad=False).copy_(value)
