"""The shapes of a method's tensors, without memory for them: a damaged file may ask for any."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from mmrl.clip import Clip
from mmrl.errors import UsageError
from mmrl.methods import Method, MethodOptions, Task


def shapes_of(cls: type[Method], clip: Clip, options: MethodOptions, task: Task | None) -> dict[str, tuple[int, ...]] | None:
    """Shapes, by name, of all that a method with these options saves. None if it calculates with its initial values."""
    try:
        with torch.device("meta"), _Unfilled():
            method = cls(clip, options)
            if task is not None:
                method.setup(task)
            return {name: tuple(value.shape) for name, value in method.state_dict().items()}
    except UsageError:
        raise
    except Exception:  # what a method of any kind may raise where there are no values
        return None


class _Unfilled(TorchFunctionMode):
    """What initial values are made with, without the values. On the meta device torch has most of it in Python, behind its compiler,
    whose import takes longer than all the rest of loading an adapter. What is not here goes that way, with equal shapes."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        options = dict(kwargs or {})
        if func in (torch.rand, torch.randn):
            options.pop("generator", None)
            return torch.empty(*args, **options)
        if args and not options and isinstance(args[0], Tensor) and args[0].is_floating_point() and _any_meta(args):
            if func in _FILLED:
                return args[0]
            shape = _SHAPES[func](*args) if func in _SHAPES else None
            if shape is not None:
                return torch.empty(shape, dtype=args[0].dtype, device="meta")
        if func in _KEPT and _any_meta(args):
            return args[0]
        if func is torch.embedding:  # of the frozen model's words, whose values are there: what is made of them shall take no memory
            weight, tokens = args[:2]
            return torch.empty((*tokens.shape, weight.shape[-1]), dtype=weight.dtype, device="meta")
        return func(*args, **options)


def _any_meta(args: Sequence[Any]) -> bool:
    return any(isinstance(each, Tensor) and each.is_meta for each in args[:2])


def _together(values: Tensor, other: Any = 0) -> Sequence[int]:
    return values.shape if isinstance(other, (int, float)) else np.broadcast_shapes(values.shape, other.shape)


def _summed(values: Tensor, *dims: Any) -> Sequence[int] | None:
    return values.shape[:-1] if dims == (-1,) else None


def _product(values: Tensor, other: Tensor) -> Sequence[int] | None:
    return (*values.shape[:-1], other.shape[1]) if other.dim() == 2 and values.shape[-1] == len(other) else None


def _repeated(values: Tensor, *times: Any) -> Sequence[int] | None:
    if not all(isinstance(each, int) for each in times) or len(times) < values.dim():
        return None
    shape = [1] * (len(times) - values.dim()) + list(values.shape)
    return [size * each for size, each in zip(shape, times, strict=True)]


_FILLED = (Tensor.normal_, Tensor.uniform_)
_KEPT = (Tensor.cpu, F.normalize, torch.zeros_like)  # whatever is asked of them besides
_SHAPES: dict[Any, Callable[..., Sequence[int] | None]] = {
    **dict.fromkeys((Tensor.add, Tensor.div, Tensor.mul, Tensor.sub, Tensor.__rsub__, Tensor.neg), _together),
    **dict.fromkeys((Tensor.matmul, Tensor.__matmul__), _product),
    Tensor.sum: _summed,
    Tensor.repeat: _repeated,
}
