"""Where and with what a run is computed, and its loss curve, for its record (`mmrl.reports.records`)."""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Sequence
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from mmrl.data.parallel import cores
from mmrl.engine.guard import Row
from mmrl.reports.records import Environment
from mmrl.version import __version__

PACKAGES = ("torch", "torchvision", "open_clip_torch", "safetensors", "numpy", "scikit-learn", "pillow")
HISTORY_ROWS = 60  # a results folder holds hundreds of runs
_PACKAGE = Path(__file__).resolve().parents[1]


def environment(device: torch.device, started: datetime) -> Environment:
    """Where and with what something is computed."""
    commit, dirty = source_state()
    return Environment(versions=versions(), commit=commit, dirty=dirty, hardware=hardware(device), started=started)


def versions() -> dict[str, str]:
    """Versions of Python, mmrl and the packages its numbers depend on."""
    out = {"python": platform.python_version(), "mmrl": __version__}
    for package in PACKAGES:
        try:
            out[package] = version(package)
        except PackageNotFoundError:  # vendored or renamed
            continue
    return out


def source_state() -> tuple[str | None, bool | None]:
    """Commit of the checkout that the package runs from, and whether the package's files differ from it; None twice if it is installed."""
    if _git("ls-files", "--error-unmatch", "version.py") is None:  # no git, no checkout, or someone else's that a venv lies in
        return None, None
    commit, changes = _git("rev-parse", "HEAD"), _git("status", "--porcelain", "--", ".")
    return (None, None) if commit is None else (commit, None if changes is None else bool(changes))


def _git(*arguments: str) -> str | None:
    """What git prints in the package's folder, or None if it fails."""
    try:
        done = subprocess.run(["git", "-C", str(_PACKAGE), *arguments], capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def hardware(device: torch.device) -> dict[str, Any]:
    """What the run ran on."""
    gpu = torch.cuda.get_device_properties(device) if device.type == "cuda" else None
    return {
        "device": device.type,
        "cpu": _cpu_model(),
        "cores": cores(),
        "threads": torch.get_num_threads(),
        "gpu": gpu.name if gpu else None,
        "gpu_memory_gib": round(gpu.total_memory / 2**30, 1) if gpu else None,
        "platform": platform.platform(terse=True),
    }


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()


def thin(history: Sequence[Row], rows: int = HISTORY_ROWS) -> tuple[Row, ...]:
    """At most `rows` rows: each stands for a few steps with their mean values, and the last one's step, epoch and rate."""
    size = max(1, -(-len(history) // rows))
    out = []
    for first in range(0, len(history), size):
        window = history[first : first + size]
        means = {name: sum(row[name] for row in window) / len(window) for name in window[-1]}
        row = {**means, **{name: window[-1][name] for name in ("step", "epoch", "lr")}}
        out.append({name: float(f"{value:.5g}") for name, value in row.items()})
    return tuple(out)
