"""Every method written plainly: one module each, named as the method's own file, whose `plain(method, names, template)` gives the form."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from typing import Any

from mmrl import methods


def plain_of(method: str) -> Callable[..., Any] | None:
    """`plain` of a registered method; None where there is none."""
    name = f"{__name__}.{methods.get(method).__module__.rpartition('.')[2]}"
    return getattr(importlib.import_module(name), "plain", None) if importlib.util.find_spec(name) else None
