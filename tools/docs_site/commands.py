"""The reference of the command, written from what `mmrl VERB --help` prints, so that it is never older than the program."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

HEAD = """# Commands

Every verb and option of `mmrl`, as `mmrl VERB --help` prints them. `--plugin FILE.py` may stand before or behind any verb.

"""


def _line(text: str) -> str:
    return re.sub(r"\s+", " ", text).strip()


def _table(head: str, rows: list[tuple[str, str]]) -> list[str]:
    """Rows of two columns, or nothing."""
    found = [f"| `{_line(name)}` | {_line(about).replace('|', '&#124;')} |" for name, about in rows]
    return [f"| {head} | meaning |", "| --- | --- |", *found, ""] if found else []


def _section(name: str, command: Any, context: Any) -> str:
    usage = _line(command.get_usage(context)).removeprefix("Usage: ")
    paragraphs = [_line(part) for part in (command.help or "").split("\n\n")]
    records: dict[str, list[tuple[str, str]]] = {"argument": [], "option": []}
    for parameter in command.get_params(context):
        if (record := parameter.get_help_record(context)) is not None:
            records[parameter.param_type_name].append(record)
    lines = [f"## {name}", "", *(part + "\n" for part in paragraphs), "```text", usage, "```", ""]
    return "\n".join([*lines, *_table("argument", records["argument"]), *_table("option", records["option"])]) + "\n"


def _verbs(name: str, command: Any, parent: Any) -> Iterator[str]:
    """The sections of a verb, or of all verbs of a group."""
    context = command.context_class(command, info_name=name.rpartition(" ")[2], parent=parent)
    if not hasattr(command, "commands"):
        yield _section(name, command, context)
        return
    for verb, inner in command.commands.items():
        yield from _verbs(f"{name} {verb}", inner, context)


def page() -> str:
    """The whole page, in Markdown."""
    import typer

    from mmrl.cli.main import app

    return HEAD + "\n".join(_verbs("mmrl", typer.main.get_command(app), None))
