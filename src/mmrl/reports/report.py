"""The report of results folders: one self-contained page, and every table as Markdown, LaTeX and CSV."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from urllib.parse import quote

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from mmrl.errors import MmrlError
from mmrl.files import sweep, user_path, write_text
from mmrl.reports import details, sheets, svg
from mmrl.reports.claims import Claim, claims, claims_sheet
from mmrl.reports.cost import COST_FILE, CostTable
from mmrl.reports.figures import Drawing, study_drawings
from mmrl.reports.folders import Folder, file_name, open_folders
from mmrl.reports.measures import Measure, StudyScores
from mmrl.reports.open_world import open_world_drawings, reliability_drawings
from mmrl.reports.own_claims import OWN_NOTE
from mmrl.reports.paired import Side
from mmrl.reports.plans import OPEN_WORLD, ZERO_SHOT, is_ablation
from mmrl.reports.ranking import ranking_sheet, shared_targets, side_by_side, standings, time_chart
from mmrl.reports.results import ORDER, read_part
from mmrl.reports.sheets import Sheet, TableCell
from mmrl.reports.status import STATES
from mmrl.reports.tables import Arms, calibration_sheet, cost_sheet, study_sheets, title_of
from mmrl.version import __version__

FORMS = ((".md", sheets.markdown), (".tex", sheets.latex), (".csv", sheets.tidy_csv))


@dataclass(frozen=True)
class Section:
    """One study on the page. `folded`: all tables but the first are collapsed. `more`: charts that are, by name."""

    id: str
    title: str
    sheets: list[Sheet]
    drawings: list[Drawing]
    folded: bool
    more: tuple[tuple[str, Drawing], ...] = ()


@dataclass(frozen=True)
class Verdicts:
    """Claims of one kind. `title`: '' where there are no others."""

    title: str
    note: str
    claims: Sequence[Claim]


def build_report(results_folder: Path | str, out: Path | str, *, title: str | None = None) -> list[Path]:
    """Write index.html and tables/ into `out`; the files written, the page first.

    Raises:
        UsageError: no results folder. MmrlError: it is of another version, nothing in it is done, or `out` cannot be written to.
    """
    return write_report(open_folders([results_folder]), out, title=title)


def write_report(folders: Sequence[Folder], out: Path | str, *, title: str | None = None, own: Sequence[Claim] = ()) -> list[Path]:
    """The same of several folders: studies of each, and side by side those that they share.

    Args:
        own: claims of the user's, as `own_claims` decides them.

    Raises:
        MmrlError: `out` cannot be written to.
    """
    out = user_path(out)
    for place in (out, out / "tables"):
        sweep(place)
    sections = [*_shared(folders), *(_section(folder, scores) for folder in folders for scores in folder.studies.values())]
    found = [(folder, claims(folder.results, folder.studies)) for folder in folders]
    costs = [sheet for folder in folders if (sheet := _cost(folder))]
    calibrations = [sheet for folder in folders if (sheet := _calibration(folder))]
    rows = [("", claim) for claim in own] + [(folder.label, claim) for folder, each in found for claim in each]
    judged = claims_sheet(rows)
    extra = [*costs, replace(judged, notes=(*judged.notes, *([OWN_NOTE] if own else []))), *calibrations]
    page = _page(folders, sections, _verdicts(found, own), costs, calibrations, title)
    written = [out / "index.html"]
    for sheet in [*(sheet for section in sections for sheet in section.sheets), *extra]:
        for ending, form in FORMS:
            written.append(out / "tables" / f"{file_name(sheet.name)}{ending}")
            write_text(written[-1], form(sheet))
    write_text(written[0], page)  # last: a page is there only with its tables
    return written


def _of(folder: Folder, sheet: Sheet) -> Sheet:
    """The folder's, told apart from those of others."""
    return replace(sheet, name=folder.file(sheet.name), title=folder.named(sheet.title))


def _section(folder: Folder, scores: StudyScores) -> Section:
    """The average first, then all methods side by side, then the data sets."""
    if scores.study == OPEN_WORLD:
        made, drawings = [_of(folder, sheet) for sheet in study_sheets(scores)], open_world_drawings(scores)
        more = tuple(reliability_drawings(scores))
        return Section(folder.file(scores.study), folder.named(title_of(scores.study)), made, drawings, False, more)
    (first, *tables), drawings, found = study_sheets(scores), study_drawings(scores), standings(folder.results, scores)
    if ranking := ranking_sheet(scores, found):
        tables.insert(0, ranking)
    if chart := time_chart(scores, found):
        drawings.append(Drawing("Accuracy against training time", (chart,), wide=True))
    own = [_of(folder, sheet) for sheet in (first, *tables)]
    return Section(folder.file(scores.study), folder.named(title_of(scores.study)), own, drawings, is_ablation(scores.study))


def _shared(folders: Sequence[Folder]) -> Iterator[Section]:
    """All methods of the folders that have a study, for each study that several have."""
    order = dict.fromkeys((*ORDER, *(study for folder in folders for study in folder.studies)))
    for study in order:
        there = [folder for folder in folders if study in folder.studies]
        if len(there) < 2:
            continue
        scores, targets = there[0].studies[study], shared_targets([folder.studies[study] for folder in there])
        found = side_by_side(list(_sides(there, study)))
        if sheet := ranking_sheet(scores, found):
            title = f"{title_of(study)}: {' and '.join(folder.label for folder in there)} side by side"
            note = f"Averages and ranks are over the data sets that all the folders have: {', '.join(targets)}."
            ranking = replace(sheet, name=f"{study}-side-by-side", title=title, notes=(note, *sheet.notes))
            chart = time_chart(scores, found)
            drawings = [Drawing("Accuracy against training time", (chart,), wide=True)] if chart else []
            yield Section(study, f"{title_of(study)}, side by side", [ranking], drawings, False)


def _sides(there: Sequence[Folder], study: str) -> Iterator[Side]:
    """The arms of the study in all folders, with the folder's name where several have the same; zero-shot of the same tests once."""
    arms = [(folder, folder.studies[study], arm) for folder in there for arm in folder.studies[study].arms]
    named = Arms(arms[0][1], [arm for _, _, arm in arms])
    names = [named.name(arm) for _, _, arm in arms]
    seen: list[frozenset[str]] = []
    kept = []
    for (folder, scores, arm), name in zip(arms, names, strict=True):
        if arm.method == ZERO_SHOT:
            classes = [metric for metric in ("all", "base", "novel") if metric in scores.metrics]
            keys = frozenset(test.key for data in scores.datasets for each in classes for test in scores.tests(arm, data, each))
            if keys in seen:
                continue
            seen.append(keys)
        kept.append((folder, scores, arm, name))
    names = [name for *_, name in kept]
    for folder, scores, arm, name in kept:
        yield Side(folder.results, scores, arm, name if names.count(name) == 1 else f"{name} ({folder.label})")


def _cost(folder: Folder) -> Sheet | None:
    path = folder.results.folder / COST_FILE
    if not path.is_file():
        return None
    try:
        sheet = cost_sheet(read_part(path, CostTable, what="cost measurements"))
    except MmrlError as error:
        folder.results.damaged.append(str(error))
        return None
    return sheet and _of(folder, sheet)


def _calibration(folder: Folder) -> Sheet | None:
    sheet = calibration_sheet(folder.main) if folder.main else None
    return sheet and _of(folder, sheet)


def _verdicts(found: Sequence[tuple[Folder, Sequence[Claim]]], own: Sequence[Claim]) -> list[Verdicts]:
    """The user's first; then the paper's, of each folder where one of them was run."""
    note = claims_sheet([]).notes[0]
    run = [(folder, each) for folder, each in found if any(claim.verdict != "not run" for claim in each)] or found[:1]
    several = bool(own) or len(run) > 1
    papers = [Verdicts(folder.named("Claims of the paper") if several else "", note, each) for folder, each in run]
    return [*([Verdicts("Your claims", OWN_NOTE, own)] if own else []), *papers]


def _page(
    folders: Sequence[Folder], sections: list[Section], verdicts: list[Verdicts], cost: list[Sheet], calibration: list[Sheet],
    title: str | None,
) -> str:  # fmt: skip
    environment = Environment(
        loader=PackageLoader("mmrl.reports", "page"), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {
        "main_text": sheets.main_text, "small_text": sheets.small_text, "sort_value": _sort_value,
        "swatch": _swatch, "download": _download, "file_name": lambda sheet: file_name(sheet.name),
    }  # fmt: skip
    mains = [(folder, folder.main) for folder in folders if folder.main]
    reliability = [(folder.named(name), *more) for folder, main in mains for name, *more in details.reliability(main)]
    confusions = [(folder.named(name), *more) for folder, main in mains for name, *more in details.confusions(main)]
    trainings = [(folder.named(name), *more) for folder, main in mains for name, *more in details.trainings(folder.results, main)]
    problems = _problems(folders)
    studies = [(section.id, section.title.replace("Ablation: ", "")) for section in sections]
    heading = "Claims" if len(verdicts) > 1 else "Claims of the paper"
    parts = [("summary", "Summary"), ("claims", heading), *studies]
    flags = (("cost", "Cost", cost), ("calibration", "Calibration", calibration),
             ("confusions", "Confusions", confusions), ("training", "Training curves", trainings), ("problems", "Problems", problems),
             ("reproduce", "How to reproduce", True))  # fmt: skip
    page = files("mmrl.reports").joinpath("page")
    names = [_name(folder) for folder in folders]
    facts = [(folder.label, list(details.facts(folder.results))) for folder in folders]
    facts[-1][1].append(("this page", f"by mmrl {__version__}"))
    return environment.get_template("report.html.j2").render(
        title=title or f"Results of {' and '.join(names)}", css=page.joinpath("report.css").read_text(encoding="utf-8"),
        js=page.joinpath("report.js").read_text(encoding="utf-8"), facts=facts, progress=_progress(folders),
        mini=any(plan.suite == "mini" for folder in folders for plan in folder.results.plans.values()), studies=sections, cost=cost,
        verdicts=verdicts, claims_title=heading, calibration=calibration, reliability=reliability, confusions=confusions,
        trainings=trainings, problems=problems, commands=list(dict.fromkeys(_commands(folders, verdicts))),
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


def _name(folder: Folder) -> str:
    return folder.label or folder.results.folder.resolve().name


def _commands(folders: Sequence[Folder], verdicts: Sequence[Verdicts]) -> Iterator[str]:
    yield from (line for folder in folders for plan in folder.results.plans.values() for line in plan.command.splitlines())
    own = [f"--claim {shlex.quote(claim.text)}" for each in verdicts if each.note == OWN_NOTE for claim in each.claims]
    yield " ".join(["mmrl report", *(shlex.quote(_name(folder)) for folder in folders), "--out report", *own])


def _progress(folders: Sequence[Folder]) -> Sheet:
    """Scores by state, for each study."""
    several = len(folders) > 1
    rows = [((folder.label, *row) if several else row) for folder in folders for row in details.progress(folder.results)]
    heads = (*(("results",) if several else ()), "study", *STATES, "all")
    return Sheet("progress", "Scores, done and missing", heads, tuple(rows), bold=False, files=False)


def _problems(folders: Sequence[Folder]) -> list[tuple[str, str, str, list[str]]]:
    """What `details.problems` says of each folder, under one title for each kind; those that there are."""
    joined: dict[str, tuple[str, str, str, list[str]]] = {}
    for folder in folders:
        for kind, name, about, lines in details.problems(folder.results):
            joined.setdefault(kind, (kind, name, about, []))[3].extend(map(folder.named, lines))
    return [problem for problem in joined.values() if problem[3]]
