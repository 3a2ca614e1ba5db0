"""In which precision a training computes, and whether what it asks for can be had here."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from mmrl.engine.config import FitConfig
from mmrl.errors import UsageError


def check_precision(precision: str, device: torch.device) -> None:
    """Raises UsageError if `device` cannot train in `precision`; the message says what works there."""
    if precision == "fp16" and device.type != "cuda":
        raise UsageError(f"precision is 'fp16', which needs a CUDA device; on '{device.type}' use 'bf16' or 'fp32'.")
    if precision == "bf16" and device.type == "cuda" and not torch.cuda.is_bf16_supported():
        raise UsageError(f"precision is 'bf16', which {torch.cuda.get_device_name(device)} does not support; use 'fp16' or 'fp32'.")


def compute_type(precision: str) -> torch.dtype:
    """The type of products in `precision`."""
    return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]


def autocast(precision: str, device: torch.device) -> torch.autocast:
    """The frozen CLIP's arithmetic in `precision`; trained tensors stay float32."""
    enabled = precision != "fp32"
    return torch.autocast(device.type, dtype=compute_type(precision) if enabled else None, enabled=enabled)


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
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed torch for a while; the generators are set back as they were."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield
