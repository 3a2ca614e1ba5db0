"""Which methods there are, for those that know no registry: messages name the methods that can do what another one cannot."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from mmrl.errors import UsageError
from mmrl.names import listed

KNOWN: dict[str, type[Any]] = {}  # classes of methods, by name; `registry.register` fills it


def names_of(suit: Callable[[type[Any]], bool]) -> list[str]:
    """Names of the methods that `suit`."""
    return sorted(name for name, cls in KNOWN.items() if suit(cls))


def new_class(method: str, known: Sequence[str], new: str) -> UsageError:
    """The error for a class `new` that a method with a closed vocabulary was not trained on."""
    able = names_of(lambda cls: cls.open_vocabulary(cls.Options()))
    return UsageError(
        f"method '{method}' knows only the {len(known)} classes it was trained on, and '{new}' is not one of them. It knows: "
        f"{listed(known) or 'none'}. Choose among those, or train a method with an open vocabulary: {', '.join(able)}."
    )
