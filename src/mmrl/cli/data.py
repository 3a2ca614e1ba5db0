"""`mmrl data`: the datasets."""

from __future__ import annotations

import typer

app = typer.Typer(help="Datasets.", no_args_is_help=True)


@app.callback()
def _data() -> None:
    """Datasets."""


@app.command("list")
def list_datasets(as_json: bool = typer.Option(False, "--json", help="Print JSON.")) -> None:
    """List the datasets that can be given to --data by name."""
    import json
    from dataclasses import asdict

    from rich.console import Console
    from rich.table import Column, Table

    from mmrl.data import dataset_names, describe

    entries = [describe(name) for name in dataset_names()]
    if as_json:
        typer.echo(json.dumps([asdict(info) for info in entries], indent=2))
        return
    table = Table(Column("name", no_wrap=True), "classes", "train / val / test", "prompt", "what it is", box=None, padding=(0, 2))
    for info in entries:
        table.add_row(info.name, str(len(info.classes)), f"{info.train} / {info.val} / {info.test}", info.template, info.summary)
    Console().print(table)
    typer.echo("A folder with one subfolder of images a class works as --data, too.")
