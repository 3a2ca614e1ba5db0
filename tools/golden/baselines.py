"""Replay of the methods that the paper compares with: a folder whose cases have `hyper`, `losses` and the authors' tensor names.

A case belongs to the method that its name begins with; what follows is the variant. The CLIP lies in ../mmrl/.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from mmrl import methods
from mmrl.clip import Clip
from tools.golden.judge import Errors, GoldenError, Tensors, count, load, value
from tools.golden.methods import about
from tools.golden.replay import Replay, stepping

TEMPLATE = "{} texture."  # CoOp's, of the golden data set


def method_of(case: str) -> str | None:
    """The registered method whose name begins the name of a case, as in tip_adapter_f_cosine or cliplora_drop; None if we have none."""
    known = {name.replace("-", ""): name for name in methods.names()}
    words = re.split(r"[_-]", case)
    return next((known[found] for end in range(len(words), 0, -1) if (found := "".join(words[:end])) in known), None)


def options_of(method: str, case: Mapping[str, Any], tensors: Tensors) -> dict[str, Any]:
    """Our options of a case: entries of its `hyper` under our names, or as the module of the method has them."""
    hyper: Mapping[str, Any] = value(case, "hyper")
    own = about(method)
    found = {key: hyper[key] for key in methods.get(method).Options.model_fields if key in hyper}
    found |= {key: hyper[theirs] for key, theirs in getattr(own, "RENAMED", {}).items() if theirs in hyper}
    found |= own.options(hyper, tensors) if hasattr(own, "options") else {}
    if str(found.get("ctx_init", "")).startswith("random"):
        found["ctx_init"] = ""
    return {key: tuple(entry) if isinstance(entry, list) else entry for key, entry in found.items()}


def template_of(case: Mapping[str, Any]) -> str:
    """The data set's prompt, which tells nothing but for zero-shot features."""
    template = str(value(case, "hyper").get("template", ""))
    return template if template.count("{}") == 1 else TEMPLATE


def start(name: str, case: Mapping[str, Any], tensors: Tensors, clip: Clip, classnames: Sequence[str]) -> Replay:
    """The method of a case with its initial parameters, in the precision of `clip`."""
    method_name = method_of(name)
    if method_name is None:
        raise GoldenError(f"there is no method for '{name}' here")
    kind: type[Replay] = getattr(about(method_name), "REPLAY", Replay)
    template, dtype = template_of(case), next(clip.model.parameters()).dtype
    task = kind.task(tuple(classnames), template, tensors, clip)
    method = methods.build(method_name, clip, options_of(method_name, case, tensors), seed=0, task=task).to(dtype)
    load(method, tensors)
    if isinstance(case.get("trainable"), int) and case["trainable"] != count(method):
        raise GoldenError(f"{count(method)} trainable parameters here, {case['trainable']} in the file")
    return kind(case, tensors, clip, method, method.class_list(classnames, template), task, {})


def replay(name: str, case: Mapping[str, Any], tensors: Tensors, clip: Clip, classnames: Sequence[str]) -> Errors:
    """Errors of one case by group."""
    run = start(name, case, tensors, clip, classnames)
    with run.dropout():
        with torch.no_grad():
            run.before()
        if run.method.trainable:
            run.train(stepping(case))
    run.method.eval()
    with torch.no_grad():
        run.after()
    return run.errors
