"""A file that answers are appended to, what is kept beside it, and going on with it after a kill.

Beside `x.jsonl` lies `x.jsonl.run.json`, which says what was asked, of which classifier, and whether all is done. For `x.parquet`, which no
program could read before its end is written, the answers go to `x.parquet.answers.jsonl` and are joined in the end.
"""

from __future__ import annotations

import glob
import json
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from mmrl.bulk import parquet
from mmrl.bulk.answers import Answer
from mmrl.bulk.forms import CsvAnswers, DamagedLineError, Form, JsonAnswers, KeptAnswer
from mmrl.bulk.listed import ListedImage
from mmrl.errors import MmrlError, UsageError, shortened
from mmrl.files import PARTIAL, lock, read_json, remove_unused, unlock, user_path, write_json
from mmrl.version import __version__

PARQUET = ".parquet"
FILES = (".csv", ".jsonl", PARQUET)
SCHEMA = "mmrl.predict/1"
FLUSHED = 5.0  # seconds between two times that what is written is also on the disk, should the machine lose its power


def file_format(path: Path) -> str:
    """The ending of a file that results are written to. Raises UsageError for another than those in `FILES`."""
    ending = path.suffix.lower()
    if ending not in FILES:
        raise UsageError(f"--out is {path}; give a file that ends in {', '.join(FILES[:-1])} or {FILES[-1]}.")
    if ending == PARQUET:
        parquet.library(f"--out {path}")
    return ending


class AnswerFile:
    """The file `out`, held by this process.

    Args:
        shown: classes of an image.
        more: what an answer has besides them.
        decides: all that decides an answer, as plain data.
    """

    def __init__(self, out: Path, shown: int, more: Sequence[str], decides: dict[str, Any]) -> None:
        ending = file_format(out)
        self.out, self._more = out, tuple(more)
        self._joins = ending == PARQUET
        self.lines = out.with_name(f"{out.name}.answers.jsonl") if self._joins else out
        self._state = state_of(out)
        self._form: Form = CsvAnswers(shown, more) if ending == ".csv" else JsonAnswers()
        self._decides = {"format": ending, **decides}
        self._file: Any = None
        self._replaces = self._is_done = self._was_finished = False
        self._flushed = time.monotonic()
        self.count = self.errors = self.before = 0

    def go_on(self, listed: Iterator[ListedImage], *, resume: bool, overwrite: bool) -> Iterator[tuple[ListedImage, KeptAnswer]]:
        """Go through the answers that are there, whose images are taken from `listed`; afterwards it can be appended to.

        Raises:
            UsageError: without `resume` and `overwrite` there is a file; with `resume` it is another's, of other options or images.
            MmrlError: it is damaged in its midst.
        """
        self._sweep()
        if not resume:
            refuse_existing(self.out, overwrite=overwrite)
            self._replaces = True
            return
        state = self._read_state()
        self._was_finished = bool(state and state["finished"])
        done = self._joins and self._was_finished and self.out.exists()
        end = 0
        for kept in self._kept_in_parquet() if done else self._kept_lines():
            image = next(listed, None)
            if image is None:
                raise UsageError(f"{self.out} has more answers than there are images now ({self.count:,}). {self._other()}")
            if self._form.written(image.name) != kept.image and not (done and _escaped(image.name) == kept.image):
                raise UsageError(f"image {self.count + 1:,} of {self.out} is {kept.image}, and now {_escaped(image.name)}. {self._other()}")
            self._counted(kept.error)
            end = kept.end
            yield image, kept
        self.before = self.count
        if done:
            if (image := next(listed, None)) is not None:
                raise UsageError(f"{self.out} is finished, of {self.count:,} images, and there are more now: {image.name}. {self._other()}")
        elif self.lines.exists():
            with _explained(self.lines):
                os.truncate(self.lines, end)  # a line that was cut short
        self._is_done = done

    def _sweep(self) -> None:
        """Take away temporary files of this one that killed processes left."""
        for path in (self.out, self._state):
            for left in path.parent.glob(f".{glob.escape(path.name[:40])}.*{PARTIAL}"):
                remove_unused(left)

    def _other(self) -> str:
        return "--resume needs the same images in the same order: give those, or another --out."

    def _read_state(self) -> dict[str, Any] | None:
        if not self._state.exists():
            if (self.out.exists() and self.out.stat().st_size) or (self.lines.exists() and self.lines.stat().st_size):
                raise UsageError(
                    f"--resume: {self.out} is there, and no {self._state.name} beside it tells what was asked. Give another --out, or "
                    "--overwrite to replace it."
                )
            return None
        state = read_json(self._state, what="the state of a prediction")
        known = isinstance(state, dict) and state.get("schema") == SCHEMA and isinstance(state.get("asked"), dict)
        if not known or not isinstance(state.get("finished"), bool):
            raise MmrlError(f"{self._state} is damaged, or of another version of mmrl. Give another --out.")
        asked: dict[str, Any] = state["asked"]
        other = [
            f"{name} was {_shown(asked.get(name))} and is {_shown(value)}"
            for name, value in self._decides.items()
            if json.dumps(asked.get(name)) != json.dumps(value)
        ]
        if other:
            raise UsageError(
                f"--resume: {self.out} was begun with other options: {'; '.join(other)}. Give the same ones, or another --out; "
                "--overwrite without --resume begins anew."
            )
        return state

    def _kept_lines(self) -> Iterator[KeptAnswer]:
        if not self.lines.exists():
            return
        _require_regular(self.lines)
        with self.lines.open("rb") as file:
            try:
                yield from self._form.kept(file)
            except DamagedLineError as error:
                raise MmrlError(
                    f"{self.lines}, line {error} is not as it was written, so what follows cannot be told from it. Take the good lines "
                    "elsewhere and give another --out, or cut the file in front of that line and give --resume."
                ) from error

    def _kept_in_parquet(self) -> Iterator[KeptAnswer]:
        try:
            yield from parquet.kept(self.out)
        except (OSError, ValueError, KeyError) as error:  # pyarrow's errors are ValueErrors, or such
            raise MmrlError(f"{self.out} is damaged: {error}. Give another --out.") from error

    def append(self, answers: Sequence[Answer], *, on_disk: bool = False) -> None:
        """Write the answers behind the others. They are in the file when this returns, and with `on_disk` a power cut leaves them there.

        Raises:
            MmrlError: it cannot be written, as where the disk is full. What is there stays.
        """
        with _explained(self.out):
            if self._file is None:
                self._begin()
            _write(self._file, b"".join(map(self._form.lines, answers)))
            if on_disk or time.monotonic() - self._flushed > FLUSHED:
                os.fsync(self._file.fileno())
                self._flushed = time.monotonic()
        for each in answers:
            self._counted(each.error)

    def _begin(self) -> None:
        self.out.parent.mkdir(parents=True, exist_ok=True)
        for path in (self._state, self.lines, self.out) if self._replaces else ():
            _removed(path)
        if self._was_finished or not self._state.exists():
            self._write_state(finished=False)
        self._file = self.lines.open("ab", buffering=0)
        if self._file.tell() == 0:
            _write(self._file, self._form.head)

    def _counted(self, error: str) -> None:
        self.count += 1
        self.errors += bool(error)

    def _write_state(self, *, finished: bool) -> None:
        numbers = {"images": self.count, "unreadable": self.errors} if finished else {}
        write_json(self._state, {"schema": SCHEMA, "version": __version__, "finished": finished, **numbers, "asked": self._decides})

    def finish(self) -> None:
        """All are answered: note it, and make the Parquet file.

        Raises:
            MmrlError: it cannot be written. With room, --resume does what is left.
        """
        self.close()
        if not self._is_done:
            if self._joins:
                parquet.join(self.lines, self.out, self._more)
            self._write_state(finished=True)
        if self._joins:
            _removed(self.lines)

    def close(self) -> None:
        if self._file is not None:
            file, self._file = self._file, None
            with _explained(self.out), file:
                os.fsync(file.fileno())


def state_of(out: Path) -> Path:
    """What is kept beside `out`. Raises UsageError where its name would be too long."""
    user_path(out.with_name(f"{out.name}.answers.jsonl"))  # the longest
    return out.with_name(f"{out.name}.run.json")


def refuse_existing(out: Path, *, overwrite: bool) -> None:
    """Raises UsageError if there are answers in `out` that would be replaced, unless that is asked for; or if it is no file."""
    _require_regular(out)
    state = state_of(out)
    lines = out.with_name(f"{out.name}.answers.jsonl")
    some = any(path.exists() and path.stat().st_size for path in (out, lines))
    if not some or overwrite:
        return
    finished = out.exists()
    with suppress(MmrlError, TypeError, KeyError):
        finished = bool(read_json(state, what="state")["finished"]) if state.exists() else finished
    if finished:
        raise UsageError(f"{out} is there already. Give another --out, or --overwrite to replace it.")
    raise UsageError(
        f"{out} is of a prediction that has not finished. --resume goes on with it, --overwrite throws it away; or give another --out."
    )


def check_free(out: Path) -> None:
    """Raises UsageError where another process writes to `out`."""
    if _lock_of(out).exists():
        with held(out):
            pass


def _lock_of(out: Path) -> Path:
    place = Path(os.path.realpath(out))  # one lock for all names of a file
    return place.with_name(f"{place.name}.lock")


@contextmanager
def held(out: Path) -> Iterator[None]:
    """Nobody else writes to `out` meanwhile.

    Raises:
        UsageError: another process does.
        MmrlError: its folder cannot be written to.
    """
    state_of(out)
    path = _lock_of(out)
    with _explained(out):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            descriptor = lock(path)
        except BlockingIOError as error:
            raise UsageError(f"another process writes to {out} at this moment; give another --out, or wait.") from error
    try:
        yield
    finally:
        with suppress(OSError):
            unlock(path, descriptor)


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        said = f"cannot write {path}: {error.strerror or error}. What is written stays: free some space"
        raise MmrlError(f"{said} or mend what is in the way, and the same command with --resume goes on.") from error


def _require_regular(path: Path) -> None:
    if path.exists() and not path.is_file():
        raise UsageError(f"--out {path} is {'a folder' if path.is_dir() else 'no regular file'}; give the name of a file.")


def _write(file: Any, content: bytes) -> None:
    rest = memoryview(content)
    while rest:
        rest = rest[file.write(rest) :]


def _removed(path: Path) -> None:
    with _explained(path):
        path.unlink(missing_ok=True)


def _escaped(name: str) -> str:
    return name.encode("utf-8", "backslashreplace").decode()


def _shown(value: Any) -> str:
    return shortened(json.dumps(value, ensure_ascii=False), 120)
