"""open_clip, imported without what only some of its models need.

`import open_clip` runs all of timm, for models with an image tower of timm's; through torchvision all of torch's compiler, for one
operation of object detection, and all of torchvision's own models and data sets; and the client of the model hub. Together they take longer
than torch itself, and no vision transformer of CLIP's that is on the disk calls any.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import Any

DEFERRED = {  # modules, and the functions and classes in them that are only ever called by those who import them
    "torch._dynamo": (),
    "torch._dynamo.utils": ("is_compile_supported",),  # by torchvision.ops.roi_align
    "timm": ("create_model",),  # by open_clip.timm_model, as those below
    "timm.layers": ("AttentionPool2d", "Mlp", "RotAttentionPool2d", "to_2tuple"),
    "torchvision.datasets": (),
    "torchvision.models": (),
    "huggingface_hub": ("hf_hub_download",),  # by open_clip.pretrained
    "open_clip.push_to_hf_hub": ("push_pretrained_to_hf_hub", "push_to_hf_hub"),
}


def open_clip() -> Any:
    """The package open_clip. What `DEFERRED` names is imported when it is first called."""
    if "open_clip" not in sys.modules:
        with deferring(DEFERRED), suppress(ImportError):  # of a release that takes more from these modules while it is imported
            return import_module("open_clip")
    return import_module("open_clip")


@contextmanager
def deferring(deferred: Mapping[str, Sequence[str]]) -> Iterator[None]:
    """In the block, an import of one of these modules gives one that imports the real one when a function of it is called, or when it is
    asked for anything else. Modules that are imported already, or not installed, are left alone. Afterwards imports are as always.

    Args:
        deferred: names of modules, and in each those that may be called before it is imported; parents before what is in them.
    """
    usual = {_package(name) for name in deferred if name in sys.modules or find_spec(_package(name)) is None}
    new = {name: _Deferred(name, called) for name, called in deferred.items() if _package(name) not in usual}
    sys.modules.update(new)
    try:
        yield
    finally:
        _forget(new)


def _package(name: str) -> str:
    return name.partition(".")[0]


def _forget(modules: Mapping[str, ModuleType]) -> None:
    for name, module in modules.items():
        if sys.modules.get(name) is module:
            del sys.modules[name]


class _Deferred(ModuleType):
    """Stands in for a module until it is needed."""

    def __init__(self, name: str, called: Sequence[str]) -> None:
        super().__init__(name)
        for each in called:
            setattr(self, each, _caller(self, each))

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # asked for by the import system itself
            raise AttributeError(name)
        return getattr(self._real(), name)

    def _real(self) -> ModuleType:
        here = _package(self.__name__)
        _forget({name: module for name, module in sys.modules.items() if isinstance(module, _Deferred) and _package(name) == here})
        parent, _, name = self.__name__.rpartition(".")
        namesake = callable(vars(sys.modules[parent]).get(name)) if parent in sys.modules else False  # a function that has the same name
        module = import_module(self.__name__)
        if namesake:  # which the module now hides
            setattr(sys.modules[parent], name, getattr(module, name))
        return module


def _caller(module: _Deferred, name: str) -> Callable[..., Any]:
    def call(*args: Any, **options: Any) -> Any:
        return getattr(module._real(), name)(*args, **options)

    call.__name__ = name
    return call
