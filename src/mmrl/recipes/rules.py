"""What a recipe is: rules, each a few values with one source and the runs they hold for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

PROTOCOLS = ("base-to-novel", "few-shot", "cross-dataset", "domain-generalisation")
SECTIONS = ("method", "fit")
MOST_SHOTS = 16  # the most that the papers train with

Place = tuple[str, str]  # section and key


@dataclass(frozen=True)
class Rule:
    """Values that hold for some runs. An empty condition holds for every run.

    Attributes:
        protocols: those it holds for.
        dataset: a name, or its beginning followed by '*'.
        shots: from this number of training images a class, and below that one; None for no upper limit.
        values: by section and key.
        per_shot: whether the values are meant for each shot, and are multiplied with their number.
        notes: key -> what is to be said about a value that this rule does not set; it joins the source.
    """

    source: str
    protocols: tuple[str, ...] = ()
    dataset: str = ""
    shots: tuple[int, int | None] | None = None
    values: Mapping[Place, Any] = field(default_factory=dict)
    per_shot: bool = False
    notes: Mapping[str, str] = field(default_factory=dict)

    @property
    def rank(self) -> tuple[int, bool, bool]:
        """Later in this order wins: default, shots, protocol, shots within it; then the same for a data set, a whole name last."""
        named = 0 if not self.dataset else 1 if self.dataset.endswith("*") else 2
        return named, bool(self.protocols), self.per_shot or self.shots is not None

    def holds(self, protocol: str, dataset: str | None, shots: int) -> bool:
        start, end = self.shots or (0, None)
        return (
            (not self.protocols or protocol in self.protocols)
            and (not self.dataset or _matches(self.dataset, dataset or ""))
            and start <= shots
            and (end is None or shots < end)
        )

    def values_at(self, shots: int) -> dict[Place, Any]:
        return {place: value * shots if self.per_shot else value for place, value in self.values.items()}


def _matches(pattern: str, name: str) -> bool:
    return name.startswith(pattern[:-1]) if pattern.endswith("*") else name == pattern


@dataclass(frozen=True)
class Publication:
    """Whether the authors published values for a protocol.

    Attributes:
        facts: about their runs that are no options here: backbone, shots, seeds, what was tested.
        used_instead: where nothing was published, which values are used, and why.
    """

    published: bool
    facts: tuple[str, ...] = ()
    used_instead: str = ""


@dataclass(frozen=True)
class Recipe:
    """The published values of one method.

    Attributes:
        where: the file, for messages.
        rules: lowest precedence first; of two of the same rank the later one in the file wins.
        publications: by protocol.
        at_test: target data set -> method options at test, chosen by the authors on that target.
        at_test_source: where these are from.
    """

    where: str
    rules: tuple[Rule, ...] = ()
    publications: Mapping[str, Publication] = field(default_factory=dict)
    at_test: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    at_test_source: str = ""

    def joined(self, other: Recipe) -> Recipe:
        """With the rules of `other` after its own."""
        rules = sorted((*self.rules, *other.rules), key=lambda rule: rule.rank)
        return Recipe(
            f"{self.where} with {other.where}", tuple(rules), {**self.publications, **other.publications},
            {**self.at_test, **other.at_test}, "; ".join(filter(None, (self.at_test_source, other.at_test_source))),
        )  # fmt: skip

    def count(self, shots: int | None) -> int:
        """The number that rules go by. All images (0), and a number that is not known (None), count as the most that was published."""
        return shots or max([MOST_SHOTS, *(rule.shots[0] for rule in self.rules if rule.shots)])
