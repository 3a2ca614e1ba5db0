"""Errors a user can cause, and how they are worded: the name, the value, what is allowed, the fix."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class MmrlError(Exception):
    """Something failed; the message says what and what to do. The command line prints it alone and exits with 1."""

    exit_code = 1


class UsageError(MmrlError, ValueError):
    """What the user asked for cannot be meant. The command line exits with 2."""

    exit_code = 2


class DamagedError(MmrlError):
    """A file that this package wrote is cut short or altered. What can be made again is, by those who own it."""


def unknown(kind: str, name: str, allowed: Iterable[str]) -> UsageError:
    """The error for a `name` that is none of `allowed`, with the nearest one suggested."""
    names = sorted(allowed)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f" Did you mean '{near[0]}'?" if near else ""
    return UsageError(f"unknown {kind} '{name}'.{hint} Known: {', '.join(names) or 'none'}.")
