"""Every `mmrl` command that the documentation shows has a verb, arguments and options that there are. test_docs_run.py runs them."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import click
import pytest
import typer

from mmrl.cli.main import app

ROOT = Path(__file__).parents[2]
PAGES = ["README.md", "CONTRIBUTING.md", "results/mini/README.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))]


def commands(page: str) -> list[str]:
    """The lines of the page's code blocks that start with `mmrl` and stand for themselves."""
    blocks = re.split(r"^```.*\n", (ROOT / page).read_text(encoding="utf-8"), flags=re.MULTILINE)[1::2]
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    return [line for line in lines if line.startswith("mmrl ") and "->" not in line and "..." not in line]


SHOWN = [(page, line) for page in PAGES for line in commands(page)]


def test_they_are_found() -> None:
    assert len(SHOWN) > 30 and any(page == "docs/plugins.md" for page, _ in SHOWN)


@pytest.mark.parametrize(("page", "line"), SHOWN)
def test_shown_commands_are_there(page: str, line: str) -> None:
    command: Any = typer.main.get_command(app)
    words = shlex.split(line, comments=True)[1:]
    words = [word for at, word in enumerate(words) if word != "--plugin" and words[at - 1] != "--plugin"]
    context = click.Context(command, info_name="mmrl")
    while hasattr(command, "commands"):
        verb = words.pop(0)
        assert verb in command.commands, f"{page}: {line}: no verb {verb}"
        command = command.commands[verb]
    command.make_context(command.name, words, parent=context)  # raises a usage error
