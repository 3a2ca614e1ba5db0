"""The report of a results folder: one self-contained page, and every table as Markdown, LaTeX and CSV."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from urllib.parse import quote

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from mmrl.errors import MmrlError
from mmrl.files import sweep, user_path, write_text
from mmrl.reports import diagnostics, sheets, svg
from mmrl.reports.claims import Claim, claims, claims_sheet
from mmrl.reports.cost import COST_FILE, CostTable
from mmrl.reports.figures import Drawing, study_drawings
from mmrl.reports.measures import HM, Arm, Measure, StudyScores
from mmrl.reports.plans import STUDIES, ZERO_SHOT, Slot, is_ablation
from mmrl.reports.ranking import ranking_sheet, standings, time_chart
from mmrl.reports.records import Environment as Where
from mmrl.reports.records import RunRecord, TestRecord
from mmrl.reports.results import Results, read_part
from mmrl.reports.sheets import Sheet, TableCell
from mmrl.reports.status import STATES, duration, held_locks, slot_states
from mmrl.reports.tables import METRICS, Arms, calibration_sheet, cost_sheet, machine, study_sheets, title_of
from mmrl.version import __version__

FORMS = ((".md", sheets.markdown), (".tex", sheets.latex), (".csv", sheets.tidy_csv))


@dataclass(frozen=True)
class Section:
    """One study on the page. `folded`: all tables but the first are collapsed."""

    id: str
    title: str
    sheets: list[Sheet]
    drawings: list[Drawing]
    folded: bool


def build_report(results_folder: Path | str, out: Path | str, *, title: str | None = None) -> list[Path]:
    """Write index.html and tables/ into `out`; the files written, the page first.

    Raises:
        UsageError: no results folder. MmrlError: it is of another version, nothing in it is done, or `out` cannot be written to.
    """
    results, out = Results(results_folder), user_path(out)
    if not results.tests:
        damaged = f" {len(results.damaged)} damaged files: {results.damaged[0]}" if results.damaged else ""
        raise MmrlError(f"nothing is done yet in {results.folder}: it has no scores. `mmrl status` shows how far it is.{damaged}")
    for place in (out, out / "tables"):
        sweep(place)
    studies = {study: StudyScores(results, plan) for study, plan in results.plans.items()}
    sections = [_section(results, scores) for scores in studies.values()]
    found = claims(results, studies)
    main = _looked_into(studies)
    cost = _cost(results)
    calibration = calibration_sheet(main) if main else None
    extra = [sheet for sheet in (cost, claims_sheet(found), calibration) if sheet]
    page = _page(results, sections, found, main, cost, calibration, title)
    written = [out / "index.html"]
    for sheet in [*(sheet for section in sections for sheet in section.sheets), *extra]:
        for ending, form in FORMS:
            written.append(out / "tables" / f"{_file_name(sheet.name)}{ending}")
            write_text(written[-1], form(sheet))
    write_text(written[0], page)  # last: a page is there only with its tables
    return written


def _section(results: Results, scores: StudyScores) -> Section:
    """The average first, then all methods side by side, then the data sets."""
    (first, *tables), drawings, found = study_sheets(scores), study_drawings(scores), standings(results, scores)
    if ranking := ranking_sheet(scores, found):
        tables.insert(0, ranking)
    if chart := time_chart(scores, found):
        drawings.append(Drawing("Accuracy against training time", (chart,)))
    return Section(scores.study, title_of(scores.study), [first, *tables], drawings, is_ablation(scores.study))


def _file_name(name: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "-_" else "-" for letter in name)


def _looked_into(studies: Mapping[str, StudyScores]) -> StudyScores | None:
    """The study whose classifiers are examined: base-to-novel, else the first that was planned."""
    return next((studies[study] for study in (*STUDIES, *studies) if study in studies), None)


def _cost(results: Results) -> Sheet | None:
    path = results.folder / COST_FILE
    if not path.is_file():
        return None
    try:
        return cost_sheet(read_part(path, CostTable, what="cost measurements"))
    except MmrlError as error:
        results.damaged.append(str(error))
        return None


def _page(
    results: Results, sections: list[Section], found: list[Claim], main: StudyScores | None, cost: Sheet | None,
    calibration: Sheet | None, title: str | None,
) -> str:  # fmt: skip
    environment = Environment(
        loader=PackageLoader("mmrl.reports", "page"), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {
        "main_text": sheets.main_text, "small_text": sheets.small_text, "sort_value": _sort_value,
        "swatch": _swatch, "download": _download, "file_name": lambda sheet: _file_name(sheet.name),
    }  # fmt: skip
    reliability = list(_reliability(main)) if main else []
    confusions = list(_confusions(main)) if main else []
    trainings = list(_trainings(results, main)) if main else []
    problems = [problem for problem in _problems(results) if problem[3]]
    studies = [(section.id, section.title.removeprefix("Ablation: ")) for section in sections]
    parts = [("summary", "Summary"), ("claims", "Claims of the paper"), *studies]
    flags = (("cost", "Cost", cost), ("calibration", "Calibration", calibration),
             ("confusions", "Confusions", confusions), ("training", "Training curves", trainings), ("problems", "Problems", problems),
             ("reproduce", "How to reproduce", True))  # fmt: skip
    page = files("mmrl.reports").joinpath("page")
    return environment.get_template("report.html.j2").render(
        title=title or f"Results of {results.folder.resolve().name}", css=page.joinpath("report.css").read_text(encoding="utf-8"),
        js=page.joinpath("report.js").read_text(encoding="utf-8"), facts=list(_facts(results)), progress=_progress(results),
        mini=any(plan.suite == "mini" for plan in results.plans.values()), studies=sections, cost=cost, claims=found,
        claims_note=claims_sheet(found).notes[0], calibration=calibration, reliability=reliability, confusions=confusions,
        trainings=trainings, problems=problems, commands=list(dict.fromkeys(_commands(results))),
        sections=[*parts, *((id_, name) for id_, name, there in flags if there)],
    )  # fmt: skip


def _sort_value(cell: TableCell) -> Markup:
    printed = cell.paper if isinstance(cell, Measure) and cell.arm.paper_only else None
    value = printed.value if printed else getattr(cell, "mean", cell)
    return Markup("") if value is None or isinstance(value, str) else Markup(' data-value="{}"').format(repr(value))


def _download(sheet: Sheet) -> list[tuple[str, Markup]]:
    """The files of a table as links that hold them, so that the page is one file."""
    kinds = {".csv": "text/csv", ".tex": "application/x-tex", ".md": "text/markdown"}
    forms = sorted(FORMS, key=lambda form: list(kinds).index(form[0]))
    return [(ending[1:], Markup(f"data:{kinds[ending]};charset=utf-8,{quote(form(sheet))}")) for ending, form in forms]


def _swatch(series: int) -> Markup:
    return Markup(svg.swatch(series))


def _commands(results: Results) -> Iterator[str]:
    yield from (line for plan in results.plans.values() for line in plan.command.splitlines())
    yield f"mmrl report {shlex.quote(results.folder.resolve().name)} --out report"


def _facts(results: Results) -> Iterator[tuple[str, str]]:
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
    yield "this page", f"by mmrl {__version__}"


def _listed(values: Iterable[str]) -> str:
    return "; ".join(dict.fromkeys(values))


def _commit(place: Where) -> str:
    return f"{place.commit[:12]}{' with uncommitted changes' if place.dirty else ''}" if place.commit else "installed package"


def _progress(results: Results) -> Sheet:
    """Scores by state, for each study."""
    locks = held_locks(results.folder)
    rows: list[tuple[TableCell, ...]] = []
    for study, plan in results.plans.items():
        states = [state for _, state in slot_states(results, plan, locks)]
        rows.append((title_of(study), *(states.count(state) for state in STATES), len(states)))
    return Sheet("progress", "Scores, done and missing", ("study", *STATES, "all"), tuple(rows), bold=False, files=False)


def _problems(results: Results) -> Iterator[tuple[str, str, str, list[str]]]:
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


def _reliability(scores: StudyScores) -> Iterator[tuple[str, Drawing]]:
    charts: dict[str, list[str]] = {}
    for dataset, _, label, tests in _tested(scores):
        charts.setdefault(dataset, []).append(diagnostics.reliability(label, diagnostics.pooled([test.scores for test in tests])))
    for dataset, drawn in charts.items():
        if any(drawn):
            yield dataset, Drawing("", tuple(filter(None, drawn)))


def _confusions(scores: StudyScores) -> Iterator[tuple[str, Drawing, Sheet | None]]:
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
            name = _file_name(f"confused-{dataset}")
            sheet = Sheet(name, "Commonest mistakes", heads, tuple(rows[dataset]), group=0, bold=False, files=False)
            yield dataset, Drawing("", tuple(drawn)), sheet if sheet.rows else None


def _trainings(results: Results, scores: StudyScores) -> Iterator[tuple[str, list[Drawing]]]:
    drawings: dict[str, dict[str, Drawing]] = {}
    for _, arm, _, tests in _tested(scores):
        training = results.run_of[tests[0].key].training
        name = Arms(scores).name(arm)
        if training and training.history and name not in drawings.setdefault(training.dataset, {}):
            charts, series = diagnostics.training(name, training.history)
            drawings[training.dataset][name] = Drawing(f"{name} on {training.dataset}, seed {training.seed}", tuple(charts), tuple(series))
    yield from ((dataset, list(drawn.values())) for dataset, drawn in drawings.items() if drawn)
