"""The output folder of a training: whose it is, that one process alone writes to it, and the state to resume from."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from mmrl.engine.checkpoint import CARD, CONFIG, TENSORS, same
from mmrl.errors import DamagedError, MmrlError, UsageError
from mmrl.files import lock, unlock, write_bytes
from mmrl.reports.records import RECORD_NAME

STATE = "training_state.pt"
LOCK = ".lock"
TAKEN = (STATE, CONFIG, TENSORS, CARD, RECORD_NAME)
STATE_FORMAT = 1


class RunFolder:
    """An output folder, held by this process between `with` and its end.

    One file, `training_state.pt`, has everything to go on from, and is replaced as a whole, so that a kill at any moment leaves a
    consistent one. When training ended it shrinks to the history, after the adapter was written.

    Args:
        run: what identifies the run (plain data): the same again must be given to resume.
        resume: go on with the run in the folder; start it where there is none.
    """

    def __init__(self, path: Path, run: Mapping[str, Any], *, resume: bool) -> None:
        self.path = path.expanduser()
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
        found = [name for name in TAKEN if (self.path / name).exists()]
        if not self.resume:
            if found:
                raise UsageError(f"{self.path} holds another run already ({found[0]}); choose another folder, or resume that run.")
            return
        for left in self.path.glob(".*.partial"):  # a killed process could not take them away
            left.unlink(missing_ok=True)
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
            state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
            version, run = state["format"], state["run"]
        except Exception as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise DamagedError(f"training state is damaged: {path} ({reason}). Start again in another folder.") from error
        if version != STATE_FORMAT:
            raise MmrlError(f"{path} was written by another mmrl (format {version}; this one reads {STATE_FORMAT}): resume with that one.")
        different = differences(run, self.run)
        if different:
            raise UsageError(f"{self.path} holds a run with other settings, which cannot be resumed with these: {'; '.join(different)}.")
        return state

    def save(self, state: Mapping[str, Any]) -> None:
        """Replace the state; it was saved by this process or another, whole, if this fails. Raises MmrlError if it does."""
        buffer = io.BytesIO()  # written at once: torch reports a full disk as an internal error
        torch.save({**state, "format": STATE_FORMAT, "run": self.run}, buffer)
        write_bytes(self.path / STATE, buffer.getvalue())


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
