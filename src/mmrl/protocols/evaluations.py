"""The paper's four evaluations (section 4.1), and the open world beside them. Each lists its cells; which number meets which in a table is
the reports' business."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from mmrl.errors import UsageError, unknown
from mmrl.protocols.plan import ZERO_SHOT, Cell, Classes, Trained, Training, Values, values, variant_of
from mmrl.protocols.suites import Suite
from mmrl.recipes import at_test

SHOTS = 16
TUNED = "tuned by target"  # variant of a method with --paper-compat
FEW_SHOTS = (1, 2, 4, 8, 16)
ByMethod = Mapping[str, Mapping[str, Any]]  # options of methods
EVALUATIONS = ("base-to-novel", "cross-dataset", "domain-generalisation", "few-shot")
OPEN_WORLD = "open-world"
BENCHES = (*EVALUATIONS, OPEN_WORLD)


def base_to_novel(
    methods: Sequence[str],
    datasets: Sequence[str],
    seeds: Sequence[int],
    *,
    shots: Sequence[int] = (SHOTS,),
    overrides: Mapping[str, Any] | None = None,
    own: ByMethod | None = None,
) -> list[Cell]:
    """Trained on the base half of the classes; tested on it and on the novel half, each among its own classes (Table 1).

    Here and below, `overrides` are options of every method, and `own` those of some methods, by name, which win.
    """
    study, given = "base-to-novel", _given(methods, overrides, own)
    halves: tuple[Classes, ...] = ("base", "novel")
    cells = []
    for dataset in datasets:
        for method, training in _trainings(methods, dataset, "base", shots, seeds, study, given):
            variant = variant_of(training.overrides) if training else ""
            for half in halves:
                cells.append(Cell(study, training, dataset, half, seen=half == "base" and method != ZERO_SHOT, variant=variant))
    return cells


def open_world(
    methods: Sequence[str],
    datasets: Sequence[str],
    seeds: Sequence[int],
    *,
    shots: Sequence[int] = (SHOTS,),
    overrides: Mapping[str, Any] | None = None,
    own: ByMethod | None = None,
) -> list[Cell]:
    """The trainings of `base_to_novel`, tested on all images among all classes, trained and new ones in one list. Images of the other
    `datasets` are those to reject."""
    trained = base_to_novel(methods, datasets, seeds, shots=shots, overrides=overrides, own=own)
    return [
        replace(cell, study=OPEN_WORLD, classes="all", seen=False, others=tuple(name for name in datasets if name != cell.dataset))
        for cell in trained
        if cell.classes == "base"
    ]


def few_shot(
    methods: Sequence[str],
    datasets: Sequence[str],
    seeds: Sequence[int],
    *,
    shots: Sequence[int] = FEW_SHOTS,
    overrides: Mapping[str, Any] | None = None,
    own: ByMethod | None = None,
) -> list[Cell]:
    """Trained and tested on all classes, by number of shots (Fig. 4, Tables 10 and 11)."""
    study, given = "few-shot", _given(methods, overrides, own)
    return [
        Cell(study, training, dataset, "all", seen=training is not None, variant=variant_of(training.overrides) if training else "")
        for dataset in datasets
        for _, training in _trainings(methods, dataset, "all", shots, seeds, study, given)
    ]


def cross_dataset(
    methods: Sequence[str],
    source: str,
    targets: Sequence[str],
    seeds: Sequence[int],
    *,
    shots: Sequence[int] = (SHOTS,),
    overrides: Mapping[str, Any] | None = None,
    own: ByMethod | None = None,
    paper_compat: bool = False,
) -> list[Cell]:
    """Trained on all classes of `source`, tested there and on other data sets (Table 2).

    Args:
        paper_compat: test with the options that the authors chose for each target, which is tuning on the target; default: as trained.
    """
    return _transfer("cross-dataset", methods, source, targets, seeds, shots, _given(methods, overrides, own), paper_compat)


def domain_generalisation(
    methods: Sequence[str],
    source: str,
    shifted: Sequence[str],
    seeds: Sequence[int],
    *,
    shots: Sequence[int] = (SHOTS,),
    overrides: Mapping[str, Any] | None = None,
    own: ByMethod | None = None,
    paper_compat: bool = False,
) -> list[Cell]:
    """As `cross_dataset`, tested on the source's classes in other pictures (Table 3). The trainings are the same."""
    return _transfer("domain-generalisation", methods, source, shifted, seeds, shots, _given(methods, overrides, own), paper_compat)


def _transfer(
    study: str,
    methods: Sequence[str],
    source: str,
    targets: Sequence[str],
    seeds: Sequence[int],
    shots: Sequence[int],
    given: Mapping[str, Values],
    paper_compat: bool,
) -> list[Cell]:
    cells = []
    for method, training in _trainings(methods, source, "all", shots, seeds, "cross-dataset", given):
        tuned = paper_compat and any(at_test(method, target) for target in (source, *targets))
        variant = ", ".join(filter(None, (variant_of(training.overrides), TUNED if tuned else ""))) if training else ""
        for target in (source, *targets):
            options = values({setting.key: setting.value for setting in at_test(method, target)} if tuned else None)
            seen = target == source and training is not None
            cells.append(Cell(study, training, target, "all", seen=seen, options=options, variant=variant))
    return cells


def _given(methods: Sequence[str], overrides: Mapping[str, Any] | None, own: ByMethod | None) -> dict[str, Values]:
    """The options of every method."""
    return {method: values({**(overrides or {}), **(own or {}).get(method, {})}) for method in methods}


def _trainings(
    methods: Sequence[str],
    dataset: str,
    classes: Trained,
    shots: Sequence[int],
    seeds: Sequence[int],
    recipe: str,
    given: Mapping[str, Values],
) -> Iterable[tuple[str, Training | None]]:
    """Every method with its trainings on `dataset`; zero-shot once, with none."""
    for method in methods:
        if method == ZERO_SHOT:
            yield method, None
            continue
        for count in shots:
            for seed in seeds:
                yield method, Training(method, dataset, classes, count, seed, recipe, given[method])


ON_ITSELF = {"base-to-novel": base_to_novel, "few-shot": few_shot, OPEN_WORLD: open_world}  # trained and tested on the same data set


def evaluation(
    study: str,
    suite: Suite,
    methods: Sequence[str],
    seeds: Sequence[int],
    *,
    datasets: Sequence[str] | None = None,
    source: str | None = None,
    shots: Sequence[int] | None = None,
    overrides: Mapping[str, Any] | None = None,
    own: ByMethod | None = None,
    paper_compat: bool = False,
) -> list[Cell]:
    """The cells of one of `BENCHES` over a suite.

    Args:
        datasets: other ones than the suite's; for cross-dataset and domain generalisation, the targets.
        source: another data set to train on, for these two.
        paper_compat: for these two, test with the options that the authors chose for each target.

    Raises:
        UsageError: an unknown study, or an option that it does not have.
    """
    if study not in BENCHES:
        raise unknown("protocol", study, BENCHES)
    if study in ON_ITSELF:
        if source:
            raise UsageError(f"{study} takes no --source: it trains and tests on the same data set.")
        counts = shots or (FEW_SHOTS if study == "few-shot" else (SHOTS,))
        return ON_ITSELF[study](methods, datasets or suite.single, seeds, shots=counts, overrides=overrides, own=own)
    across, targets = (cross_dataset, suite.targets) if study == "cross-dataset" else (domain_generalisation, suite.shifted)
    origin, chosen = source or suite.source, datasets or targets
    chosen = [name for name in chosen if name != origin]
    return across(methods, origin, chosen, seeds, shots=shots or (SHOTS,), overrides=overrides, own=own, paper_compat=paper_compat)
