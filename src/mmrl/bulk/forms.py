"""The two kinds of lines that answers are written as, JSON and CSV, and reading them again after a kill."""

from __future__ import annotations

import csv
import io
import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO, NamedTuple

from mmrl.bulk.answers import Answer

LONGEST_CELL = 2**30  # letters; a set of thousands of classes has more than Python's csv reads unasked
COLUMNS = ("image", "rank", "class", "probability", "trained", "error")


class KeptAnswer(NamedTuple):
    """An answer that is in a file.

    Attributes:
        image: its name as the file has it.
        end: position in the file behind it, bytes.
    """

    image: str
    end: int
    error: str = ""
    copy: str | None = None


class DamagedLineError(ValueError):
    """A line of answers that this package did not write so; its number is the message."""


class Form(ABC):
    """How answers are written. What an answer gives is whole lines of UTF-8; a name that is not is escaped."""

    head = b""  # the first bytes of a file

    @abstractmethod
    def lines(self, answer: Answer) -> bytes:
        """The lines of one image."""

    @abstractmethod
    def kept(self, file: BinaryIO) -> Iterator[KeptAnswer]:
        """The answers of a file that are whole, which must be at its beginning; it ends where one is cut short.

        Raises:
            DamagedLineError: a line in the midst of it is none.
        """

    def written(self, name: str) -> str:
        """The name of an image as `kept` gives it."""
        return name


class JsonAnswers(Form):
    """One object a line: the image and its predictions, or its error."""

    def lines(self, answer: Answer) -> bytes:
        line = {"image": answer.image, "predictions": [each._asdict() for each in answer.ranked], **answer.more}
        whole = json.dumps(line | ({"error": answer.error} if answer.error else {}), ensure_ascii=False)
        return f"{whole}\n".encode("utf-8", "backslashreplace")  # which JSON reads as it was

    def kept(self, file: BinaryIO) -> Iterator[KeptAnswer]:
        end = 0
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                return
            end += len(line)
            try:
                content = json.loads(line)
                yield KeptAnswer(content["image"], end, content.get("error", ""), content.get("copy"))
            except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
                raise DamagedLineError(number) from error


class CsvAnswers(Form):
    """A line for each class that is shown of an image, and one for an image that could not be classified.

    Args:
        shown: classes of an image, which all have.
        more: columns besides the usual ones.
    """

    def __init__(self, shown: int, more: Sequence[str] = ()) -> None:
        self._shown, self._more = shown, tuple(more)
        self._columns = (*COLUMNS, *more)
        self.head = _csv_line(self._columns)

    def lines(self, answer: Answer) -> bytes:
        more = [_cell(answer.more.get(name)) for name in self._more]
        rows = [
            [answer.image, rank, found.name, f"{found.probability:.6f}", _cell(found.trained), "", *more]
            for rank, found in enumerate(answer.ranked, 1)
        ]
        return b"".join(map(_csv_line, [[answer.image, "", "", "", "", answer.error, *more]] if answer.error else rows))

    def kept(self, file: BinaryIO) -> Iterator[KeptAnswer]:
        end = 0

        def lines() -> Iterator[str]:
            nonlocal end
            for line in file:
                if not line.endswith(b"\n"):
                    return
                end += len(line)
                yield line.decode("utf-8")

        csv.field_size_limit(max(csv.field_size_limit(), LONGEST_CELL))  # of the whole process: there is no other
        rows, due, image = csv.reader(lines(), strict=True), 1, ""
        try:
            if tuple(next(rows, self._columns)) != self._columns:
                raise DamagedLineError(1)
            for row in rows:
                ranks = ("1", "") if due == 1 else (str(due),)
                if len(row) != len(self._columns) or row[1] not in ranks or (due > 1 and row[0] != image):
                    raise DamagedLineError(rows.line_num)
                image, due = row[0], due + 1
                if row[1] == "" or due > self._shown:
                    yield KeptAnswer(image, end, row[5], row[-1] or None if "copy" in self._more else None)
                    due = 1
        except (csv.Error, UnicodeDecodeError) as error:
            if "unexpected end of data" not in str(error):  # within a name of several lines, which was cut short
                raise DamagedLineError(rows.line_num + 1) from error

    def written(self, name: str) -> str:
        return name.encode("utf-8", "backslashreplace").decode()


def _csv_line(cells: Sequence[Any]) -> bytes:
    line = io.StringIO(newline="")
    odd = any("\r" in str(cell) for cell in cells)  # which Python 3.10 to 3.12 would leave without quotes
    csv.writer(line, lineterminator="\n", quoting=csv.QUOTE_ALL if odd else csv.QUOTE_MINIMAL).writerow(cells)
    return line.getvalue().encode("utf-8", "backslashreplace")


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    return value if isinstance(value, str) else ";".join(value or ())
