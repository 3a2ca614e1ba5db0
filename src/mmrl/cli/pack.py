"""`mmrl pack`: the runs of a results folder in a handful of files."""

from __future__ import annotations

from pathlib import Path

import typer


def pack(results: Path = typer.Argument(..., help="Results folder in which nothing is being computed.")) -> None:
    """Put the runs of a results folder into one JSON Lines file a study, to keep or to commit; every command reads them as before."""
    from mmrl.engine.grid import ResultsFolder
    from mmrl.reports.results import check_format

    check_format(results)  # a wrong name must not leave a new folder behind
    for study, count in ResultsFolder(results).pack().items():
        typer.echo(f"{results / 'packed' / study}.jsonl: {count} runs")
