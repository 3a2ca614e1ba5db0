"""`mmrl methods`: what can be trained, and every option."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import RenderableType


def methods(
    names: list[str] = typer.Argument(None, metavar="[NAME]...", help="Show these methods with all their options."),
    options: bool = typer.Option(False, "--options", help="Show all methods with all their options."),
    as_json: bool = typer.Option(False, "--json", help="Print JSON, with all options."),
) -> None:
    """List the methods, or some of them with their options."""
    import json

    from rich.console import Console

    from mmrl import methods as registry

    about: dict[str, dict[str, Any]] = {
        name: {
            "title": cls.title,
            "summary": cls.summary,
            "open_vocabulary": cls.open_vocabulary(cls.Options()),
            "trained_by": cls.trained_by(),
            "source": cls.source,
            "options": {
                option: {"default": field.default, "type": str(field.annotation), "description": field.description}
                for option, field in cls.Options.model_fields.items()
            },
        }
        for name in names or registry.names()
        for cls in (registry.get(name),)
    }
    if as_json:
        typer.echo(json.dumps(about, indent=2))
        return
    console = Console(highlight=False)
    for each in _in_full(about) if names or options else _in_short(about):
        console.print(each)


def _in_short(about: dict[str, dict[str, Any]]) -> Iterator[RenderableType]:
    from rich.table import Column, Table
    from rich.text import Text

    heads = (Column("method", no_wrap=True), "what it is", "new classes", Column("trained by", no_wrap=True), "paper")
    table = Table(*heads, box=None, padding=(0, 2, 0, 0))
    for name, entry in about.items():
        new = "yes" if entry["open_vocabulary"] else "no"
        where = entry["source"].rpartition(", ")[2]  # without the authors, for narrow terminals
        table.add_row(Text(name), Text(entry["summary"]), new, entry["trained_by"], Text(where))
    yield table
    yield "New classes: whether it also classifies among classes that it was not trained on. `mmrl methods NAME` lists its options."


def _in_full(about: dict[str, dict[str, Any]]) -> Iterator[RenderableType]:
    from rich.markup import escape
    from rich.table import Table
    from rich.text import Text

    for name, entry in about.items():
        yield f"[bold]{escape(name)}[/bold]  {escape(entry['summary'])} ({escape(entry['source'])})"
        if not entry["open_vocabulary"]:
            yield "knows only the classes it is trained on"
        if entry["options"]:
            table = Table("option", "default", "meaning", box=None, padding=(0, 2))
            for option, field in entry["options"].items():
                table.add_row(option, Text(str(field["default"])), Text(field["description"] or ""))
            yield table
        yield ""
    yield "Set an option with --set, for example: mmrl train --method mmrl --set lam=0.5 --set first_layer=4"
