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
    from rich.padding import Padding

    from mmrl.data import dataset_names, describe

    entries = [describe(name) for name in dataset_names()]
    if as_json:
        typer.echo(json.dumps([asdict(info) for info in entries], indent=2))
        return
    console = Console(highlight=False)
    for info in entries:
        sizes = f"{len(info.classes)} classes, {info.train} / {info.val} / {info.test} images to train, validate, test"
        console.print(f"[bold]{info.name}[/bold]  {sizes}; prompt '{info.template}'")
        console.print(Padding(info.summary, (0, 0, 0, 4)))
    typer.echo("A folder with one subfolder of images a class works as --data, too.")
