"""From a method, a data set and what the user asked for to all that a training needs: values with their sources, and the draw."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mmrl import methods, recipes
from mmrl.data import Dataset, Draw, draw_shots
from mmrl.engine.config import FitConfig


@dataclass(frozen=True)
class Prepared:
    """What a training needs besides the backbone: values with their sources, validated, and the images drawn."""

    method: str
    resolved: recipes.Resolved
    config: FitConfig
    draw: Draw


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
) -> Prepared:
    """Resolve and validate the values of a training, and draw its images.

    A published batch size larger than the draw is lowered to it; one that the user gave is not.

    Raises:
        UsageError: unknown options or bad values (all in one message), or too few images.
    """
    given = {**(overrides or {}), "seed": seed}
    resolved = settings(method, protocol=protocol, dataset=dataset.name, overrides=given, source=source)
    methods.make_options(methods.get(method), resolved.method)
    FitConfig(**resolved.fit)
    draw = draw_shots(dataset, shots, seed, classes, allow_fewer=allow_fewer)
    if "batch_size" not in given:
        resolved = resolved.at_most("batch_size", len(draw.train), "all training images, fewer than a published batch")
    return Prepared(method, resolved, FitConfig(**resolved.fit), draw)
