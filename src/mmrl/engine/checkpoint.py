"""The output folder of a training: whose it is, that one process alone writes to it, and the state to resume from."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from mmrl.clip.archive import NAMES, Archive
from mmrl.engine.adapter import CARD, CONFIG, TENSORS, same
from mmrl.errors import DamagedError, MmrlError, UsageError, first_line
from mmrl.files import lock, read_regular, sweep, unlock, user_path, write_bytes
from mmrl.reports.records import RECORD_NAME

STATE = "training_state.bin"
LOCK = ".lock"
TAKEN = (STATE, CONFIG, TENSORS, CARD, RECORD_NAME)
STATE_FORMAT = 3
LARGEST_STATE = 64 * 2**30  # bytes
MAGIC = b"mmrl training state, SHA-256 "


class RunFolder:
    """An output folder, held by this process between `with` and its end.

    One file, `training_state.bin`, has everything to go on from, and is replaced as a whole, so that a kill at any moment leaves a
    consistent one. Its first line has the hash of the rest, which torch wrote: a bit that flipped on the disk is found before it trains
    on. When training ended the file shrinks to the history, after the adapter was written.

    Args:
        run: what identifies the run (plain data): the same again must be given to resume.
        resume: go on with the run in the folder; start it where there is none.
    """

    def __init__(self, path: Path, run: Mapping[str, Any], *, resume: bool) -> None:
        self.path = user_path(path)
        self.run = dict(run)
        self.resume = resume
        self._lock: int | None = None

    def __enter__(self) -> RunFolder:
        """Raises UsageError if the folder holds another run or another process trains into it, MmrlError if it cannot be written."""
        if self.path.exists() and not self.path.is_dir():
            raise UsageError(f"{self.path} is a file; the output must be a folder.")
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = lock(self.path / LOCK)
        except BlockingIOError as error:
            raise UsageError(f"another process trains into {self.path} at this moment; choose another folder, or wait.") from error
        except OSError as error:
            raise MmrlError(f"cannot write into {self.path}: {error.strerror or error}. Choose another folder.") from error
        try:
            self._check()
        except BaseException:
            self._release()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._release()

    def _release(self) -> None:
        if self._lock is not None:
            unlock(self.path / LOCK, self._lock)
            self._lock = None

    def _check(self) -> None:
        sweep(self.path, age=0)  # this process alone writes here now
        found = [name for name in TAKEN if (self.path / name).exists()]
        if not self.resume:
            if found:
                remedy = "choose another folder, or resume that run (--resume, in Python resume=True)."
                raise UsageError(f"{self.path} holds another run already ({found[0]}); {remedy}")
            return
        if found and STATE not in found:
            raise UsageError(f"{self.path} has {found[0]} but no {STATE}, so there is no training to resume; choose another folder.")

    def load(self) -> dict[str, Any] | None:
        """The state last saved, or None where there is none.

        Raises:
            UsageError: it is of a run with another configuration; the differences are named.
            MmrlError: the file is damaged.
        """
        path = self.path / STATE
        if not path.exists():
            return None
        try:
            state = read_state(path)
            version, run = state["format"], state["run"]
            different = differences(run, self.run) if version == STATE_FORMAT else []
        except Exception as error:
            raise DamagedError(f"training state is damaged: {path} ({first_line(error)}). Start again in another folder.") from error
        if version != STATE_FORMAT:
            raise MmrlError(f"{path} was written by another mmrl (format {version}; this one reads {STATE_FORMAT}): resume with that one.")
        if different:
            said = f"{self.path} holds a run with other settings, which cannot be resumed with these: {'; '.join(different)}."
            raise UsageError(f"{said} Give what it had, or choose another folder.")
        return state

    def save(self, state: Mapping[str, Any]) -> None:
        """Replace the state; it was saved by this process or another, whole, if this fails. Raises MmrlError if it does."""
        buffer = io.BytesIO()  # written at once: torch reports a full disk as an internal error
        torch.save({**state, "format": STATE_FORMAT, "run": self.run}, buffer)
        content = buffer.getvalue()
        write_bytes(self.path / STATE, _seal(content) + content)

    def leave(self) -> None:
        """Give the folder up: no step was taken that a resumed run could go on from."""
        (self.path / STATE).unlink(missing_ok=True)


def read_state(path: Path) -> dict[str, Any]:
    """What `RunFolder.save` wrote, on the CPU; nothing in it is run. Raises an exception of some kind where a bit of it is another."""
    content = io.BytesIO(read_regular(path, what="training state", most=LARGEST_STATE))
    first, rest = content.readline(), content.read()
    if first != _seal(rest):
        raise ValueError("it is cut short or altered, or was not written by this mmrl")
    archive = Archive(io.BytesIO(rest))
    state: dict[str, Any] = archive.plain(archive.notes(most=len(rest), allowed=NAMES))
    return state


def _seal(content: bytes) -> bytes:
    return MAGIC + hashlib.sha256(content).hexdigest().encode() + b"\n"


def differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """What differs between two nested mappings of plain data, one line each: 'fit.lr was 0.001, is 0.002'."""
    out: list[str] = []
    for key in dict.fromkeys([*old, *new]):
        before, after = old.get(key), new.get(key)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            out += differences(before, after, f"{prefix}{key}.")
        elif not same(before, after):
            out.append(f"{prefix}{key} was {_short(before)}, is {_short(after)}")
    return out


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
