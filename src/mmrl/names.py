"""Class names: which of them are one name, and how a prompt speaks them.

Two names are one where they differ only in case, spaces or underscores: the prompts, and so the class features, are the same. Where two
classes do have one name (ImageNet has "missile", "sunglasses" and others twice), the later ones carry a number, `crane (2)`, which tells
them apart in lists and results and is not spoken: both prompts are "a photo of a crane.".
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from mmrl.errors import UsageError

_NUMBERED = re.compile(r"(?P<name>.*\S)\s*\((?:[2-9]|[1-9]\d+)\)\s*", re.DOTALL)


def spoken(name: str, *, underscores: bool = False) -> str:
    """The name as a prompt has it: underscores are spaces, as in most of the CoOp family; a number in brackets, from (2) on, is left out.

    Args:
        underscores: whether they stay, for the methods whose authors keep them.
    """
    numbered = _NUMBERED.fullmatch(name)
    found = numbered["name"] if numbered else name
    return found if underscores else found.replace("_", " ")


def name_key(name: str) -> str:
    """Equal for names that are one, up to case, spaces and underscores."""
    return " ".join(name.replace("_", " ").split()).casefold()


def listed(names: Sequence[str], most: int = 10) -> str:
    """'cat, dog and 98 more', for messages."""
    more = len(names) - most
    return ", ".join(names) if more <= 0 else f"{', '.join(names[:most])} and {more} more"


def distinct_names(names: Iterable[str]) -> list[str]:
    """`names` with a number behind each that stands there already: crane, crane -> crane, crane (2)."""
    given = list(names)
    taken, seen, out = {name_key(name) for name in given}, set[str](), []
    free: dict[str, int] = {}  # by key: the first number not tried yet, as a list may have one name a hundred thousand times
    for name in given:
        key, unique = name_key(name), name
        while name_key(unique) in seen or (unique is not name and name_key(unique) in taken):
            number = free.get(key, 2)
            unique, free[key] = f"{name} ({number})", number + 1
        seen.add(name_key(unique))
        out.append(unique)
    return out


def check_names(names: Sequence[str], *, of: str = "the class list") -> tuple[str, ...]:
    """Class names, stripped.

    Raises:
        UsageError: there is none, one is no string, not UTF-8 or blank, or two are one name; `of` says whose they are.
    """
    other = [name for name in names if not isinstance(name, str)]
    if other:
        raise UsageError(f"class names must be strings, but one of {of} is {other[0]!r}.")
    for name in names:
        try:
            name.encode()
        except UnicodeEncodeError as error:  # bytes of a command line in another encoding: no file could hold it
            raise UsageError(f"a class name in {of} is not UTF-8: {name!a}. Write it in UTF-8.") from error
    stripped = tuple(name.strip() for name in names)
    if not stripped:
        raise UsageError(f"{of} is empty; give at least one class name.")
    first: dict[str, int] = {}
    for number, name in enumerate(stripped, 1):
        key = name_key(name)
        if not key:
            raise UsageError(f"class name number {number} of {len(stripped)} in {of} is blank; remove it or name it.")
        before = first.setdefault(key, number)
        if before != number:
            same = "" if stripped[before - 1] == name else f" (as '{stripped[before - 1]}' and as '{name}')"
            raise UsageError(
                f"class name '{name}' stands twice in {of}, as numbers {before} and {number}{same}; every class needs a name of its own "
                f"(case, spaces and underscores make no difference). For a second class of that name write '{name} (2)': "
                "the number is not spoken in the prompt."
            )
    return stripped
