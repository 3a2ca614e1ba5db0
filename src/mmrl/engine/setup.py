"""From a method, a data set and what the user asked for to all that a training needs: values with their sources, and the draw."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmrl import methods, recipes
from mmrl.data import Dataset, Draw, draw_shots, read_draw, readable
from mmrl.engine.config import FitConfig
from mmrl.engine.fit import items_hash
from mmrl.errors import UsageError


@dataclass(frozen=True)
class Prepared:
    """What a training needs besides the backbone: values with their sources, validated, and the images drawn.

    `usable` tells which of them can be read, where broken ones are left out; '' where they are not.
    """

    method: str
    resolved: recipes.Resolved
    config: FitConfig
    draw: Draw
    usable: str = ""


def settings(
    method: str,
    *,
    protocol: str = "base-to-novel",
    dataset: str | None = None,
    overrides: Mapping[str, Any] | None = None,
    source: str = "call",
) -> recipes.Resolved:
    """Every value of a run and where it came from. Raises UsageError with all unknown names."""
    options = methods.get(method).Options.model_fields
    allowed = {
        "method": {name: field.default for name, field in options.items()},
        "fit": {name: field.default for name, field in FitConfig.model_fields.items()},
    }
    return recipes.resolve(method, protocol=protocol, dataset=dataset, overrides=overrides, allowed=allowed, override_source=source)


def prepare(
    method: str,
    dataset: Dataset,
    *,
    shots: int,
    classes: str,
    seed: int,
    protocol: str,
    overrides: Mapping[str, Any] | None = None,
    allow_fewer: bool = False,
    source: str = "call",
    skip_broken: bool = False,
    workers: int = 0,
    draw: Draw | Path | str | None = None,
) -> Prepared:
    """Resolve and validate the values of a training, and draw its images.

    A published batch size larger than the draw is lowered to it; one that the user gave is not. With `skip_broken` only images count that
    can be read.

    Args:
        draw: one made before, or the file of one, as `read_draw` reads it; then `shots` and `allow_fewer` do not matter.

    Raises:
        UsageError: unknown options or bad values (all in one message), or too few images.
    """
    given = {**(overrides or {}), "seed": seed}
    given_seed = (overrides or {}).get("seed", seed)
    if given_seed != seed:
        raise UsageError(f"the options have seed {given_seed!r}, and the run has seed {seed}; give it once: --seed, or seed= in Python.")
    resolved = settings(method, protocol=protocol, dataset=dataset.name, overrides=given, source=source)
    methods.make_options(methods.get(method), resolved.method)
    FitConfig(**resolved.fit)
    if draw is None:
        draw = draw_shots(dataset, shots, seed, classes, allow_fewer=allow_fewer)
    elif not isinstance(draw, Draw):
        draw = read_draw(draw, dataset, classes)
    usable = readable(dataset.restrict(classes), draw.train, workers)[0] if skip_broken else draw.train
    if "batch_size" not in given:
        resolved = resolved.at_most("batch_size", len(usable), "all training images, fewer than a published batch")
    return Prepared(method, resolved, FitConfig(**resolved.fit), draw, items_hash(usable) if skip_broken else "")
