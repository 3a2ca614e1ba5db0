"""docs/each_method.md: a section for every method, in the order of the table, whose options, recipe, paper and licence are true."""

from __future__ import annotations

import functools
import json
import re

import pytest

from benchmarks.methods import ROOT, here
from mmrl.recipes import resolve
from tools.golden import baselines, features

PAGE = ROOT / "docs" / "each_method.md"
FIT = ("optimizer", "lr", "epochs", "iterations", "batch_size")
RECIPE = re.compile(r"- Recipe \(([a-z-]+)\): (SGD|Adam|AdamW), lr ([\d.]+), (\d+) (epochs|iterations), batch (\d+)")
USUAL = "caltech101"  # a data set with the values that most have


@functools.cache
def sections() -> dict[str, str]:
    """What is said of each method, by name and in the order of the page."""
    found = {}
    for section in re.split(r"(?m)^### ", PAGE.read_text(encoding="utf-8"))[1:]:
        title, _, text = section.partition("\n")
        (name,) = re.findall(r"\A\n`([a-z-]+)`: ", text)
        assert title == here()[name].title
        found[name] = " ".join(re.split(r"(?m)^## ", text)[0].split()).replace(" - ", "\n- ")
    return found


def licences() -> dict[str, tuple[str, str]]:
    """Repository and licence by method, as the golden cases name them."""
    found = {}
    for folder, method_of in (("baselines", baselines.method_of), ("features", features.method_of)):
        cases = json.loads((ROOT / "tests" / "golden" / folder / "golden.json").read_text(encoding="utf-8"))["cases"]
        found |= {name: (case["repo"], case["licence"]) for key, case in cases.items() if (name := method_of(key))}
    return found


def test_every_method_has_a_section_in_the_order_of_the_table() -> None:
    assert list(sections()) == list(here())
    assert len(PAGE.read_text(encoding="utf-8").splitlines()) <= 400


@pytest.mark.parametrize("name", list(here()))
def test_options_that_a_section_names_are_options(name: str) -> None:
    fields = here()[name].Options.model_fields
    listed = re.findall(r"\n- Options: (.+)", sections()[name])
    named = {word for line in listed for word in re.findall(r"`([a-z_]+)`", line)}
    assert len(listed) == bool(fields) and named <= fields.keys()
    assert len(named) >= min(3, len(fields))


@pytest.mark.parametrize("name", list(here()))
def test_recipe_is_the_packaged_one(name: str) -> None:
    fit = resolve(name, allowed={"fit": FIT}, shots=16, dataset=USUAL).fit
    stated = RECIPE.findall(sections()[name])
    assert len(stated) == ("lr" in fit)
    for protocol, optimizer, lr, count, unit, batch in stated:
        fit = resolve(name, allowed={"fit": FIT}, protocol=protocol, shots=16, dataset=USUAL).fit
        assert (optimizer.lower(), float(lr), int(count), int(batch)) == (fit["optimizer"], fit["lr"], fit[unit], fit["batch_size"])


@pytest.mark.parametrize("name", list(here()))
def test_paper_and_licence(name: str) -> None:
    (paper,) = re.findall(r"\n- Paper: (.+)", sections()[name])
    year = here()[name].source.split()[-1]
    assert paper.startswith("*") and year in paper
    repo, licence = licences().get(name, ("", ""))
    assert f"https://github.com/{repo}" in paper
    if repo:
        assert ("MIT" in paper, "no licence file" in paper) == (licence.startswith("MIT"), not licence.startswith("MIT"))


def test_links_lead_somewhere() -> None:
    for path, anchor in re.findall(r"\]\((?!https:)([^)#]+)#?([^)]*)\)", PAGE.read_text(encoding="utf-8")):
        target = PAGE.parent / path
        assert target.exists(), path
        if anchor:
            heads = re.findall(r"(?m)^#+ (.+)", target.read_text(encoding="utf-8"))
            assert anchor in {re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-") for head in heads}, anchor
