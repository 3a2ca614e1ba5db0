"""A recording of work on a processor, which does what a CUDA graph does: the same operations again, on the same memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mmrl.engine.replay import Direct

READS = ("_local_scalar_dense", "nonzero", "equal", "masked_select", "is_nonzero")  # a GPU would be waited for
MAKES = ("lift_fresh",)  # a tensor of Python's numbers, which would have to be copied to a GPU


class Static(Direct):
    """No recording, with the optimiser that a recording needs."""

    static = True


class Tape:
    """Recordings of operations. What is decided in Python while one is recorded is decided for good."""

    static = True

    def __init__(self) -> None:
        self.recordings: list[Recording] = []

    def aside(self) -> AbstractContextManager[None]:
        return nullcontext()

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        random, recording = torch.get_rng_state(), Recording()
        try:
            with recording:
                work()
        finally:
            recording.undo()
            torch.set_rng_state(random)
        self.recordings.append(recording)
        return recording.play


class Recording(TorchDispatchMode):
    """Operations, with the memory that they read and wrote."""

    def __init__(self) -> None:
        super().__init__()
        self.done: list[tuple[Any, Any, dict[str, Any], Any]] = []
        self.plays = 0
        self._made = set[int]()
        self._before: dict[int, tuple[torch.UntypedStorage, torch.UntypedStorage]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name in (*READS, *MAKES):
            raise RuntimeError(f"{name} cannot be recorded")
        kwargs = kwargs or {}
        for tensor in written(func, args, kwargs):
            storage = tensor.untyped_storage()
            if storage._cdata not in self._made and storage._cdata not in self._before:
                self._before[storage._cdata] = storage, storage.clone()
        out = func(*args, **kwargs)
        given = {tensor.untyped_storage()._cdata for tensor in tensors((args, kwargs))}
        self._made |= {tensor.untyped_storage()._cdata for tensor in tensors(out)} - given
        self.done.append((func, args, kwargs, out))
        return out

    def undo(self) -> None:
        for storage, before in self._before.values():
            storage.copy_(before)

    @torch.no_grad()
    def play(self) -> None:
        self.plays += 1
        for func, args, kwargs, out in self.done:
            for place, value in zip(tensors(out), tensors(func(*args, **kwargs)), strict=True):
                if place.data_ptr() != value.data_ptr():
                    place.copy_(value)


def tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def written(func: Any, args: Any, kwargs: dict[str, Any]) -> Iterator[Tensor]:
    """The arguments that `func` writes to."""
    for place, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            yield from tensors(args[place] if place < len(args) else kwargs.get(argument.name))
