"""Torch's random numbers: those of the CPU and of a device, seeded, taken and set."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed torch for a while; the generators are set back as they were."""
    before = random_state(device)
    torch.manual_seed(seed)
    try:
        yield
    finally:
        set_random_state(before, device)


def random_state(device: torch.device) -> dict[str, Any]:
    """Where the generators stand, as plain tensors."""
    return {"rng": torch.get_rng_state(), "rng_cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None}


def set_random_state(state: Mapping[str, Any], device: torch.device) -> None:
    """Set the generators to `state`, which may have been taken where there was no such device, and have more in it."""
    torch.set_rng_state(state["rng"])
    if device.type == "cuda" and state["rng_cuda"] is not None:
        torch.cuda.set_rng_state(state["rng_cuda"], device)
