"""In which precision a training computes, and whether what it asks for can be had here."""

from __future__ import annotations

import importlib.util
import platform
from pathlib import Path

import torch

from mmrl.engine.config import FitConfig
from mmrl.errors import UsageError
from mmrl.methods import Method


def chosen_precision(device: torch.device) -> tuple[str, str]:
    """What 'auto' is on `device`: 'bf16' where it computes in that type natively, else 'fp32'; and why, in words."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "this processor" if device.type == "cpu" else device.type
    native = _cuda_bf16() if device.type == "cuda" else _cpu_bf16() if device.type == "cpu" else False
    return ("bf16", f"{name} computes in bf16 natively") if native else ("fp32", f"{name} does not compute in bf16 natively")


def _cuda_bf16() -> bool:
    return torch.cuda.is_bf16_supported(including_emulation=False)


def _cpu_bf16() -> bool:
    """On x86 avx512_bf16 or AMX; on arm its own bf16. Processors without them compute in bf16 more slowly than in float32."""
    if platform.machine().lower() in ("aarch64", "arm64"):
        return bool(torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported())
    asked = (getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
    return any(supported() for supported in asked if supported is not None)


def resolved_precision(config: FitConfig, device: torch.device) -> FitConfig:
    """`config` with what 'auto' is on `device` in its place."""
    return config.model_copy(update={"precision": chosen_precision(device)[0]}) if config.precision == "auto" else config


def check_precision(precision: str, device: torch.device) -> None:
    """Raises UsageError if `device` cannot train in `precision`; the message says what works there."""
    if precision == "fp16" and device.type != "cuda":
        raise UsageError(f"precision is 'fp16', which needs a CUDA device; on '{device.type}' use 'bf16' or 'fp32'.")
    if precision == "bf16" and device.type == "cuda" and not torch.cuda.is_bf16_supported():
        raise UsageError(f"precision is 'bf16', which {torch.cuda.get_device_name(device)} does not support; use 'fp16' or 'fp32'.")


def check_text_precision(config: FitConfig, method: Method) -> None:
    """Raises UsageError if `config` asks for class prompts in half precision, and `method` keeps none."""
    if config.text_precision != "fp32" and not (method.edits_layers and "L" in method.modality):
        raise UsageError(
            f"text_precision is '{config.text_precision}', which has no effect on method '{method.name}': no step of it reads class "
            "prompts. Leave it out."
        )


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
