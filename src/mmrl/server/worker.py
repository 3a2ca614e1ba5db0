"""One of several processes of a server: uvicorn starts it, by the name of `make`, and starts another where it dies."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from uvicorn.config import STARTUP_FAILURE

from mmrl.errors import MmrlError
from mmrl.files import lock
from mmrl.server.settings import Settings

SETTINGS, DEVICES, FOLDER = "MMRL_SERVER_SETTINGS", "MMRL_SERVER_DEVICES", "MMRL_SERVER_FOLDER"
FAILED, STARTED = "failed.json", "started"
BEFORE_AGAIN = 5.0  # seconds that a process which cannot load its adapters waits before it ends, and another tries


def make() -> Any:
    """The application of this process.

    A process that fails before any other was ready tells the one that started it why, which ends all; a later one leaves it to the next.
    """
    folder = Path(os.environ[FOLDER])
    threading.Thread(target=_follow_parent, daemon=True).start()
    try:
        devices = json.loads(os.environ[DEVICES])
        settings = replace(Settings.from_json(os.environ[SETTINGS]), device=devices[_slot(folder, len(devices))])
        from mmrl.server.run import prepared

        return prepared(settings)
    except MmrlError as error:
        if (folder / STARTED).exists():
            print(f"error: {error}", file=sys.stderr)
            time.sleep(BEFORE_AGAIN)
            sys.exit(1)
        (folder / FAILED).write_text(json.dumps({"message": str(error), "code": error.exit_code}))
        sys.exit(STARTUP_FAILURE)


def _slot(folder: Path, count: int) -> int:
    """A number from 0 to count - 1 that no other process has: its lock is this one's as long as it lives."""
    for number in range(count):
        try:
            lock(folder / f"{number}.lock")
        except BlockingIOError:
            continue
        return number
    raise MmrlError(f"all {count} devices have a process; this one is one too many.")


def _follow_parent() -> None:
    """End when whoever restarts this process has ended, however it did."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)
