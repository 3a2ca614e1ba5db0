"""CoOp: whose the context is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tools.golden.judge import Tensors


def options(hyper: Mapping[str, Any], tensors: Tensors) -> dict[str, Any]:
    """Whose context it is follows from its shape: the authors' code makes it class-specific in fewer cases than `csc` says."""
    shape = tensors["init.prompt_learner.ctx"].shape
    sets = "N" in hyper  # PLOT's, (N, n, d) or (C, N, n, d)
    return {"csc": len(shape) == (4 if sets else 3)} | ({"n_prompts": shape[-3]} if sets else {})
