"""`mmrl methods`: what can be trained, and every option."""

from __future__ import annotations

import typer


def methods(
    name: str = typer.Argument(None, help="Show the options of this method alone."),
    as_json: bool = typer.Option(False, "--json", help="Print JSON."),
) -> None:
    """List the methods and their options."""
    import json
    from typing import Any

    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table
    from rich.text import Text

    from mmrl import methods as registry

    chosen = [name] if name else sorted(registry.names())
    about: dict[str, Any] = {
        key: {
            "title": cls.title,
            "summary": cls.summary,
            "open_vocabulary": cls.open_vocabulary(cls.Options()),
            "source": cls.source,
            "options": {
                option: {"default": field.default, "type": str(field.annotation), "description": field.description}
                for option, field in cls.Options.model_fields.items()
            },
        }
        for key in chosen
        for cls in (registry.get(key),)
    }
    if as_json:
        typer.echo(json.dumps(about, indent=2))
        return
    console = Console()
    for key, entry in about.items():
        console.print(f"[bold]{escape(key)}[/bold]  {escape(entry['summary'])} ({escape(entry['source'])})", highlight=False)
        if not entry["open_vocabulary"]:
            console.print("knows only the classes it is trained on", highlight=False)
        if entry["options"]:
            table = Table("option", "default", "meaning", box=None, padding=(0, 2))
            for option, field in entry["options"].items():
                table.add_row(option, Text(str(field["default"])), Text(field["description"] or ""))
            console.print(table)
        console.print()
    console.print("Set an option with --set, for example: mmrl train --method mmrl --set lam=0.5 --set first_layer=4", highlight=False)
