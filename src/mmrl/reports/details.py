"""What a page says of one results folder beside its tables: facts, progress, problems, and charts of single classifiers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator

from mmrl.reports import diagnostics, sheets
from mmrl.reports.figures import Drawing
from mmrl.reports.folders import file_name
from mmrl.reports.measures import HM, Arm, StudyScores
from mmrl.reports.plans import ZERO_SHOT, Slot
from mmrl.reports.records import Environment as Where
from mmrl.reports.records import RunRecord, TestRecord
from mmrl.reports.results import Results
from mmrl.reports.sheets import Sheet, TableCell
from mmrl.reports.status import STATES, duration, held_locks, slot_states
from mmrl.reports.tables import METRICS, Arms, machine, title_of


def facts(results: Results) -> Iterator[tuple[str, str]]:
    """What was run, with what, where and for how long."""
    runs, tests = results.runs.values(), results.tests.values()
    trainings = [run.training for run in runs if run.training]
    slots = [slot for plan in results.plans.values() for slot in plan.slots]
    places = [*(test.environment for test in tests), *(training.environment for training in trainings)]
    yield "studies", ", ".join(results.plans) or "none planned"
    yield "suite", _listed(plan.suite for plan in results.plans.values())
    yield "methods", _listed(slot.title or slot.method for slot in slots)
    yield "data sets", _listed(slot.dataset for slot in slots)
    yield "backbone", _listed(f"{run.backbone} (hash {run.backbone_hash})" for run in runs)
    yield "seeds", ", ".join(str(seed) for seed in sorted({slot.seed for slot in slots if slot.seed is not None})) or "none"
    yield "done", f"{len(trainings)} trainings, {len(tests)} scores"
    seconds = sum(training.seconds for training in trainings) + sum(test.seconds for test in tests)
    yield "time computed", duration(seconds)
    first, last = min(place.started for place in places), max(place.started for place in places)
    yield "started", f"{first:%Y-%m-%d %H:%M %Z}" + (f"; last computation {last:%Y-%m-%d %H:%M %Z}" if last > first else "")
    yield "commit", _listed(_commit(place) for place in places)
    yield "versions", _listed(", ".join(f"{name} {version}" for name, version in place.versions.items()) for place in places)
    yield "machine", _listed(machine(place.hardware) for place in places)


def _listed(values: Iterable[str]) -> str:
    return "; ".join(dict.fromkeys(values))


def _commit(place: Where) -> str:
    return f"{place.commit[:12]}{' with uncommitted changes' if place.dirty else ''}" if place.commit else "installed package"


def progress(results: Results) -> Iterator[tuple[TableCell, ...]]:
    """Rows of scores by state, a study each."""
    locks = held_locks(results.folder)
    for study, plan in results.plans.items():
        states = [state for _, state in slot_states(results, plan, locks)]
        yield (title_of(study), *(states.count(state) for state in STATES), len(states))


def problems(results: Results) -> Iterator[tuple[str, str, str, list[str]]]:
    """(id, title, explanation, lines) of everything a reader should know; lines may be empty."""
    states = [(plan, slot, state) for plan in results.plans.values() for slot, state in slot_states(results, plan, ())]
    for kind, name in (("failed", "Failed"), ("cancelled", "Cancelled")):
        runs = {slot.run for _, slot, state in states if state == kind}
        lines = [f"{each.what}: {each.error}" for run, each in results.failures.items() if run in runs]
        yield kind, name, "", lines
    missing = [f"{title_of(plan.study)}: {_slot_name(slot)}" for plan, slot, state in states if state == "to do"]
    more = [f"and {len(missing) - 50} more"] if len(missing) > 50 else []
    yield "missing", "Not done yet", "", missing[:50] + more
    counted = Counter(name for run in results.runs.values() for name in _dirty(run))
    dirty = [f"{name}: {count} times" if count > 1 else name for name, count in sorted(counted.items())]
    about = f"The source code of these cannot be looked up; tables mark their scores with {sheets.DIRTY}."
    yield "dirty", "Computed on a source tree with uncommitted changes", about, dirty
    yield "damaged", "Damaged files", "Their scores count as missing; run the study again to compute them.", results.damaged
    warned = {warning for run in results.runs.values() for warning in run.warnings}
    yield "warnings", "Warnings", "", sorted(warned)


def _slot_name(slot: Slot) -> str:
    """A slot in words."""
    more = [slot.variant, f"{slot.shots} shots" if slot.shots else "", "" if slot.seed is None else f"seed {slot.seed}"]
    source = f", trained on {slot.trained_on}" if slot.trained_on not in (None, slot.dataset) else ""
    return f"{', '.join(filter(None, (slot.title or slot.method, *more)))}{source}, on {slot.dataset} ({slot.classes} classes)"


def _dirty(run: RunRecord) -> Iterator[str]:
    """The run's training and tests that were computed on a source tree with changes, in words."""
    title = run.title or run.method
    parts = [(f"{title} tested on {test.dataset} ({test.classes} classes)", test.environment) for test in run.tests]
    if run.training:
        parts.append((f"{title} trained on {run.training.dataset} ({run.training.classes} classes)", run.training.environment))
    yield from (f"{name}, commit {(place.commit or 'unknown')[:12]}" for name, place in parts if place.dirty)


def _tested(scores: StudyScores) -> Iterator[tuple[str, Arm, str, list[TestRecord]]]:
    """(data set, arm, name, tests by seed) of the classifiers that are examined; of few-shot learning, those with the most shots."""
    named = Arms(scores)
    for dataset in scores.datasets:
        for arm in scores.arms:
            shots = scores.shots[-1] if scores.study == "few-shot" and arm.method != ZERO_SHOT else None
            for classes in (metric for metric in scores.metrics if metric != HM):
                if tests := scores.tests(arm, dataset, classes, shots):
                    half = "" if classes == "all" else f", {METRICS[classes]}"
                    yield dataset, arm, f"{named.name(arm)}{half}", tests


def reliability(scores: StudyScores) -> Iterator[tuple[str, Drawing]]:
    charts: dict[str, list[str]] = {}
    for dataset, _, label, tests in _tested(scores):
        charts.setdefault(dataset, []).append(diagnostics.reliability(label, diagnostics.pooled([test.scores.bins for test in tests])))
    for dataset, drawn in charts.items():
        if any(drawn):
            yield dataset, Drawing("", tuple(filter(None, drawn)))


def confusions(scores: StudyScores) -> Iterator[tuple[str, Drawing, Sheet | None]]:
    charts: dict[str, list[str]] = {}
    rows: dict[str, list[tuple[TableCell, ...]]] = {}
    for dataset, _, label, tests in _tested(scores):
        first = tests[0].scores
        chart = diagnostics.confusion(label, first)
        charts.setdefault(dataset, []).extend([chart] if chart else [])
        listed = [] if chart else diagnostics.confused(first)
        rows.setdefault(dataset, []).extend((label, true, guess, count, 100 * share) for true, guess, count, share in listed)
    heads = ("classifier", "true class", "predicted", "images", "share of the class, %")
    for dataset, drawn in charts.items():
        if drawn or rows[dataset]:
            name = file_name(f"confused-{dataset}")
            sheet = Sheet(name, "Commonest mistakes", heads, tuple(rows[dataset]), group=0, bold=False, files=False)
            yield dataset, Drawing("", tuple(drawn)), sheet if sheet.rows else None


def trainings(results: Results, scores: StudyScores) -> Iterator[tuple[str, list[Drawing]]]:
    drawings: dict[str, dict[str, Drawing]] = {}
    for _, arm, _, tests in _tested(scores):
        training = results.run_of[tests[0].key].training
        name = Arms(scores).name(arm)
        if training and training.history and name not in drawings.setdefault(training.dataset, {}):
            charts, series = diagnostics.training(name, training.history)
            drawings[training.dataset][name] = Drawing(f"{name} on {training.dataset}, seed {training.seed}", tuple(charts), tuple(series))
    yield from ((dataset, list(drawn.values())) for dataset, drawn in drawings.items() if drawn)
