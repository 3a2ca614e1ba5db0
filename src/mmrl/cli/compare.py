"""`mmrl compare`: two results folders, or two methods, by differences of the same data sets and seeds. Needs no torch."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from mmrl.reports.measures import StudyScores
    from mmrl.reports.paired import Side
    from mmrl.reports.results import Results


def compare(
    first: str = typer.Argument(..., help="A results folder; with --in, a method, or METHOD:VARIANT as in its tables ('mmrl:lam=2')."),
    second: str = typer.Argument(..., help="What the first is compared with."),
    in_: list[Path] = typer.Option([], "--in", help="Results folder of the two methods; given twice, one for each."),
    study: str = typer.Option(None, "--study", help="This study alone."),
    by_dataset: bool = typer.Option(False, "--by-dataset", help="Each data set on its own, too."),
    as_json: bool = typer.Option(False, "--json", help="Print JSON, a list of comparisons."),
) -> None:
    """Show differences between two folders or two methods, paired by data set and seed, with bootstrap intervals."""
    from dataclasses import asdict

    from rich.console import Console
    from rich.markup import escape
    from rich.table import Column, Table

    from mmrl.cli.output import print_json
    from mmrl.errors import UsageError, unknown
    from mmrl.reports.measures import StudyScores
    from mmrl.reports.paired import compare as compared
    from mmrl.reports.paired import comparison_sheet, methods_meant
    from mmrl.reports.results import Results

    if len(in_) > 2:
        raise UsageError("--in is given more than twice; give one folder, or one for each side.")
    try:
        folders = [Results(path) for path in (in_ or (Path(first), Path(second)))]
    except UsageError as error:
        raise error if in_ else UsageError(f"{error} Two methods of one folder: mmrl compare {first} {second} --in FOLDER.") from error
    one, two = folders[0], folders[-1]
    studies = [each for each in one.plans if each in two.plans and study in (None, each)]
    if study is not None and not studies:
        raise unknown("study", study, [each for each in one.plans if each in two.plans])
    found = []
    for each in studies:
        scores = StudyScores(one, one.plans[each]), StudyScores(two, two.plans[each])
        sides = (one, scores[0]), (two, scores[1])
        pairs = methods_meant(*sides, first, second) if in_ else _folders(one, two, scores)
        found += [made for a, b in pairs for made in compared(a, b, by_dataset=by_dataset)]
    if not found:
        raise UsageError(_nothing(one, two, first, second, bool(in_)))
    if as_json:
        print_json([asdict(each) | {"value": each.value, "verdict": each.verdict} for each in found])
        return
    sheet, console = comparison_sheet(found, first, second), Console(highlight=False)
    table = Table(*(Column(head, overflow="fold") for head in sheet.heads), box=None, padding=(0, 1, 0, 0))
    for row in sheet.rows:
        table.add_row(*(escape(str(cell)) for cell in row))
    console.print(sheet.title, markup=False, soft_wrap=True)
    console.print(table)
    console.print("\n".join(sheet.notes), markup=False)


def _folders(one: Results, two: Results, scores: tuple[StudyScores, StudyScores]) -> Iterator[tuple[Side, Side]]:
    """The same arm in both."""
    from mmrl.reports.paired import Side
    from mmrl.reports.plans import ZERO_SHOT
    from mmrl.reports.tables import Arms

    named = Arms(scores[0])
    for arm in scores[0].arms:
        if arm in scores[1].arms and (arm.method != ZERO_SHOT or len(scores[0].arms) == 1):
            yield Side(one, scores[0], arm, named.name(arm)), Side(two, scores[1], arm, named.name(arm))


def _nothing(one: Results, two: Results, first: str, second: str, methods: bool) -> str:
    """Why there is no pair."""
    for results, wanted in ((one, first), (two, second)):
        arms = {f"{slot.method}{':' if slot.variant else ''}{slot.variant}" for plan in results.plans.values() for slot in plan.slots}
        if methods and wanted not in arms | {arm.partition(":")[0] for arm in arms}:
            return f"{results.folder} has no runs of '{wanted}'. It has: {', '.join(sorted(arms)) or 'none'}."
    return (
        f"{first} and {second} have no two tests of the same study, data set, classes and seed, so there is nothing to compare. "
        "Two methods of one folder: mmrl compare METHOD METHOD --in FOLDER."
    )
