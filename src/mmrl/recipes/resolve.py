"""From a method, a protocol, a data set and what the user asked for to the values of one run.

Precedence, lowest first: the option's built-in default, the published default, the protocol's value, the data set's value,
the data set's value within the protocol, the user's. Data that the authors did not publish values for (`mini:*`, a folder of
images) get the protocol's values.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from mmrl.errors import UsageError, unknown
from mmrl.recipes.rules import PROTOCOLS, read_data, rules

SECTIONS = ("method", "fit")


@dataclass(frozen=True)
class Setting:
    """One value of a run: `section` is 'method' or 'fit', `source` says where the value came from."""

    section: str
    key: str
    value: Any
    source: str


@dataclass(frozen=True)
class Resolved:
    """The values of one run in the order of the options, method first."""

    settings: tuple[Setting, ...]

    @property
    def method(self) -> dict[str, Any]:
        return self._section("method")

    @property
    def fit(self) -> dict[str, Any]:
        return self._section("fit")

    def at_most(self, key: str, limit: Any, source: str) -> Resolved:
        """The same with the value of `key` lowered to `limit` where it is above."""
        return Resolved(tuple(Setting(s.section, key, limit, source) if s.key == key and s.value > limit else s for s in self.settings))

    def to_json(self) -> list[dict[str, Any]]:
        """As a run record keeps them under `options`."""
        return [{"section": s.section, "key": s.key, "value": s.value, "source": s.source} for s in self.settings]

    def _section(self, section: str) -> dict[str, Any]:
        return {setting.key: setting.value for setting in self.settings if setting.section == section}


def resolve(
    method: str,
    *,
    allowed: Mapping[str, Iterable[str]],
    protocol: str = "base-to-novel",
    dataset: str | None = None,
    overrides: Mapping[str, Any] | None = None,
    override_source: str = "command line",
) -> Resolved:
    """The values of one run of `method` on `dataset`.

    Args:
        allowed: for 'method' and 'fit' the names of the options there are; as a mapping from name to built-in default, options
            that no recipe mentions are listed with that default. A recipe's value for an option not in here is left out.
        dataset: a name of the catalogue ('dtd'), `mini:<name>`, or a folder.
        overrides: option name -> value; wins over everything.
        override_source: source of the overridden values, as `mmrl config show` prints it.

    Raises:
        UsageError: an unknown protocol, or unknown names in `overrides` (all of them in one message).
    """
    if protocol not in PROTOCOLS:
        raise unknown("protocol", protocol, PROTOCOLS)
    overrides = overrides or {}
    home = {key: section for section in reversed(SECTIONS) for key in allowed.get(section, ())}
    _refuse_unknown(method, overrides, home)

    winner: dict[tuple[str, str], Setting] = {}
    for section in SECTIONS:
        defaults = allowed.get(section, ())
        if isinstance(defaults, Mapping):
            winner.update({(section, key): Setting(section, key, value, "built-in default") for key, value in defaults.items()})
    for rule in rules():
        if rule.holds(method, protocol, dataset):
            for key, note in rule.notes.items():
                if ("method", key) in winner:
                    old = winner["method", key]
                    winner["method", key] = Setting("method", key, old.value, f"{old.source} ({note})")
            winner.update({place: Setting(*place, value, rule.source) for place, value in rule.values.items()})
    winner.update({(home[key], key): Setting(home[key], key, value, override_source) for key, value in overrides.items()})

    order = [(section, key) for section in SECTIONS for key in allowed.get(section, ())]
    return Resolved(tuple(winner[place] for place in order if place in winner))


def _refuse_unknown(method: str, overrides: Mapping[str, Any], home: Mapping[str, str]) -> None:
    wrong = [key for key in overrides if key not in home]
    if not wrong:
        return
    parts = []
    for key in wrong:
        near = difflib.get_close_matches(key, home, n=1, cutoff=0.5)
        parts.append(f"'{key}'" + (f" (did you mean '{near[0]}'?)" if near else ""))
    noun = "option" if len(wrong) == 1 else "options"
    raise UsageError(f"unknown {noun} of {method}: {', '.join(parts)}. Known: {', '.join(sorted(home))}.")


def beta_at_test(dataset: str) -> Setting | None:
    """The authors' MMRL++ beta for the *target* `dataset`, or None where they give none.

    Choosing beta by the target is tuning on the target, so nothing applies this by itself: a run that reproduces the published
    cross-dataset numbers asks for it and its report says so.
    """
    data = read_data("paper_compat.json")
    value = data["beta_at_test"].get(dataset)
    return None if value is None else Setting("method", "beta", value, data["source"])
