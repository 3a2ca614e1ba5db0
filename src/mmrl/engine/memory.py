"""How much memory this process takes, as the kernel counts it, and how much it can still get."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

import torch

GIB = 2**30
SHARE = 0.5  # of what is free, for the prompts' activations: images, gradients and other programs need the rest
KEPT = 0.25  # of what is free, for what can be computed or read again
ROWS = 0.2  # of what is free, for what trainings that take turns hold before their first step; gradients and an optimiser come to it
LEAST = GIB // 4  # bytes that these may take in any case: less would only be slow
GROUP = Path("/sys/fs/cgroup")
LIMITS = (("memory.max", "memory.current"), ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"))  # version 2, version 1


def resident() -> int:
    """Bytes in main memory now; where the kernel does not say (not Linux), the most there ever were."""
    return _field("/proc/self/status", "VmRSS") or peak_resident()


def peak_resident() -> int:
    """The most bytes in main memory since `forget_peak`, or where that does nothing, since the process began."""
    marked = _field("/proc/self/status", "VmHWM")
    if marked is not None:
        return marked
    import resource  # POSIX alone has it

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def forget_peak() -> None:
    """Set the peak back to what is resident now, where the kernel can do that (Linux)."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def free_bytes(device: torch.device | str = "cpu") -> int | None:
    """Bytes that this process can still get: on a GPU of its memory, else of the machine's, within the limit of the control group (a
    container's) that it is in. None where the system does not say."""
    device = torch.device(device)
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # torch holds it
        return torch.cuda.mem_get_info(device)[0] + unused
    found = [_field("/proc/meminfo", "MemAvailable"), *(_within(*names) for names in LIMITS)]
    return min((size for size in found if size is not None), default=None)


def text_memory(device: torch.device | str = "cpu", processes: int = 1) -> float | None:
    """GiB that the class prompts' activations may take in a training step, where `processes` train at the same time. None: no limit."""
    free = free_bytes(device)
    return None if free is None else max(1.0, SHARE * free / processes / GIB)


def room(gib: float, processes: int = 1) -> int:
    """Bytes of main memory for what can be had again: at most `gib`, and of what is free no more than a part, shared by `processes`."""
    free = free_bytes()
    return int(gib * GIB) if free is None else min(int(gib * GIB), max(LEAST, int(KEPT * free / processes)))


class RowRoom:
    """Whether one more training fits beside those that take turns in this process, by what they took since this was made.

    Args:
        device: whose memory they are in.
        processes: how many share it.
    """

    def __init__(self, device: torch.device, processes: int = 1) -> None:
        free = free_bytes(device)
        self._device, self._before = device, _taken(device)
        self._most = None if free is None else max(LEAST, ROWS * free / processes)

    def for_one_more(self, rows: int) -> bool:
        """Beside `rows`, at least 1, each of which has had its first turn."""
        taken = max(0, _taken(self._device) - self._before)
        return self._most is None or taken * (rows + 1) / rows <= self._most


def _taken(device: torch.device) -> int:
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else resident()


def _within(limit: str, used: str) -> int | None:
    with contextlib.suppress(OSError, ValueError):  # 'max' where there is none
        return max(0, int((GROUP / limit).read_text()) - int((GROUP / used).read_text()))
    return None


def _field(file: str, name: str) -> int | None:
    """Bytes of a field of a file in /proc, or None where there is none."""
    try:
        lines = Path(file).read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:")), None)
