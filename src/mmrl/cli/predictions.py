"""What `mmrl predict` prints: tables for people, JSON and CSV for programs, as it comes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from mmrl.trust.rejection import UNKNOWN

if TYPE_CHECKING:
    from rich.table import Table

    from mmrl.bulk.answers import Answer
    from mmrl.bulk.forms import Form

ROWS = 1000  # images of a table: of more, there are several


def print_lines(form: Form, answers: Iterable[Sequence[Answer]]) -> None:
    """Print the answers as they come: each block is out before the next is computed."""
    head = form.head
    for block in answers:
        print((head + b"".join(map(form.lines, block))).decode(), end="", flush=True)
        head = b""


def print_tables(answers: Iterable[Sequence[Answer]]) -> None:
    """Print the answers as a table, or of very many images as several."""
    from rich.console import Console

    for some in _gathered(answers):
        Console().print(as_table(some))


def _gathered(answers: Iterable[Sequence[Answer]]) -> Iterator[list[Answer]]:
    some: list[Answer] = []
    for block in answers:
        some += block
        if len(some) >= ROWS:
            yield some
            some = []
    if some:
        yield some


def as_table(answers: Sequence[Answer]) -> Table:
    from rich.table import Table
    from rich.text import Text

    asked = [name for name in ("score", "set") if any(name in each.more for each in answers)]
    table = Table("image", "class", "probability", "trained", *asked, box=None, padding=(0, 2))
    for each in answers:
        more = {name: Text(", ".join(value) if isinstance(value, list) else f"{value:.6g}") for name, value in each.more.items()}
        rows = [(Text(found.name), f"{found.probability:.1%}", "yes" if found.trained else "no") for found in each.ranked]
        rows = [(Text(UNKNOWN, "bold"), "", ""), *rows] if each.unknown else rows
        for i, row in enumerate(rows):
            first = i == 0  # as Text, since rich would read brackets in names as markup
            table.add_row(Text(each.image if first else ""), *row, *(more.get(name, "") if first else "" for name in asked))
    return table
