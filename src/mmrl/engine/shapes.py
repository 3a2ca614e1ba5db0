"""The shapes of a method's tensors, without memory for them: a damaged file may ask for any."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
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
        if args and not options and isinstance(args[0], Tensor) and args[0].is_meta and args[0].is_floating_point():
            if func in _FILLED:
                return args[0]
            shape = _SHAPES[func](*args) if func in _SHAPES else None
            if shape is not None:
                return torch.empty(shape, dtype=args[0].dtype, device=args[0].device)
        if func is Tensor.argmax and args[0].is_meta:  # of tokens, which an encoder is about to read
            raise ValueError("there are no values")
        return func(*args, **options)


def _with_number(values: Tensor, other: Any) -> torch.Size | None:
    return values.shape if isinstance(other, (int, float)) else None


def _repeated(values: Tensor, *times: Any) -> Sequence[int] | None:
    if not all(isinstance(each, int) for each in times) or len(times) < values.dim():
        return None
    shape = [1] * (len(times) - values.dim()) + list(values.shape)
    return [size * each for size, each in zip(shape, times, strict=True)]


_FILLED = (Tensor.normal_, Tensor.uniform_)
_SHAPES: dict[Any, Callable[..., Sequence[int] | None]] = {
    **dict.fromkeys((Tensor.add, Tensor.div, Tensor.mul, Tensor.sub, Tensor.__rsub__), _with_number),
    Tensor.repeat: _repeated,
}
