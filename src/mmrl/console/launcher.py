"""The command started several times, by torchrun or `accelerate launch`: one process speaks for all."""

from __future__ import annotations

import os
import sys
import time
from typing import NoReturn

GRACE = 5.0  # seconds; a launcher ends all processes within tenths of a second of the first that failed


def process() -> int:
    """Number of this process, from 0, the main one."""
    return int(os.environ.get("RANK", "0"))


def fail(message: str, code: int) -> NoReturn:
    """Print to stderr and end. What fails in the main process fails in the others too; its launcher ends those before they speak."""
    if "RANK" not in os.environ:
        print(message, file=sys.stderr)
        sys.exit(code)
    if process():
        time.sleep(GRACE)
        message = f"process {process()}: {message}"
    sys.stdout.flush()
    print(message, file=sys.stderr, flush=True)
    os._exit(code)  # at once: with torch loaded, an orderly end can take longer than the others wait
