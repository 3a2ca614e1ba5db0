"""The bearer token: where it is read from, and how it is compared."""

from __future__ import annotations

import hmac
import os

from mmrl.errors import UsageError
from mmrl.files import read_regular, user_path

VARIABLE = "MMRL_TOKEN"
OPEN = frozenset({"/healthz", "/readyz", "/v2/health/live", "/v2/health/ready"})  # asked by whoever watches over processes
SHORTEST, LONGEST = 8, 4096  # letters


def read_token(file: str | None) -> bytes | None:
    """The token that requests must bear: the content of `file`, or of the environment variable MMRL_TOKEN; None where neither is set.

    Raises:
        UsageError: it is blank, too short, or no text of visible ASCII letters.
    """
    if file is not None:
        where, content = f"the file {file}", read_regular(user_path(file), what="token file", most=LONGEST)
    elif VARIABLE in os.environ:
        where, content = f"the variable {VARIABLE}", os.environ[VARIABLE].encode("utf-8", "surrogateescape")
    else:
        return None
    token = content.strip()
    if not SHORTEST <= len(token) <= LONGEST or not all(0x21 <= byte <= 0x7E for byte in token):
        raise UsageError(f"the token in {where} must have {SHORTEST} to {LONGEST:,} visible ASCII letters and no blank.")
    return token


def bears(header: bytes | None, token: bytes) -> bool:
    """Whether an Authorization header bears the token; how long that takes tells nothing of where they differ."""
    kind, _, given = (header or b"").partition(b" ")
    return hmac.compare_digest(given.strip(), token) and kind.lower() == b"bearer"
