"""Reading `data/*.json`: a list of rules, each a few values with one source and the runs they hold for."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from importlib.resources import files
from typing import Any

PROTOCOLS = ("base-to-novel", "few-shot", "cross-dataset", "domain-generalisation")
FILES = ("common.json", "mmrl.json", "mmrlpp.json")


@dataclass(frozen=True)
class Rule:
    """Values that hold for some runs. An empty condition holds for every run.

    `notes` say something about a key that has no published value of its own; they join the source of its default.
    """

    source: str
    methods: tuple[str, ...] = ()
    protocols: tuple[str, ...] = ()
    datasets: tuple[str, ...] = ()
    values: Mapping[tuple[str, str], Any] = field(default_factory=dict)
    notes: Mapping[str, str] = field(default_factory=dict)

    @property
    def rank(self) -> tuple[bool, bool]:
        """Later in this order wins: default, protocol, data set, data set within a protocol."""
        return bool(self.datasets), bool(self.protocols)

    def holds(self, method: str, protocol: str, dataset: str | None) -> bool:
        return (
            (not self.methods or method in self.methods)
            and (not self.protocols or protocol in self.protocols)
            and (not self.datasets or dataset in self.datasets)
        )


def _parse(entry: Mapping[str, Any]) -> list[Rule]:
    """Rules of one entry of a file: one, or one for each data set of `by_dataset` (method options by data set)."""
    when = entry.get("when", {})
    values = {(section, key): value for section in ("method", "fit") for key, value in entry.get(section, {}).items()}
    rule = Rule(
        source=entry["source"],
        methods=tuple(when.get("method", ())),
        protocols=tuple(when.get("protocol", ())),
        datasets=tuple(when.get("dataset", ())),
        values=values,
        notes=entry.get("notes", {}),
    )
    if "by_dataset" not in entry:
        return [rule]
    return [
        replace(rule, datasets=(dataset,), values={("method", key): value for key, value in options.items()})
        for dataset, options in entry["by_dataset"].items()
    ]


def read_data(name: str) -> Any:
    """Parsed content of `data/<name>` in this package."""
    return json.loads(files("mmrl.recipes").joinpath("data").joinpath(name).read_text(encoding="utf-8"))


@lru_cache(maxsize=1)
def rules() -> tuple[Rule, ...]:
    """Every rule of the package, lowest precedence first."""
    found = [rule for name in FILES for entry in read_data(name) for rule in _parse(entry)]
    return tuple(sorted(found, key=lambda rule: rule.rank))
