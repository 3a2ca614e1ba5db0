"""A folder of bounded size with files of equal rows: what can be computed again, kept for later and for other processes.

A file that is there is whole: it is written under a temporary name, flushed, and renamed. Every row has a checksum besides, for what disks
do to files that lie there for long. Nothing here ends a run: what cannot be written is not kept, and what cannot be read is not there.
"""

from __future__ import annotations

import os
import threading
import time
import warnings
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from mmrl.errors import MmrlError, Notice
from mmrl.files import PARTIAL, lock, remove_unused, replacing, share, sweep, unlock

ENDING = ".rows"
SPARE = "spare-"  # how names of files begin that make room for the others
PATIENCE = 2.0  # seconds to wait for another process that makes room
Table = NDArray[np.void]  # rows


def row_type(values: np.dtype[Any], shape: tuple[int, ...]) -> np.dtype[np.void]:
    """Type of a row: `values` of a shape, and their checksum, which is 0 in a row that was never written."""
    return np.dtype([("sum", "<u4"), ("values", values, shape)])


def table_of(values: NDArray[Any]) -> Table:
    """NewRows of values (N, ...)."""
    values = np.ascontiguousarray(values)
    table = np.zeros(len(values), row_type(values.dtype, values.shape[1:]))
    table["values"], table["sum"] = values, [_sum(each) for each in values]
    return table


def _sum(values: NDArray[Any]) -> int:
    return zlib.crc32(np.ascontiguousarray(values).data) or 1


def written(table: Table, at: int) -> NDArray[Any] | None:
    """A copy of the values of row `at`; None where it was never written, or is damaged."""
    values = np.array(table["values"][at])
    return values if table["sum"][at] == _sum(values) else None


class NoRoomError(MmrlError):
    """The budget does not allow it."""


class RowsFolder:
    """The folder `folder`, whose files take at most `gib` GiB together; made when the first is written.

    To make room, files are taken away: first those whose names begin with `SPARE`, then the others, of each the one used longest ago; but
    none that a process is reading, and none that was used since this object was made, so that files used in turn do not drive each other
    out (a spare one makes room for one that is not, though). Where that is not enough, the new file is not written.
    """

    def __init__(self, folder: Path, gib: float) -> None:
        self.folder, self.most = folder, int(gib * 2**30)
        self._since = time.time()
        self._warned = False

    def read(self, name: str, count: int, row: np.dtype[np.void]) -> Table | None:
        """The `count` rows of a file, memory-mapped, and in use for as long as they live; None where there is no whole file."""
        path = self.folder / f"{name}{ENDING}"
        try:
            with path.open("rb") as file:
                share(file.fileno())  # the map has the lock, too
                if os.fstat(file.fileno()).st_size != count * row.itemsize:
                    raise ValueError("cut short")
                rows = np.memmap(file, dtype=row, mode="r", shape=(count,))
        except FileNotFoundError:
            return None
        except (OSError, ValueError):
            self.forget(name)
            return None
        with suppress(OSError):
            os.utime(path)  # the time of last use
        return rows

    def forget(self, name: str) -> None:
        with suppress(OSError):
            (self.folder / f"{name}{ENDING}").unlink()

    def write(self, name: str, table: Table) -> None:
        with self.writing(name, len(table), table.dtype) as rows:
            if rows is not None:
                rows.put(0, table)

    @contextmanager
    def writing(self, name: str, count: int, row: np.dtype[np.void]) -> Iterator[NewRows | None]:
        """Where to put the rows of a file, in any order; None where there is no room. It is kept if the block ends well."""
        rows: NewRows | None = None
        thrown: BaseException | None = None
        try:
            with self._reserved(f"{name}{ENDING}", count * row.itemsize) as temporary, temporary.open("r+b") as file:
                rows = NewRows(file)
                try:
                    yield rows
                except BaseException as error:
                    thrown = error
                    raise
                if rows.failed:
                    raise rows.failed
        except (MmrlError, OSError) as error:
            if thrown is not None:  # the block's own, as it was
                raise thrown from thrown.__cause__
            self._not_kept(error)
            if rows is None:
                yield None

    @contextmanager
    def _reserved(self, name: str, size: int) -> Iterator[Path]:
        """A temporary file that has its size from the beginning, so that other processes count it."""
        with ExitStack() as stack:
            with self._alone():
                self._make_room(size, spare=name.startswith(SPARE))
                temporary = stack.enter_context(replacing(self.folder / name))
                os.truncate(temporary, size)
            yield temporary

    @contextmanager
    def _alone(self) -> Iterator[None]:
        path, until = self.folder / ".room.lock", time.monotonic() + PATIENCE
        self.folder.mkdir(parents=True, exist_ok=True)
        while True:
            try:
                held = lock(path)
                break
            except BlockingIOError as error:
                if time.monotonic() > until:
                    raise NoRoomError("another process is making room.") from error
                time.sleep(0.01)
        try:
            yield
        finally:
            unlock(path, held)

    def _make_room(self, size: int, *, spare: bool) -> None:
        sweep(self.folder)
        if size > self.most:
            raise NoRoomError(f"{size:,} bytes are more than the {self.most:,} that may be kept.")
        free, kept = self.most, list[tuple[bool, float, Path, int]]()
        for path in self.folder.iterdir():
            with suppress(FileNotFoundError):  # another process took it away
                if path.name.endswith((ENDING, PARTIAL)):
                    found = path.stat()
                    free -= found.st_size
                    if path.name.endswith(ENDING):
                        kept.append((not path.name.startswith(SPARE), found.st_mtime, path, found.st_size))
        for whole, used, path, gain in sorted(kept):
            if free >= size:
                break
            fresh = used >= self._since
            if not (fresh and (spare or whole)) and remove_unused(path):
                free += gain
        if free < size:
            raise NoRoomError(f"there is no room for {size:,} bytes.")

    def _not_kept(self, error: Exception) -> None:
        if not self._warned and not isinstance(error, NoRoomError):
            self._warned = True
            warnings.warn(f"what was computed is not kept, and is computed again next time: {error}", Notice, stacklevel=4)


class NewRows:
    """Where rows of a new file are put, by any thread. An error is noted in `failed`, and ends nothing."""

    def __init__(self, file: BinaryIO) -> None:
        self.failed: OSError | NoRoomError | None = None
        self._file, self._lock = file, threading.Lock()

    def put(self, at: int, table: Table) -> None:
        """Write rows from position `at` on."""
        try:
            with self._lock:
                self._file.seek(at * table.dtype.itemsize)
                self._file.write(np.ascontiguousarray(table).data)
        except OSError as error:
            self.failed = error
