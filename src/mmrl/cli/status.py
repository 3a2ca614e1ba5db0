"""`mmrl status`: how far a results folder is. Needs no torch."""

from __future__ import annotations

from pathlib import Path

import typer


def status(
    results: Path = typer.Argument(..., help="Results folder: the --out of `mmrl bench` or `mmrl ablate`."),
    as_json: bool = typer.Option(False, "--json", help="Print JSON."),
) -> None:
    """Show what is done, running, failed and to do, and about how long the rest takes. Exits with 1 if anything failed."""
    import json

    from rich.console import Console
    from rich.markup import escape
    from rich.table import Column, Table

    from mmrl.reports import status as folder

    found = folder.status(results)
    if as_json:
        typer.echo(json.dumps(found.as_json()))
        raise typer.Exit(int(found.failed))
    console = Console(highlight=False)
    counted = [Column(name, overflow="fold") for name in (*folder.STATES, "all")]
    table = Table(Column("study", no_wrap=True), *counted, box=None, padding=(0, 1))
    for study, counts in (*found.studies.items(), *([("in all", found.total)] if len(found.studies) > 1 else [])):
        table.add_row(escape(study), *(str(counts[state] or "") for state in folder.STATES), str(sum(counts.values())))
    console.print(table if found.studies else "No study is planned here yet.")
    for lock in found.running:
        console.print(
            f"running: {lock['run']} by process {lock.get('pid', '?')} on {lock.get('host', '?')} since {lock.get('since', '?')}",
            markup=False,
        )
    for failure in found.failures:
        console.print(f"{failure.kind}: {failure.what}: {failure.error}", markup=False)
    for message in found.damaged:
        console.print(f"damaged: {message}", markup=False)
    if found.seconds_left is not None:
        console.print(f"about {folder.duration(found.seconds_left)} left")
    raise typer.Exit(int(found.failed))
