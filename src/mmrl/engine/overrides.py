"""Which of the options that a user gives concern which method."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from mmrl import methods
from mmrl.engine.config import FitConfig
from mmrl.errors import Notice, UsageError
from mmrl.methods import Method
from mmrl.names import listed

NAMED = 4  # methods that a notice names


def training_options(cls: type[Method]) -> Collection[str]:
    """Names of the options of training that have an effect on a method."""
    return FitConfig.model_fields if cls.trained_by() == "steps" else cls.setup_options


def refuse_without_effect(cls: type[Method], given: Iterable[str]) -> None:
    """Raises UsageError where an option of training that is `given` has no effect on a method that trains nothing by steps."""
    idle = [key for key in given if key in FitConfig.model_fields and key not in (*training_options(cls), *cls.Options.model_fields)]
    if idle:
        own = ", ".join(cls.Options.model_fields) or "none"
        raise UsageError(
            f"{', '.join(idle)} {'has' if len(idle) == 1 else 'have'} no effect on {cls.name}, which trains nothing by steps. "
            f"Its options: {own}; and of training: {', '.join(training_options(cls))}."
        )


def own_options(given: Mapping[str, Any], names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The options of each of the methods `names`: KEY of `given` for those that have it, METHOD.KEY for that method alone, which wins.

    An option that none of them has stays with all, for each to say what is wrong with it.

    Warns:
        Notice: an option has no effect on some of them, or nothing is trained.

    Raises:
        UsageError: METHOD.KEY of a method that is not among them.
    """
    trained = [name for name in names if methods.get(name).trained_by() != "nothing"]
    if given and not trained:
        warnings.warn(f"{', '.join(given)}: without effect, since nothing is trained.", Notice, stacklevel=2)
    for_all, for_one = {}, {name: dict[str, Any]() for name in names}
    for key, value in given.items():
        method, dot, option = key.partition(".")
        if dot and method in names:
            for_one[method][option] = value
        elif dot and method in methods.names():
            raise UsageError(f"{key} is set, but {method} is not among the methods that run: {listed(names)}.")
        else:
            for_all[key] = value
    taking = {key: [name for name in trained if _has(name, key)] or trained for key in for_all}
    _say_left_out(taking, trained)
    return {name: {key: value for key, value in for_all.items() if name in taking[key]} | for_one[name] for name in names}


def as_authors(names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """The option that lets those of the methods `names` which can select as their authors did, on test images among others, do so."""
    return {name: {"selection": "authors"} for name in names if methods.get(name).can_select_as_authors()}


def _has(name: str, option: str) -> bool:
    cls = methods.get(name)
    return option in cls.Options.model_fields or option in training_options(cls)


def _say_left_out(taking: Mapping[str, Sequence[str]], names: Sequence[str]) -> None:
    """One notice for all options that the same of the methods `names` take."""
    for takers in dict.fromkeys(tuple(each) for each in taking.values() if len(each) < len(names)):
        keys, others = [key for key in taking if tuple(taking[key]) == takers], [name for name in names if name not in takers]
        said = f"{', '.join(keys)}: set for {listed(takers, NAMED)}; without effect on {listed(others, NAMED)}, and left out there."
        warnings.warn(said, Notice, stacklevel=3)
