"""The log: one JSON object a line, on stderr."""

from __future__ import annotations

import json
import logging
import sys
import time
from typing import Any

LOGGER = logging.getLogger("mmrl.server")


class JsonLines(logging.Formatter):
    """A record as JSON; fields given as `extra={"fields": {...}}` stand beside the message."""

    def format(self, record: logging.LogRecord) -> str:
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line: dict[str, Any] = {"time": f"{stamp}.{int(record.msecs):03d}Z", "level": record.levelname.lower()}
        line |= {"message": record.getMessage(), "process": record.process, **getattr(record, "fields", {})}
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def set_up(level: int = logging.INFO) -> None:
    """Send what this process logs, uvicorn's lines too, to stderr as JSON."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    LOGGER.setLevel(level)


def say(level: int, message: str, *, trace: bool = False, **fields: Any) -> None:
    """One line; `trace` adds the traceback of the exception that is being handled."""
    LOGGER.log(level, message, extra={"fields": fields}, exc_info=trace)
