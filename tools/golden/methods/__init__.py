"""What the replay needs to know of single methods: one module each, named as the method's own file.

A module may have, and most methods need none of it:

- `RENAMED`: our option -> the entry of a case's `hyper`, where the names differ;
- `options(hyper, tensors)`: options that follow from something else in the case;
- `REPLAY`: a `Replay` that compares more than every method has;
- `FEATURE_CASES`: which cases on cached features are the method's, by what their names begin with, and `features(folder, name, case,
  dtype)`, which gives their errors by group.
"""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
from functools import cache
from types import ModuleType

from mmrl import methods


def about(method: str) -> ModuleType | None:
    """The module of a registered method, if it has one."""
    name = f"{__name__}.{methods.get(method).__module__.rpartition('.')[2]}"
    return importlib.import_module(name) if importlib.util.find_spec(name) else None


@cache
def of_features() -> dict[str, tuple[str, ModuleType]]:
    """What a case's name begins with -> the method, and the module that replays it."""
    modules = {info.name: importlib.import_module(f"{__name__}.{info.name}") for info in pkgutil.iter_modules(__path__)}
    cases = {name: getattr(module, "FEATURE_CASES", {}) for name, module in modules.items()}
    return {case: (method, modules[name]) for name, found in cases.items() for case, method in found.items()}
