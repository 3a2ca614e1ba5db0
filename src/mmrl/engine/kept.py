"""Tensors kept for a while: in memory, beyond a budget in a temporary file, and beyond another not at all."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Hashable
from pathlib import Path
from typing import IO

import torch
from torch import Tensor

FREE = 2**30  # bytes of the disk that are left to others


class Kept:
    """Tensors by key, for as long as this object lives. A file has no name, so that nothing of it is left however the process ends.

    Args:
        memory, disk: bytes that may be taken.
        folder: where the file is made, when it is first needed; None for the system's folder of temporary files.
    """

    def __init__(self, memory: int, disk: int = 0, folder: Path | None = None) -> None:
        self._memory, self._disk, self._folder = memory, disk, folder
        self.size = 0  # bytes that are kept
        self._held: dict[Hashable, Tensor] = {}
        self._filed: dict[Hashable, tuple[int, int, torch.dtype, torch.Size]] = {}
        self._file: IO[bytes] | None = None
        self._end = 0

    def __contains__(self, key: Hashable) -> bool:
        return key in self._held or key in self._filed

    def put(self, key: Hashable, value: Tensor) -> bool:
        """Keep a copy of `value` on the CPU, unless the key has one. Returns whether it is kept: there may be no room."""
        if key in self:
            return True
        if value.nbytes <= self._memory:
            self._memory -= value.nbytes
            self._held[key] = value.detach().to("cpu", copy=True)
            self.size += value.nbytes
            return True
        return self._write(key, value.detach().cpu().contiguous())

    def get(self, key: Hashable) -> Tensor | None:
        """The value, on the CPU; None where it is not kept, or no longer to be had."""
        if key in self._held or key not in self._filed or self._file is None:
            return self._held.get(key)
        at, size, dtype, shape = self._filed[key]
        content = bytearray(size)
        try:
            self._file.seek(at)
            whole = self._file.readinto(content) == size  # type: ignore[attr-defined]  # a file has it
        except OSError:
            whole = False
        if whole:
            return torch.frombuffer(content, dtype=dtype).view(shape)
        del self._filed[key]
        return None

    def close(self) -> None:
        """Give everything back."""
        self._held.clear()
        self._filed.clear()
        if self._file is not None:
            self._file.close()

    def _write(self, key: Hashable, value: Tensor) -> bool:
        size = value.nbytes
        try:
            if size > self._disk or shutil.disk_usage(self._folder or tempfile.gettempdir()).free < FREE + size:
                return False
            if self._file is None:
                self._file = tempfile.TemporaryFile(dir=self._folder, buffering=0)  # noqa: SIM115  # `close` closes it
            self._file.seek(self._end)
            if self._file.write(value.flatten().view(torch.uint8).numpy().data) < size:
                return False
        except OSError:
            self._disk = 0  # a disk that fails once is not tried again; what it has is read as long as it can be
            return False
        self._filed[key] = self._end, size, value.dtype, value.shape
        self._end += size
        self._disk -= size
        self.size += size
        return True
