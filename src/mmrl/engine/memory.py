"""How much memory this process takes, as the kernel counts it."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path


def resident() -> int:
    """Bytes in main memory now; where the kernel does not say (not Linux), the most there ever were."""
    return _status("VmRSS") or peak_resident()


def peak_resident() -> int:
    """The most bytes in main memory since `forget_peak`, or where that does nothing, since the process began."""
    marked = _status("VmHWM")
    if marked is not None:
        return marked
    import resource  # POSIX alone has it

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def forget_peak() -> None:
    """Set the peak back to what is resident now, where the kernel can do that (Linux)."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _status(field: str) -> int | None:
    """Bytes of a field of /proc/self/status, or None where there is none."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:")), None)
