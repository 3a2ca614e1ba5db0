"""Reading recipes: the packaged file of a method, or one from outside, in the same format.

    {"published_with": TEXT,
     "protocols": {PROTOCOL: {"published": true, "published_with": TEXT} or {"published": false, "used_instead": TEXT}},
     "rules": [{"source": TEXT, "when": {"protocol": [...], "dataset": [NAME or "BEGINNING*"]}, "method": {KEY: VALUE}, "fit": {KEY: VALUE},
                "by_dataset": {NAME: VALUES}, "by_shots": {"1": VALUES, "8": VALUES}, "per_shot": VALUES, "notes": {KEY: TEXT}}],
     "at_test": {"source": TEXT, "by_target": {NAME: {KEY: VALUE}}}}

VALUES is {"method": {KEY: VALUE}, "fit": {KEY: VALUE}}. Everything but "rules" and each "source" may be left out. A value in `by_shots`
holds from its number of shots up to the next one named; one in `per_shot` is multiplied with the number of shots.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from importlib.resources import files
from itertools import pairwise
from pathlib import Path
from typing import Any

from mmrl.errors import MmrlError, UsageError, unknown
from mmrl.files import parse_json, read_json
from mmrl.recipes.rules import PROTOCOLS, SECTIONS, Place, Publication, Recipe, Rule

Source = Path | Mapping[str, Any]

TOP = ("published_with", "protocols", "rules", "at_test")
RULE = ("source", "when", *SECTIONS, "by_dataset", "by_shots", "per_shot", "notes")
AT_TEST = ("source", "by_target")


@cache
def packaged() -> tuple[str, ...]:
    """Names of the methods with published values in this package."""
    return tuple(sorted(entry.name.removesuffix(".json") for entry in files("mmrl.recipes").joinpath("data").iterdir()))


def recipe_of(method: str, recipe: Source | None = None) -> Recipe | None:
    """The recipe of a method: the one given, else the packaged one of its name, else None; with what `add_recipe` added to it.

    Args:
        recipe: a JSON file, or its content.

    Raises:
        UsageError: the one given cannot be read, or says something that is not known; file, key and what is allowed are named.
    """
    found = _own(method, recipe)
    for extra in added_to(method):
        found = extra if found is None else found.joined(extra)
    return found


def add_recipe(method: str, recipe: Source) -> None:
    """Add rules to a method's recipe, such as values for a data set of yours. Of two of the same rank the one added last wins.

    Raises:
        UsageError: as `recipe_of`, or these rules were added before.
    """
    made = _read(method, recipe)
    if made in _added.setdefault(method, []):
        raise UsageError(f"{made.where}: these rules were added to the recipe of {method} before.")
    _added[method].append(made)


def added_to(method: str) -> tuple[Recipe, ...]:
    """What `add_recipe` added, in that order."""
    return tuple(_added.get(method, ()))


_added: dict[str, list[Recipe]] = {}  # by method


def _own(method: str, recipe: Source | None) -> Recipe | None:
    if recipe is None:
        return _packaged(method) if method in packaged() else None
    return _read(method, recipe)


def _read(method: str, recipe: Source) -> Recipe:
    if not isinstance(recipe, Path):
        return parse(recipe, f"the recipe of {method}")
    try:
        content = read_json(recipe, what=f"the recipe of {method}")
    except MmrlError as error:  # the user's file, or a plug-in's
        raise UsageError(str(error)) from error
    return parse(content, str(recipe))


@cache
def _packaged(method: str) -> Recipe:
    name = f"{method}.json"
    return parse(parse_json(files("mmrl.recipes").joinpath("data").joinpath(name).read_text(encoding="utf-8")), name)


def parse(content: Any, where: str) -> Recipe:
    """The recipe that `content` is. Raises UsageError; `where` names the file in the message."""
    top = _mapping(content, where, TOP, needed=("rules",))
    facts = [_text(top["published_with"], f"{where}: published_with")] if "published_with" in top else []
    if not isinstance(top["rules"], list | tuple):
        raise _wrong(f"{where}: rules", top["rules"], "a list of rules")
    rules = [rule for i, entry in enumerate(top["rules"]) for rule in _rules(entry, f"{where}: rules[{i}]")]
    publications = {
        protocol: _publication(entry, facts, f"{where}: protocols.{protocol}")
        for protocol, entry in _mapping(top.get("protocols", {}), f"{where}: protocols", PROTOCOLS, kind="protocol").items()
    }
    recipe = Recipe(where, tuple(sorted(rules, key=lambda rule: rule.rank)), publications)
    if "at_test" not in top:
        return recipe
    at_test = _mapping(top["at_test"], f"{where}: at_test", AT_TEST, needed=AT_TEST)
    targets = _mapping(at_test["by_target"], f"{where}: at_test.by_target")
    options = {name: _mapping(values, f"{where}: at_test.by_target.{name}") for name, values in targets.items()}
    return replace(recipe, at_test=options, at_test_source=_text(at_test["source"], f"{where}: at_test.source"))


def _publication(content: Any, facts: Sequence[str], where: str) -> Publication:
    entry = _mapping(content, where, ("published", "published_with", "used_instead"), needed=("published",))
    published = entry["published"]
    if not isinstance(published, bool):
        raise _wrong(f"{where}.published", published, "true or false")
    if published == ("used_instead" in entry):
        raise UsageError(f"{where}: used_instead is needed where published is false, and belongs nowhere else.")
    texts = {key: _text(entry[key], f"{where}.{key}") for key in ("published_with", "used_instead") if key in entry}
    return Publication(published, (*facts, *filter(None, [texts.get("published_with")])), texts.get("used_instead", ""))


def _rules(content: Any, where: str) -> list[Rule]:
    """The rules of one entry: for each of its data sets, its own values, those by shots, and those for each shot."""
    entry = _mapping(content, where, RULE, needed=("source",))
    source = _text(entry["source"], f"{where}.source")
    when = _mapping(entry.get("when", {}), f"{where}.when", ("protocol", "dataset"))
    protocols = _names(when.get("protocol", ()), f"{where}.when.protocol")
    for name in protocols:
        if name not in PROTOCOLS:
            raise UsageError(f"{where}.when.protocol: {unknown('protocol', name, PROTOCOLS)}")
    datasets = _names(when.get("dataset", ()), f"{where}.when.dataset")
    by_dataset = {name: _values(values, f"{where}.by_dataset.{name}") for name, values in
                  _mapping(entry.get("by_dataset", {}), f"{where}.by_dataset").items()}  # fmt: skip
    for name in (*datasets, *by_dataset):
        if not name.strip() or "*" in name[:-1] or name == "*":
            raise UsageError(f"{where}: '{name}' is no data set; give a name, or its beginning followed by *, as in 'mini:*'.")
    notes = {key: _text(text, f"{where}.notes.{key}") for key, text in _mapping(entry.get("notes", {}), f"{where}.notes").items()}
    own = _values({key: entry[key] for key in SECTIONS if key in entry}, where)
    per_shot = _values(entry.get("per_shot", {}), f"{where}.per_shot")
    for (section, key), value in per_shot.items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise _wrong(f"{where}.per_shot.{section}.{key}", value, "a number")
    by_shots = _by_shots(entry.get("by_shots", {}), f"{where}.by_shots")

    rules = []
    for dataset in datasets or ("",):
        rules += [Rule(source, protocols, dataset, values=own, notes=notes)] if own or notes else []
        rules += [Rule(source, protocols, dataset, shots, values) for shots, values in by_shots.items()]
        rules += [Rule(source, protocols, dataset, values=per_shot, per_shot=True)] if per_shot else []
    rules += [Rule(source, protocols, name, values=values) for name, values in by_dataset.items()]
    if datasets and by_dataset:
        raise UsageError(f"{where}: by_dataset and when.dataset exclude each other; make two rules of it.")
    if not rules:
        raise UsageError(f"{where} has no values; give some in {', '.join(RULE[2:])}.")
    return rules


def _by_shots(content: Any, where: str) -> dict[tuple[int, int | None], dict[Place, Any]]:
    """Values by range of shots: each from the number named up to the next one."""
    table = {}
    for key, values in _mapping(content, where).items():
        if not (key.isascii() and key.isdecimal()) or not int(key):
            raise UsageError(f"{where}: '{key}' is no number of shots; give whole numbers from 1, as in \"16\".")
        table[int(key)] = _values(values, f"{where}.{key}")
    ends: list[int | None] = [*sorted(table), None]
    return {(start, end): table[start] for start, end in pairwise(ends) if start is not None}


def _values(content: Any, where: str) -> dict[Place, Any]:
    sections = _mapping(content, where, SECTIONS)
    return {(section, key): value for section in sections for key, value in _mapping(sections[section], f"{where}.{section}").items()}


def _mapping(content: Any, where: str, allowed: Iterable[str] = (), needed: Iterable[str] = (), kind: str = "key") -> dict[str, Any]:
    """`content` with its keys as text. Raises UsageError where it is no object, or has other keys than `allowed`, if any are named."""
    if not isinstance(content, Mapping):
        raise _wrong(where, content, "an object {...}")
    found = {str(key): value for key, value in content.items()}
    for key in found:
        if allowed and key not in allowed:
            raise UsageError(f"{where}: {unknown(kind, key, allowed)}")
    for key in needed:
        if key not in found:
            raise UsageError(f"{where} has no '{key}', and needs one.")
    return found


def _names(content: Any, where: str) -> tuple[str, ...]:
    if not isinstance(content, list | tuple) or not all(isinstance(name, str) for name in content):
        raise _wrong(where, content, "a list of names")
    return tuple(content)


def _text(content: Any, where: str) -> str:
    if not isinstance(content, str) or not content.strip():
        raise _wrong(where, content, "text")
    return content


def _wrong(where: str, content: Any, allowed: str) -> UsageError:
    return UsageError(f"{where} is {content!r}; it must be {allowed}.")
