"""Which device to compute on."""

from __future__ import annotations

import os

import torch

from mmrl.errors import UsageError, first_line, shortened

LONGEST_WHY = 200  # letters of what torch says
AUTO = "auto"


def best_device() -> torch.device:
    """A CUDA GPU, else Apple's GPU (mps), else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu")


def checked_device(name: str | torch.device = AUTO) -> torch.device:
    """The device called `name`; 'auto' is the best there is. Under torchrun or `accelerate launch`, cuda is the GPU of this process.

    Raises:
        UsageError: there is no such device here, or it holds no numbers (meta).
    """
    if name == AUTO:
        return _own_gpu(best_device())
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    here = f"Available: {', '.join([AUTO, *(kind for kind, found in there.items() if found)])}."
    try:
        wanted = torch.device(name)
    except RuntimeError as error:
        raise UsageError(f"device '{name}' is not known. {here}") from error
    try:
        device = _own_gpu(wanted)
        if device.type == "meta":
            raise RuntimeError("it holds no numbers.")
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        why = first_line(error).partition(". ")[0].rstrip(".")  # torch goes on to list all there could be
        raise UsageError(f"device '{name}' cannot be used here: {shortened(why, LONGEST_WHY)}. {here}") from error
    return device


def arithmetic(device: torch.device) -> tuple[object, ...]:
    """What rounding depends on besides the numbers."""
    where: tuple[object, ...] = (torch.backends.cpu.get_cpu_capability(), torch.get_num_threads())
    if device.type == "cuda":
        where = (torch.cuda.get_device_name(device), torch.backends.cudnn.allow_tf32)
    return device.type, *where, torch.get_float32_matmul_precision(), torch.backends.mha.get_fastpath_enabled(), torch.__version__


def _own_gpu(device: torch.device) -> torch.device:
    """'cuda' in one of several processes that a launcher started is a GPU of its own, by its local rank."""
    if device.type != "cuda" or device.index is not None or "LOCAL_RANK" not in os.environ:
        return device
    return torch.device("cuda", int(os.environ["LOCAL_RANK"]) % max(1, torch.cuda.device_count()))
