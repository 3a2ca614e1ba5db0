"""Device, precision and trackers of one training, through accelerate."""

from __future__ import annotations

import importlib.util
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from mmrl.engine.config import FitConfig
from mmrl.engine.parallel import Peers
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
def accelerator(config: FitConfig, device: torch.device, out: Path | None) -> Iterator[Any]:
    """An `accelerate.Accelerator` for a training on `device`; `start_log` starts the trackers that `config` asks for.

    Accelerate keeps its settings in process-wide state; it is put aside meanwhile and restored afterwards, so that trainings with
    different settings, and a caller's own accelerator, do not meet. Under a launcher it makes torch's process group, if there is none;
    that stays for the next training, as a process can join it only once.

    Raises:
        UsageError: a precision the device does not have, a tracker without a folder or that is not installed, a device that is not this
            process's.
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
        try:
            yield made
        finally:
            for tracker in made.trackers:
                tracker.finish()


def start_log(accelerator: Any, *, first_step: int) -> None:
    """Start the trackers; the log drops what an interrupted run wrote after its first `first_step` steps."""
    if accelerator.log_with:
        purge = first_step + 1 if first_step else None
        accelerator.init_trackers(TENSORBOARD_FOLDER, init_kwargs={"tensorboard": {"purge_step": purge}})


def check_device(accelerator: Any, device: torch.device, peers: Peers) -> None:
    """Raises UsageError, in all processes, if one has its backbone on another device than accelerate, or two have the same GPU."""
    peers.together(lambda: _check_own(accelerator, device))
    if peers.count > 1 and device.type == "cuda":
        gpus = set(peers.gather((platform.node(), str(torch.cuda.get_device_properties(device).uuid))))
        if len(gpus) < peers.count:
            raise UsageError(f"{peers.count} processes were started for {len(gpus)} GPU(s); start one for each.")


def _check_own(accelerator: Any, device: torch.device) -> None:
    right = accelerator.device
    if right.type != device.type:
        raise UsageError(f"the backbone is on '{device.type}', but accelerate is set to '{right.type}'; unset its variables.")
    if accelerator.num_processes > 1 and device.type == "cuda" and right != device:
        raise UsageError(
            f"the backbone of process {accelerator.process_index} is on '{device}', but its GPU is '{right}'; give 'cuda' as the device."
        )


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
