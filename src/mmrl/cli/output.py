"""Output shared by several commands."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from mmrl.errors import Notice

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table

    from mmrl.reports.records import Scores
    from mmrl.reports.sheets import Sheet


@contextmanager
def quiet_warnings() -> Iterator[None]:
    """Hide Python warnings that a command reports itself."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.filterwarnings("always", category=Notice)
        yield


def print_json(content: Any) -> None:
    """Print strict JSON on one line."""
    print(json.dumps(content, ensure_ascii=False, allow_nan=False))


def percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f}"


def scores_table(rows: Sequence[tuple[str, Scores, Scores | None]], method: str, raw: Sequence[float | None] = ()) -> Table:
    """Scores of `method` and zero-shot, in percent; one line per method and list of classes. Where there are any, `raw` are the
    calibration errors of each row before its calibration."""
    from rich.table import Table
    from rich.text import Text

    before = [("raw ECE", each) for each in raw if each is not None]
    space = 1 if before else 2  # with one column more, two would break a name at 80 columns
    table = Table("tested on", "method", "top-1", "top-5", "macro", "ECE", *dict(before), "images", box=None, padding=(0, space))
    for at, (name, adapted, zero_shot) in enumerate(rows):
        beside = [] if zero_shot is None or method == "zero-shot" else [("zero-shot", zero_shot)]
        for label, scores in [(method, adapted), *beside]:
            cells = [percent(value) for value in (scores.top1, scores.top5, scores.macro, scores.ece)]
            cells += [percent(raw[at] if scores is adapted else None)] if before else []
            table.add_row(Text(name), label, *cells, str(scores.count))
    return table


def sheet_table(sheet: Sheet) -> Group:
    """A table of the report for the terminal: the best of each column in bold; below a mean, the number of each seed and the paper's.

    Its title and notes are as wide as the terminal, however narrow the table is.
    """
    from rich.console import Group
    from rich.markup import escape
    from rich.table import Table
    from rich.text import Text

    from mmrl.reports.measures import Measure
    from mmrl.reports.sheets import main_text, small_text

    table = Table()
    for head, number in zip(sheet.heads, sheet.numeric, strict=True):
        table.add_column(escape(head), justify="right" if number else "left", no_wrap=not number, overflow="fold")
    best = sheet.best()
    for i, row in enumerate(sheet.rows):
        cells = []
        if i in sheet.ruled:
            table.add_section()
        for j, cell in enumerate(row):
            text = escape(main_text(cell))
            seeds = [f"{value:.2f}" for value in cell.by_seed.values()] if isinstance(cell, Measure) else []
            below = [" ".join(seeds)] if len(seeds) > 1 else []
            cells.append("\n".join([f"[bold]{text}[/bold]" if (i, j) in best else text, *map(escape, (*below, *small_text(cell)))]))
        table.add_row(*cells, style="dim" if sheet.paper_only(i) else None)
    return Group(Text(sheet.title, "table.title"), table, *(Text(note, "table.caption") for note in sheet.all_notes))
