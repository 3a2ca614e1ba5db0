"""Sweeps: base-to-novel with options of the user's choice at several values, like an ablation of the paper's."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from mmrl.errors import UsageError
from mmrl.protocols.evaluations import SHOTS, base_to_novel
from mmrl.protocols.plan import ZERO_SHOT, Cell, values, variant_of

SWEEP = "vary-"  # begins the name of such a study; the options follow


def sweep(
    vary: Mapping[str, Sequence[Any]],
    datasets: Sequence[str],
    seeds: Sequence[int],
    *,
    method: str,
    shots: int = SHOTS,
    overrides: Mapping[str, Any] | None = None,
    paired: bool = False,
) -> list[Cell]:
    """Cells of `method` with every combination of the values of `vary`.

    A combination whose values are those of the recipe shares the training of the unchanged method.

    Args:
        vary: values by option, of the method or of training.
        overrides: options that every row has.
        paired: the first values of all options together, then the second ones, and so on.

    Raises:
        UsageError: an option both varied and overridden, or lists of different lengths that shall be paired.
    """
    if method == ZERO_SHOT:
        raise UsageError("zero-shot has nothing to vary; give another --method.")
    both = sorted(set(vary) & set(overrides or {}))
    if both:
        raise UsageError(f"{both[0]} is varied, so it cannot be set to {(overrides or {})[both[0]]!r} as well.")
    if paired and len({len(each) for each in vary.values()}) > 1:
        lengths = ", ".join(f"{len(each)} of {key}" for key, each in vary.items())
        raise UsageError(f"values that are paired must be equally many: there are {lengths}. Without --paired all combinations run.")
    rows = zip(*vary.values()) if paired else itertools.product(*vary.values())
    cells: list[Cell] = []
    chosen = [dict(zip(vary, row)) for row in rows]
    for dataset, row in itertools.product(datasets, chosen):
        own = variant_of(tuple(row.items())) if len(row) > 1 else variant_of(tuple(row.items())).partition("=")[2]
        variant = ", ".join(filter(None, (own, variant_of(values(overrides)))))
        made = base_to_novel((method,), (dataset,), seeds, shots=(shots,), overrides={**(overrides or {}), **row})
        cells += [replace(cell, study=SWEEP + "-".join(vary), variant=variant) for cell in made]
    return cells
