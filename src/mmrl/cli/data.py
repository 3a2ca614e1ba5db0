"""`mmrl data`: the datasets."""

from __future__ import annotations

import typer

from mmrl.cli import data_check, data_prepare

app = typer.Typer(help="Datasets.", no_args_is_help=True)
app.command("check")(data_check.check)
app.command("prepare")(data_prepare.prepare)


@app.callback()
def _data() -> None:
    """Datasets."""


@app.command("list")
def list_datasets(as_json: bool = typer.Option(False, "--json", help="Print JSON.")) -> None:
    """List the datasets that can be given to --data by name."""
    import json
    from dataclasses import asdict

    from rich.console import Console
    from rich.markup import escape
    from rich.padding import Padding

    from mmrl.data import dataset_names, describe

    entries = [describe(name) for name in dataset_names()]
    if as_json:
        typer.echo(json.dumps([asdict(info) for info in entries], indent=2))
        return
    console = Console(highlight=False)
    for below_root, heading in (
        (False, "Drawn by the package, or registered:"),
        (True, "Read from below the data root (--root, or DATA):"),
    ):
        console.print(heading)
        for info in (info for info in entries if info.needs_root == below_root):
            counts = " / ".join("-" if count is None else str(count) for count in (info.train, info.val, info.test))
            sizes = f"{info.n_classes} classes, {counts} images to train, validate, test"
            console.print(f"[bold]{escape(info.name)}[/bold]  {sizes}; prompt '{escape(str(info.template))}'")
            console.print(Padding(escape(info.summary), (0, 0, 0, 4)))
    typer.echo("--data also takes a folder with one subfolder of images a class, a CSV or JSONL file (path, label and perhaps split),")
    typer.echo("a split file (JSON), and a folder that the library 'datasets' saved.")
