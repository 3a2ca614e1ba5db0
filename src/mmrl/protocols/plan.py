"""What a plan is made of: cells (one score each) and the trainings they test."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

ZERO_SHOT = "zero-shot"
Classes = Literal["all", "base", "novel"]
Trained = Literal["all", "base"]
Values = tuple[tuple[str, Any], ...]  # options by name, sorted: hashable


def values(options: Mapping[str, Any] | None) -> Values:
    return tuple(sorted((key, tuple(value) if isinstance(value, list) else value) for key, value in (options or {}).items()))


def variant_of(options: Values) -> str:
    """'lam=2, rep_tokens=3', as a variant's name."""
    return ", ".join(f"{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in options)


@dataclass(frozen=True)
class Training:
    """One training run.

    Attributes:
        classes: "base" or "all".
        shots: images a class; 0 takes all.
        recipe: the protocol whose published values are taken.
        overrides: options of method and training that differ from them.
    """

    method: str
    dataset: str
    classes: Trained
    shots: int
    seed: int
    recipe: str
    overrides: Values = ()


@dataclass(frozen=True)
class Cell:
    """One score.

    Attributes:
        training: what is tested; None for zero-shot CLIP.
        dataset, classes: tested on; "all", "base" or "novel".
        seen: whether these classes were trained on, which decides the classifier (paper, section 3.2.3).
        options: of the method, at test only.
        variant: tells rows of one method apart ('w/o L', '0.5', 'lam=2').
        others: of an open-world test, whose list mixes trained and new classes: the data sets whose images belong to no class of it.
            None for every other test.
    """

    study: str
    training: Training | None
    dataset: str
    classes: Classes
    seen: bool
    options: Values = ()
    variant: str = ""
    others: tuple[str, ...] | None = None

    @property
    def method(self) -> str:
        return self.training.method if self.training else ZERO_SHOT
