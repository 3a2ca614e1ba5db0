"""Device, precision and trackers of one training, through accelerate."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from mmrl.engine.config import FitConfig
from mmrl.errors import UsageError

TENSORBOARD_FOLDER = "tensorboard"


def check_precision(precision: str, device: torch.device) -> None:
    """Raises UsageError if `device` cannot train in `precision`; the message says what works there."""
    if precision == "fp16" and device.type != "cuda":
        raise UsageError(f"precision is 'fp16', which needs a CUDA device; on '{device.type}' use 'bf16' or 'fp32'.")
    if precision == "bf16" and device.type == "cuda" and not torch.cuda.is_bf16_supported():
        raise UsageError(f"precision is 'bf16', which {torch.cuda.get_device_name(device)} does not support; use 'fp16' or 'fp32'.")


def autocast(precision: str, device: torch.device) -> torch.autocast:
    """The same arithmetic for evaluation, without accelerate."""
    check_precision(precision, device)
    kind = torch.float16 if precision == "fp16" else torch.bfloat16
    return torch.autocast(device.type, dtype=kind, enabled=precision != "fp32")


@contextmanager
def accelerator(config: FitConfig, device: torch.device, out: Path | None, *, first_step: int = 0) -> Iterator[Any]:
    """An `accelerate.Accelerator` for a training on `device`, with the trackers that `config` asks for.

    Accelerate keeps its settings in process-wide state; it is put aside meanwhile and restored afterwards, so that trainings with
    different settings, and a caller's own accelerator, do not meet.

    Args:
        first_step: steps done already; the log drops what an interrupted run wrote after them.

    Raises:
        UsageError: a precision the device does not have, a tracker without a folder or that is not installed, several processes.
    """
    check_surroundings(config, device, out)
    from accelerate import Accelerator
    from accelerate.utils import GradientAccumulationPlugin

    with _own_state():
        made = Accelerator(
            cpu=device.type == "cpu",
            mixed_precision="no" if config.precision == "fp32" else config.precision,
            device_placement=False,
            gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
            log_with=config.log,
            project_dir=out,
        )
        if made.num_processes > 1:
            raise UsageError(f"training runs in one process, but accelerate started {made.num_processes}; start it without a launcher.")
        if made.device.type != device.type:
            raise UsageError(f"the backbone is on '{device.type}', but accelerate is set to '{made.device.type}'; unset its variables.")
        if config.log:
            made.init_trackers(TENSORBOARD_FOLDER, init_kwargs={"tensorboard": {"purge_step": first_step + 1 if first_step else None}})
        try:
            yield made
        finally:
            for tracker in made.trackers:
                tracker.finish()


def check_surroundings(config: FitConfig, device: torch.device, out: Path | None) -> None:
    """Raises UsageError if `config` cannot be had on this device, with this output folder and these packages."""
    check_precision(config.precision, device)
    if config.log is None:
        return
    if out is None:
        raise UsageError(f"log is '{config.log}', but there is no output folder to write it to; give one.")
    if importlib.util.find_spec("tensorboard") is None:
        raise UsageError("log is 'tensorboard', but tensorboard is not installed: pip install 'mmrl[tensorboard]'.")


@contextmanager
def _own_state() -> Iterator[None]:
    from accelerate.state import AcceleratorState, GradientState, PartialState

    shared = [kind._shared_state for kind in (AcceleratorState, PartialState, GradientState)]
    before = [dict(state) for state in shared]
    for state in shared:
        state.clear()
    try:
        yield
    finally:
        for state, old in zip(shared, before, strict=True):
            state.clear()
            state.update(old)
