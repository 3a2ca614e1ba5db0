"""The methods by name, and making one."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import torch
from pydantic import ValidationError

from mmrl.clip import Clip
from mmrl.errors import UsageError, unknown
from mmrl.methods.base import Method
from mmrl.methods.exchange import Task
from mmrl.methods.known import KNOWN
from mmrl.methods.options import MethodOptions, option_problem
from mmrl.plugins import VARIABLE, revision_of

_REGISTRY: dict[str, type[Method]] = KNOWN


def register(name: str) -> Any:
    """Class decorator that makes a method known under `name`.

    Raises:
        ValueError: the name is taken by another class.
    """

    def add(cls: type[Method]) -> type[Method]:
        if name in _REGISTRY and _REGISTRY[name] is not cls:
            raise ValueError(f"method '{name}' is registered already, by {_REGISTRY[name].__module__}.{_REGISTRY[name].__qualname__}")
        cls.name = name
        cls.title = cls.__dict__.get("title") or name
        cls.revision = cls.__dict__.get("revision") or revision_of(cls.__module__)
        _REGISTRY[name] = cls
        return cls

    return add


def registered() -> dict[str, type[Method]]:
    """All methods: without training, in closed form, by steps; of these each by the year of its paper, and without one last."""
    kinds = ("nothing", "closed form", "steps")
    return dict(sorted(_REGISTRY.items(), key=lambda each: (kinds.index(each[1].trained_by()), _year(each[1]))))


def _year(cls: type[Method]) -> int:
    found = re.search(r"\b(19|20)\d\d\b", cls.source)
    return int(found[0]) if found else 9999


def get(name: str) -> type[Method]:
    """The method class called `name`. Raises UsageError with the nearest name if there is none."""
    if name not in _REGISTRY:
        error = unknown("method", name, _REGISTRY)
        raise error if "Did you mean" in str(error) else UsageError(f"{error} One from outside needs --plugin FILE.py, or {VARIABLE}.")
    return _REGISTRY[name]


def make_options(cls: type[Method], options: Mapping[str, Any] | MethodOptions | None) -> MethodOptions:
    """Validated options of `cls`; all problems are reported together.

    Raises:
        UsageError: an unknown option (the nearest is named) or a value out of range.
    """
    if isinstance(options, cls.Options):
        return options
    given = options.model_dump() if isinstance(options, MethodOptions) else dict(options or {})
    problems = [
        str(unknown(f"option of {cls.name}", key, cls.Options.model_fields)) for key in given if key not in cls.Options.model_fields
    ]
    try:
        made = cls.Options(**{k: v for k, v in given.items() if k in cls.Options.model_fields})
    except ValidationError as error:
        problems += [option_problem(p) for p in error.errors()]
    if problems:
        raise UsageError("\n".join(problems))
    return made


def build(
    name: str,
    clip: Clip,
    options: Mapping[str, Any] | MethodOptions | None = None,
    *,
    seed: int | None = None,
    task: Task | None = None,
) -> Method:
    """The method called `name` on `clip`, freshly initialised.

    Args:
        seed: of the initial values; None takes them from torch's generator as it stands.
        task: what it is trained for; without one, `setup` is left to the caller.
    """
    cls = get(name)
    made = make_options(cls, options)
    with nullcontext() if seed is None else torch.random.fork_rng(devices=[]):
        if seed is not None:
            torch.manual_seed(seed)
        method = cls(clip, made)
        if task is not None:
            method.setup(task)
        return method.to(clip.device)
