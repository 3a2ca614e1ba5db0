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
    set_: list[str] = typer.Option([], "--set", help="KEY=VALUE, as for `mmrl train`."),
    as_json: bool = typer.Option(False, "--json", help="Print JSON."),
) -> None:
    """Show every value of a run and where it came from."""
    import json

    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from mmrl import methods
    from mmrl.cli.options import parse_settings
    from mmrl.data import dataset_names
    from mmrl.engine import FitConfig, settings
    from mmrl.errors import unknown
    from mmrl.files import user_path

    if data is not None and data not in dataset_names() and not user_path(data).exists():
        raise unknown("data set", data, dataset_names())
    resolved = settings(method, protocol=protocol, dataset=data, overrides=parse_settings(set_), source="command line")
    methods.make_options(methods.get(method), resolved.method)
    FitConfig(**resolved.fit)
    if as_json:
        typer.echo(json.dumps(resolved.to_json(), indent=2))
        return
    table = Table("part", "name", "value", "where from", box=None, padding=(0, 2))
    for setting in resolved.settings:
        table.add_row(setting.section, setting.key, Text(str(setting.value)), setting.source)
    Console().print(table)
