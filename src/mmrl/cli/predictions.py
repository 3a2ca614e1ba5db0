"""What `mmrl predict` says of each image: as a table, JSON or CSV, on the terminal or in a file."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from mmrl.errors import UsageError
from mmrl.trust.rejection import UNKNOWN

if TYPE_CHECKING:
    from rich.table import Table

    from mmrl.classifier.judging import Prediction

COLUMNS = ("image", "rank", "class", "probability", "trained", "error")
MORE = ("score", "unknown", "set")  # where it was asked for
FILES = (".csv", ".jsonl")


class Answer(NamedTuple):
    """The classes of an image, likeliest first; or why there are none. What was not asked for is None.

    Attributes:
        score, unknown: how known it looks, and whether it is rejected.
        within: its prediction set.
    """

    image: str
    ranked: Sequence[Prediction]
    error: str = ""
    score: float | None = None
    unknown: bool | None = None
    within: Sequence[str] | None = None

    @property
    def more(self) -> dict[str, Any]:
        """What was asked for, by its name."""
        values = zip(MORE, (self.score, self.unknown, None if self.within is None else list(self.within)), strict=True)
        return {name: value for name, value in values if value is not None}


def file_format(path: Path) -> str:
    """The ending of a file that results are written to. Raises UsageError for another than those in `FILES`."""
    if path.suffix.lower() not in FILES:
        raise UsageError(f"--out is {path}; give a file that ends in {' or '.join(FILES)}.")
    return path.suffix.lower()


def as_json_lines(answers: Sequence[Answer]) -> str:
    """One object a line: the image and its predictions, or its error."""
    lines = []
    for each in answers:
        line = {"image": each.image, "predictions": [prediction._asdict() for prediction in each.ranked], **each.more}
        lines.append(json.dumps(line | ({"error": each.error} if each.error else {}), ensure_ascii=False))
    return "".join(f"{line}\n" for line in lines)


def as_csv(answers: Sequence[Answer]) -> str:
    """One line for each class that is shown of an image, and one for an image that could not be classified."""
    written = io.StringIO(newline="")
    writer = csv.writer(written, lineterminator="\n")
    asked = [name for name in MORE if any(name in each.more for each in answers)]
    writer.writerow([*COLUMNS, *asked])
    for each in answers:
        more = [_cell(each.more.get(name)) for name in asked]
        for rank, found in enumerate(each.ranked, 1):
            writer.writerow([each.image, rank, found.name, f"{found.probability:.6f}", _cell(found.trained), "", *more])
        if each.error:
            writer.writerow([each.image, "", "", "", "", each.error, *more])
    return written.getvalue()


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    return ";".join(value or ())


def as_table(answers: Sequence[Answer]) -> Table:
    from rich.table import Table
    from rich.text import Text

    asked = [name for name in ("score", "set") if any(name in each.more for each in answers)]
    table = Table("image", "class", "probability", "trained", *asked, box=None, padding=(0, 2))
    for each in answers:
        more = {name: Text(", ".join(value) if isinstance(value, list) else f"{value:.6g}") for name, value in each.more.items()}
        rows = [(Text(found.name), f"{found.probability:.1%}", _cell(found.trained)) for found in each.ranked]
        rows = [(Text(UNKNOWN, "bold"), "", ""), *rows] if each.unknown else rows
        for i, row in enumerate(rows):
            first = i == 0  # as Text, since rich would read brackets in names as markup
            table.add_row(Text(each.image if first else ""), *row, *(more.get(name, "") if first else "" for name in asked))
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
