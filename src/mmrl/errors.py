"""Errors a user can cause, and how they are worded: the name, the value, what is allowed, the fix."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

LONGEST = 1000  # letters of a line of a message; a longer one quotes something that nobody reads to its end


class MmrlError(Exception):
    """Something failed; the message says what and what to do. The command line prints it alone and exits with 1."""

    exit_code = 1

    def __init__(self, message: object = "") -> None:
        super().__init__("\n".join(map(shortened, str(message).split("\n"))))


class UsageError(MmrlError, ValueError):
    """What the user asked for cannot be meant. The command line exits with 2."""

    exit_code = 2


class Notice(UserWarning):
    """Something was chosen or found that the user should know of; the command line prints it as a note."""


class DamagedError(MmrlError):
    """A file that this package wrote is cut short or altered. What can be made again is, by those who own it."""


def shortened(text: str, most: int = LONGEST) -> str:
    """`text` with its middle left out where it is longer than `most` letters."""
    if len(text) <= most:
        return text
    half = most // 2 - 20
    return f"{text[:half]} ... {len(text) - 2 * half:,} letters ... {text[-half:]}"


def first_line(error: BaseException) -> str:
    """The first line of what an error says, or its kind where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def unknown(kind: str, name: str, allowed: Iterable[str], *, cutoff: float = 0.5) -> UsageError:
    """The error for a `name` that is none of `allowed`, with the nearest one suggested; `cutoff` is how near, from 0 to 1."""
    names = sorted(allowed)
    near = difflib.get_close_matches(name, names, n=1, cutoff=cutoff)
    hint = f" Did you mean '{near[0]}'?" if near else ""
    return UsageError(f"unknown {kind} '{name}'.{hint} Known: {', '.join(names) or 'none'}.")
