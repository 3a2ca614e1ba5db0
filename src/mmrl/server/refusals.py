"""Answers to what cannot be served: one line of JSON, which says what is wrong and nothing of this machine."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from starlette.responses import Response

from mmrl.errors import shortened

LONGEST_MESSAGE = 600  # letters
_ADDRESS = re.compile(r"<[^<>]* at 0x[0-9a-fA-F]+>")  # how Python shows an object that has no name


class Refused(Exception):
    """The request ends here, with this status and message."""

    def __init__(self, status: int, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.headers = status, dict(headers or {})


def one_line(text: object) -> str:
    """`text` on one line, and not longer than a message should be."""
    line = " ".join(_ADDRESS.sub("the data", str(text)).split())
    return shortened(line, LONGEST_MESSAGE)


def plain_name(backbone: str) -> str:
    """The name of a backbone, without the folder where it is called by its path."""
    place = Path(backbone.removeprefix("local-dir:"))
    return place.name if str(place) != backbone or place.exists() else backbone


class JsonAnswer(Response):
    """JSON that no browser takes for a page: <, > and & are escaped, everything else is ASCII."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        text = json.dumps(content, allow_nan=False, separators=(",", ":"))
        return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026").encode("ascii")


def refusal(status: int, message: object, headers: Mapping[str, str] | None = None) -> JsonAnswer:
    """`{"error": message}` with a status."""
    return JsonAnswer({"error": one_line(message)}, status, dict(headers or {}))
