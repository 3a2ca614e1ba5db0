"""What `mmrl predict` says of each image: as a table, JSON or CSV, on the terminal or in a file."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from mmrl.errors import UsageError

if TYPE_CHECKING:
    from rich.table import Table

    from mmrl.serve.judging import Prediction

COLUMNS = ("image", "rank", "class", "probability", "trained", "error")
FILES = (".csv", ".jsonl")


class Answer(NamedTuple):
    """The classes of an image, likeliest first; or why there are none."""

    image: str
    ranked: Sequence[Prediction]
    error: str = ""


def file_format(path: Path) -> str:
    """The ending of a file that results are written to. Raises UsageError for another than those in `FILES`."""
    if path.suffix.lower() not in FILES:
        raise UsageError(f"--out is {path}; give a file that ends in {' or '.join(FILES)}.")
    return path.suffix.lower()


def as_json_lines(answers: Sequence[Answer]) -> str:
    """One object a line: the image and its predictions, or its error."""
    lines = []
    for each in answers:
        line = {"image": each.image, "predictions": [prediction._asdict() for prediction in each.ranked]}
        lines.append(json.dumps(line | ({"error": each.error} if each.error else {}), ensure_ascii=False))
    return "".join(f"{line}\n" for line in lines)


def as_csv(answers: Sequence[Answer]) -> str:
    """One line for each class that is shown of an image, and one for an image that could not be classified."""
    written = io.StringIO(newline="")
    writer = csv.writer(written, lineterminator="\n")
    writer.writerow(COLUMNS)
    for each in answers:
        for rank, found in enumerate(each.ranked, 1):
            writer.writerow([each.image, rank, found.name, f"{found.probability:.6f}", "yes" if found.trained else "no", ""])
        if each.error:
            writer.writerow([each.image, "", "", "", "", each.error])
    return written.getvalue()


def as_table(answers: Sequence[Answer]) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table("image", "class", "probability", "trained", box=None, padding=(0, 2))
    for each in answers:
        for i, found in enumerate(each.ranked):
            place = Text(each.image if i == 0 else "")  # as Text, since rich would read brackets in names as markup
            table.add_row(place, Text(found.name), f"{found.probability:.1%}", "yes" if found.trained else "no")
    return table


def write(path: Path, answers: Sequence[Answer]) -> None:
    """Write the answers in the format of the file's ending; a name that is not UTF-8 is written escaped.

    Raises:
        UsageError: another ending than those in `FILES`.
        MmrlError: the folder cannot be written to, or the disk is full.
    """
    from mmrl.files import write_bytes

    content = as_csv(answers) if file_format(path) == ".csv" else as_json_lines(answers)
    write_bytes(path, content.encode("utf-8", "backslashreplace"))
