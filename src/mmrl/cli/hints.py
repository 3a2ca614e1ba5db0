"""What a command answers to an option that it does not have: options of training and of methods are given with --set."""

from __future__ import annotations

import difflib
from typing import Any

from mmrl.errors import UsageError


def is_no_such_option(error: Exception) -> bool:
    """Whether an error is Click's for an option that is not known; which module has it depends on Typer's version."""
    return type(error).__name__ == "NoSuchOption" and hasattr(error, "option_name")


def no_such_option(error: Any) -> UsageError:
    """The error to show instead: the --set of an option of training or of a method, else the nearest name."""
    name, command = error.option_name, error.ctx.command
    own = [option for each in command.params for option in each.opts if option.startswith("--")]
    said, key = f"no such option: {name}.", name.lstrip("-").replace("-", "_")
    keys = _keys() if "--set" in own else {}
    if key in keys:
        return UsageError(f"{said} {key} is an option of {keys[key]}: --set {key}=VALUE.")
    known = {option.lstrip("-").replace("-", "_"): option for option in own}
    known = {each: f"--set {each}=VALUE" for each in keys} | known
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.6)
    hint = f" Did you mean {known[near[0]]}?" if near else ""
    where = " Options of training and of methods are given as --set KEY=VALUE; `mmrl methods NAME` lists them." if keys else ""
    return UsageError(f"{said}{hint}{where} `{error.ctx.command_path} --help` lists the options of the command.")


def _keys() -> dict[str, str]:
    """Whose each option of training and of methods is."""
    from mmrl import methods
    from mmrl.engine.config import FitConfig
    from mmrl.names import listed

    owners: dict[str, list[str]] = {}
    for name, cls in methods.registered().items():
        for key in cls.Options.model_fields:
            owners.setdefault(key, []).append(name)
    return {key: listed(names, 4) for key, names in owners.items()} | dict.fromkeys(FitConfig.model_fields, "training")
