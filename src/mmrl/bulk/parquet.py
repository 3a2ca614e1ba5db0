"""Parquet: reading names from it, and making one of lines of answers. pyarrow is imported when it is asked."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from mmrl.bulk.forms import KeptAnswer
from mmrl.errors import UsageError, first_line
from mmrl.files import near_path, replacing

ROWS = 4096  # that are read at a time
GROUP = 16384  # rows of a row group


def library(what: str) -> tuple[Any, Any]:
    """pyarrow and its module for Parquet. Raises UsageError where it is not installed; `what` needs it."""
    try:
        import pyarrow  # type: ignore[import-untyped]
        import pyarrow.parquet  # type: ignore[import-untyped]
    except ImportError as error:
        raise UsageError(f"{what} needs pyarrow: pip install 'mmrl[results]'.") from error
    return pyarrow, pyarrow.parquet


def texts(path: Path, column: str, what: str) -> Iterator[str]:
    """A column of texts, some thousand at a time; what is null is left out.

    Raises:
        UsageError: no such file or column, or the column is of another type.
    """
    pyarrow, parquet = library(what)
    try:
        with parquet.ParquetFile(path) as file:
            schema = file.schema_arrow
            if column not in schema.names:
                raise UsageError(f"{what} has no column '{column}'; it has {', '.join(schema.names)}.")
            kind = schema.field(column).type
            if not (pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind)):
                raise UsageError(f"the column '{column}' of {what} is of type {kind}; it must be text.")
            for batch in file.iter_batches(batch_size=ROWS, columns=[column]):
                yield from (text for text in batch.column(0).to_pylist() if text is not None)
    except FileNotFoundError as error:
        raise UsageError(f"{what} does not exist.{near_path(path)} Check the path.") from error
    except (OSError, pyarrow.ArrowException) as error:
        raise UsageError(f"cannot read {what}: {first_line(error)}") from error


def kept(path: Path) -> Iterator[KeptAnswer]:
    """The images of a file that `join` wrote."""
    _, parquet = library(str(path))
    with parquet.ParquetFile(path) as file:
        names = [name for name in ("image", "error", "copy") if name in file.schema_arrow.names]
        for batch in file.iter_batches(batch_size=ROWS, columns=names):
            for row in batch.to_pylist():
                yield KeptAnswer(row["image"], 0, row["error"] or "", row.get("copy"))


def join(lines: Path, out: Path, more: Sequence[str]) -> None:
    """Make the Parquet file `out` of a file of JSON lines, with the memory of one row group. A kill leaves no half one.

    Args:
        more: columns besides image, predictions and error.

    Raises:
        MmrlError: it cannot be written.
    """
    pa, parquet = library(f"--out {out}")
    kinds = {"score": pa.float64(), "unknown": pa.bool_(), "set": pa.list_(pa.string()), "copy": pa.string()}
    ranked = pa.struct([("name", pa.string()), ("probability", pa.float64()), ("trained", pa.bool_())])
    fields = [("image", pa.string()), ("predictions", pa.list_(ranked)), ("error", pa.string())]
    schema = pa.schema([*fields, *((name, kinds[name]) for name in more)])
    with replacing(out) as temporary, lines.open("rb") as file, parquet.ParquetWriter(temporary, schema) as writer:
        while rows := [_row(line, schema.names) for line in islice(file, GROUP)]:
            writer.write_table(pa.Table.from_pylist(rows, schema=schema))


def _row(line: bytes, names: Sequence[str]) -> dict[str, Any]:
    content = json.loads(line)
    if b"\\ud" in line:  # half of a pair, of a name that is not UTF-8: it is written escaped
        content = _escaped(content)
    return {name: content.get(name) for name in names}


def _escaped(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, list):
        return [_escaped(each) for each in value]
    return {name: _escaped(each) for name, each in value.items()} if isinstance(value, dict) else value
