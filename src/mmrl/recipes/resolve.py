"""From a method, a protocol, a data set, the number of shots and what the user asked for to the values of one run.

Precedence, lowest first: the option's built-in default; the method's default rules, those by shots, by protocol, by shots within the
protocol; the same four for data sets whose name begins alike (`mini:*`), then for the data set itself; the user's. A method's values are
found by its name, and no method sees those of another. Data that the authors did not publish values for (`mini:*`, a folder of images)
get the protocol's values.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from mmrl.errors import UsageError, unknown
from mmrl.recipes.read import Source, added_to, recipe_of
from mmrl.recipes.rules import PROTOCOLS, SECTIONS, Place, Publication, Recipe

EPOCHS, ITERATIONS = ("fit", "epochs"), ("fit", "iterations")


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

    def replaced(self, key: str, value: Any, source: str) -> Resolved:
        """The same with another `value` of `key`, and where that came from."""
        return Resolved(tuple(Setting(s.section, key, value, source) if s.key == key else s for s in self.settings))

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
    shots: int | None = None,
    overrides: Mapping[str, Any] | None = None,
    override_source: str = "command line",
    recipe: Source | None = None,
) -> Resolved:
    """The values of one run of `method` on `dataset`.

    `iterations` count instead of `epochs`, so whoever sets `epochs` alone, a later rule or the user, takes `iterations` back.

    Args:
        allowed: for 'method' and 'fit' the names of the options there are; as a mapping from name to built-in default, options
            that no recipe mentions are listed with that default. A packaged recipe's value for an option not in here is left out.
        dataset: a name of the catalogue ('dtd'), `mini:<name>`, or a folder.
        shots: training images a class. A number that the authors do not name gets the values of the nearest lower one; all images (0)
            and a number that is not known (None) get those of the largest one (16, unless the recipe names more).
        overrides: option name -> value; wins over everything.
        override_source: source of the overridden values, as `mmrl config show` prints it.
        recipe: published values of a method from outside the package, a JSON file or its content (format: `mmrl.recipes.read`);
            None for the packaged ones of that name, if there are any.

    Raises:
        UsageError: an unknown protocol, negative `shots`, or unknown names in `overrides` (all of them in one message); a `recipe` that
            cannot be read, or says something that is not known.
    """
    if protocol not in PROTOCOLS:
        raise unknown("protocol", protocol, PROTOCOLS)
    if shots is not None and shots < 0:
        raise UsageError(f"shots is {shots}; give 1 or more images a class, or 0 for all.")
    overrides = overrides or {}
    home = {key: section for section in reversed(SECTIONS) for key in allowed.get(section, ())}
    _refuse_unknown(method, overrides, home)

    found = recipe_of(method, recipe) or Recipe("")
    if recipe is not None:
        _refuse_strange(found, method, allowed)
    for added in added_to(method):
        _refuse_strange(added, method, allowed)
    winner: dict[Place, Setting] = {}
    for section in SECTIONS:
        defaults = allowed.get(section, ())
        if isinstance(defaults, Mapping):
            winner.update({(section, key): Setting(section, key, value, "built-in default") for key, value in defaults.items()})
    count = found.count(shots)
    for rule in found.rules:
        if rule.holds(protocol, dataset, count):
            for place, note in ((place, rule.notes[place[1]]) for place in list(winner) if place[1] in rule.notes):
                winner[place] = Setting(*place, winner[place].value, f"{winner[place].source} ({note})")
            _set(winner, rule.values_at(count), rule.source)
    _set(winner, {(home[key], key): value for key, value in overrides.items()}, override_source)

    order = [(section, key) for section in SECTIONS for key in allowed.get(section, ())]
    return Resolved(tuple(winner[place] for place in order if place in winner))


def _set(winner: dict[Place, Setting], values: Mapping[Place, Any], source: str) -> None:
    winner.update({place: Setting(*place, value, source) for place, value in values.items()})
    if EPOCHS in values and ITERATIONS not in values and ITERATIONS in winner and winner[ITERATIONS].value is not None:
        winner[ITERATIONS] = Setting(*ITERATIONS, None, f"{source} (epochs are given)")


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


def _refuse_strange(recipe: Recipe, method: str, allowed: Mapping[str, Iterable[str]]) -> None:
    """Raises UsageError for the first value or note of `recipe` whose option there is not."""
    kinds = {"method": f"option of {method}", "fit": "training option"}
    for section, key in (place for rule in recipe.rules for place in rule.values):
        if key not in allowed.get(section, ()):
            raise UsageError(f"{recipe.where}: {unknown(kinds[section], key, allowed.get(section, ()))}")
    both = [key for section in SECTIONS for key in allowed.get(section, ())]
    for key in (key for rule in recipe.rules for key in rule.notes):
        if key not in both:
            raise UsageError(f"{recipe.where}: notes: {unknown('option', key, both)}")
    for key in (key for options in recipe.at_test.values() for key in options):
        if key not in allowed.get("method", ()):
            raise UsageError(f"{recipe.where}: at_test: {unknown(kinds['method'], key, allowed.get('method', ()))}")


def at_test(method: str, target: str, recipe: Source | None = None) -> tuple[Setting, ...]:
    """The authors' options of `method` at test on the data set `target`; none where they give none.

    Choosing them by the target is tuning on the target, so nothing applies them by itself: a run that reproduces the published
    cross-dataset numbers asks for them and its report says so.

    Raises:
        UsageError: as `resolve`, for a `recipe` that cannot be read.
    """
    found = recipe_of(method, recipe) or Recipe("")
    return tuple(Setting("method", key, value, found.at_test_source) for key, value in found.at_test.get(target, {}).items())


def publication(method: str, protocol: str, recipe: Source | None = None) -> Publication | None:
    """What the authors of `method` published for `protocol`; None where its recipe says nothing of it, or there is none.

    Raises:
        UsageError: an unknown protocol; as `resolve`, for a `recipe` that cannot be read.
    """
    if protocol not in PROTOCOLS:
        raise unknown("protocol", protocol, PROTOCOLS)
    found = recipe_of(method, recipe)
    return found.publications.get(protocol) if found else None
