"""Methods that adapt a frozen CLIP: one file each, and the registry.

Others add theirs without touching this package: `@register("name")` on a subclass of `Method`, in a file that `mmrl --plugin` or
MMRL_PLUGINS names, or in a module that an installed package names in the entry-point group `mmrl.methods` (docs/plugins.md).
"""

from mmrl import plugins
from mmrl.methods import (  # noqa: F401  (registers them)
    ape,
    clap,
    clip_adapter,
    clip_lora,
    cocoop,
    coop,
    gda,
    kgcoop,
    linear_probe,
    lpp,
    maple,
    metaprompt,
    mma,
    mmrl,
    mmrlpp,
    plot,
    plotpp,
    proda,
    prograd,
    promptsrc,
    provp,
    rpo,
    tcp,
    tip_adapter,
    zero_shot,
)
from mmrl.methods.base import Method
from mmrl.methods.exchange import Differentiate, FeatureSource, Gradients, Loss, MoreSteps, Task
from mmrl.methods.options import MethodOptions
from mmrl.methods.registry import build, get, make_options, register, registered
from mmrl.methods.two_tower import ImageFeatures, TwoTower, cosine_logits


def names() -> list[str]:
    """Names of all methods, also those registered from outside, in the order of `registered`."""
    return list(registered())


__all__ = [
    "Differentiate",
    "FeatureSource",
    "Gradients",
    "ImageFeatures",
    "Loss",
    "Method",
    "MethodOptions",
    "MoreSteps",
    "Task",
    "TwoTower",
    "build",
    "cosine_logits",
    "get",
    "make_options",
    "names",
    "register",
    "registered",
]

plugins.load_installed("mmrl.methods")
plugins.load()
