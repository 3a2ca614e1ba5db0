"""How logits come of an image's and a class's features: the rules that a manifest names, on arrays."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmrl.errors import MmrlError

Array = NDArray[np.floating[Any]]  # float32, as all that comes out of a program
_SMALLEST = 1e-30  # of a probability whose logarithm is taken


def check_rule(rule: Mapping[str, Any] | None, outputs: tuple[str, ...]) -> None:
    """Raises MmrlError for a rule that is not known here, or whose features the image program does not put out."""
    name = rule.get("name") if isinstance(rule, Mapping) else None
    if name == "cosine":
        return
    if name != "fused" or rule is None:
        raise MmrlError(f"the export makes logits by the rule '{name}', which is not known here: upgrade mmrl, or export again.")
    alpha = rule.get("alpha")
    share = isinstance(alpha, (int, float)) and 0 <= alpha <= 1
    if len(outputs) != 2 or not share or rule.get("fusion") not in ("logits", "probabilities"):
        raise MmrlError("the export's rule 'fused' is damaged. Export again.")


def logits_of(rule: Mapping[str, Any], features: tuple[Array, ...], classes: Array, trained: NDArray[np.bool_], scale: float) -> Array:
    """Logits (B, C) of image features (B, d), of one or two kinds, and class features (C, d) of which some are `trained` (C,)."""
    own, *others = (np.float32(scale) * each @ classes.T for each in features)
    if rule["name"] == "cosine":
        return own
    seen = trained if rule.get("trained_only", True) else np.ones_like(trained)
    return _fused(own, others[0], seen, float(rule["alpha"]), rule["fusion"])


def _fused(own: Array, other: Array, seen: NDArray[np.bool_], alpha: float, fusion: str) -> Array:
    if not seen.any():
        return own
    c, r = own[:, seen], other[:, seen]
    if fusion == "logits":
        fused = np.float32(alpha) * c + np.float32(1 - alpha) * r
    else:
        mean = np.float32(alpha) * _softmax(c) + np.float32(1 - alpha) * _softmax(r)
        fused = np.log(np.maximum(mean, np.float32(_SMALLEST)))
    out = own.copy()
    out[:, seen] = fused if seen.all() else fused + _log_sum(c) - _log_sum(fused)
    return out


def _log_sum(z: Array) -> Array:
    """log sum exp of each row, (B, 1)."""
    most: Array = z.max(1, keepdims=True)
    total: Array = most + np.log(np.exp(z - most).sum(1, keepdims=True))
    return total


def _softmax(z: Array) -> Array:
    found: Array = np.exp(z - _log_sum(z))
    return found
