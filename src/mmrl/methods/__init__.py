"""Methods that adapt a frozen CLIP: one file each, and the registry.

Others add theirs without touching this package: `@register("name")` on a subclass of `Method`, imported anywhere, or named in the
entry-point group `mmrl.methods` of an installed package.
"""

from importlib.metadata import entry_points

from mmrl.methods import mmrl, mmrlpp, zero_shot  # noqa: F401  (registers them)
from mmrl.methods.base import ImageFeatures, Loss, Method, MethodOptions, build, get, make_options, register, registered

for _plugin in entry_points(group="mmrl.methods"):
    _plugin.load()


def names() -> list[str]:
    """Names of all methods, also those registered from outside."""
    return list(registered())


__all__ = ["ImageFeatures", "Loss", "Method", "MethodOptions", "build", "get", "make_options", "names", "register", "registered"]
