"""What several verbs print."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table

    from mmrl.reports.records import Scores


@contextmanager
def quiet_warnings() -> Iterator[None]:
    """Hold back Python warnings that a verb prints in its own words."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f}"


def scores_table(rows: Sequence[tuple[str, Scores, Scores | None]], method: str) -> Table:
    """Scores of `method` beside zero-shot, in percent; one line a method and list of classes."""
    from rich.table import Table

    table = Table("tested on", "method", "top-1", "top-5", "macro", "ECE", "images", box=None, padding=(0, 2))
    for name, adapted, zero_shot in rows:
        beside = [] if zero_shot is None or method == "zero-shot" else [("zero-shot", zero_shot)]
        for label, scores in [(method, adapted), *beside]:
            cells = (percent(scores.top1), percent(scores.top5), percent(scores.macro), percent(scores.ece))
            table.add_row(name, label, *cells, str(scores.count))
    return table
