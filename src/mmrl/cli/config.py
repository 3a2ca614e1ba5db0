"""`mmrl config`: the values of a run and where they come from."""

from __future__ import annotations

import typer

app = typer.Typer(help="Values of a run.", no_args_is_help=True)


@app.callback()
def _config() -> None:
    """Values of a run."""


@app.command("show")
def show(
    method: str = typer.Option("mmrl", "--method"),
    data: str = typer.Option(None, "--data", help="A name of `mmrl data list`, or data of your own, which has no published values."),
    protocol: str = typer.Option("base-to-novel", "--protocol"),
    shots: int = typer.Option(16, "--shots", min=0, help="Training images a class; 0 for all. Some published values depend on it."),
    set_: list[str] = typer.Option([], "--set", help="KEY=VALUE, as for `mmrl train`."),
    as_json: bool = typer.Option(False, "--json", help="Print JSON."),
) -> None:
    """Show every value of a run and where it came from."""
    import json

    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from mmrl import methods, recipes
    from mmrl.cli.options import parse_settings
    from mmrl.data import dataset_names
    from mmrl.data.catalogue import no_such_data
    from mmrl.engine import FitConfig, settings
    from mmrl.files import user_path

    if data is not None and data not in dataset_names() and not user_path(data).exists():
        raise no_such_data(data)
    cls = methods.get(method)
    resolved = settings(method, protocol=protocol, dataset=data, shots=shots, overrides=parse_settings(set_), source="command line")
    methods.make_options(cls, resolved.method)
    FitConfig(**resolved.fit)
    if as_json:
        typer.echo(json.dumps(resolved.to_json(), indent=2))
        return
    table = Table("part", "name", "value", "where from", box=None, padding=(0, 2))
    for setting in resolved.settings:
        table.add_row(setting.section, setting.key, Text(str(setting.value)), Text(setting.source))
    console = Console()
    console.print(table)
    about = recipes.publication(method, protocol, cls.recipe)
    if about is not None:
        lines = [f"not published for {protocol}; used instead: {about.used_instead}"] if not about.published else []
        console.print(*lines, *(f"published with: {fact}" for fact in about.facts), sep="\n", markup=False, highlight=False)
