"""Class names."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from mmrl.errors import UsageError


def check_names(names: Sequence[str]) -> tuple[str, ...]:
    """Class names, stripped.

    Raises:
        UsageError: there is none, one is no string or blank, or one stands twice (underscores count as spaces).
    """
    other = [name for name in names if not isinstance(name, str)]
    if other:
        raise UsageError(f"class names must be strings, but one is {other[0]!r}.")
    stripped = tuple(name.strip() for name in names)
    if not stripped:
        raise UsageError("the class list is empty; give at least one class name.")
    blank = [i for i, name in enumerate(stripped, 1) if not name.replace("_", "")]
    if blank:
        raise UsageError(f"class name number {blank[0]} of {len(stripped)} is blank; remove it or name it.")
    counts = Counter(name.replace("_", " ") for name in stripped)
    twice = [name for name, count in counts.items() if count > 1]
    if twice:
        raise UsageError(f"class name '{twice[0]}' stands {counts[twice[0]]} times in the class list; every class needs a name of its own.")
    return stripped
