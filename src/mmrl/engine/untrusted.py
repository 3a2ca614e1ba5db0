"""Tensors of a file that `torch.save` wrote, without running anything that the file asks for."""

from __future__ import annotations

import zipfile
from collections.abc import Collection, Iterator, Mapping
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mmrl.errors import MmrlError
from mmrl.pickles import Call, Name, Reference, read_notes

_DTYPES = {
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "DoubleStorage": torch.float64,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
LARGEST_NOTES = 64 * 2**20  # bytes that describe the tensors; those of a whole CLIP take about 100 kB
LARGEST_TENSOR = 4 * 2**30  # bytes
_PARAMETER = Name("torch._utils", "_rebuild_parameter")
_TENSORS = (Name("torch._utils", "_rebuild_tensor_v2"), Name("torch._utils", "_rebuild_tensor"))


class _View(NamedTuple):
    """A tensor not yet read: where its values are, and how they are laid out."""

    key: str
    dtype: torch.dtype
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


class TensorFile(Mapping[str, Tensor]):
    """The named tensors under `state_dict` of a `torch.save` archive (or, without such an entry, at its top); each read when asked for.

    Raises:
        MmrlError: the file is missing, damaged, or holds no named tensors.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with zipfile.ZipFile(path) as archive:
                self._prefix = next(name[: -len("data.pkl")] for name in archive.namelist() if name.endswith("data.pkl"))
                order = f"{self._prefix}byteorder"
                self._little = order not in archive.namelist() or _stored(archive, order, 100) == b"little"
                content = read_notes(_stored(archive, f"{self._prefix}data.pkl", LARGEST_NOTES))
        except StopIteration as error:
            raise MmrlError(f"{path} is not a file of torch.save: it has no data.pkl.") from error
        except zipfile.BadZipFile as error:
            raise MmrlError(f"{path} is cut, or not a file of torch.save in its present format (since torch 1.6).") from error
        except OSError as error:
            raise MmrlError(f"cannot read {path}: {error.strerror or error}") from error
        except Exception as error:
            raise MmrlError(f"{path} is damaged: {type(error).__name__} {error}") from error
        content = content.get("state_dict", content) if isinstance(content, dict) else {}
        views = {name: _view(value) for name, value in content.items() if isinstance(name, str)} if isinstance(content, dict) else {}
        self._views = {name.removeprefix("module."): view for name, view in views.items() if view is not None}
        if not self._views:
            raise MmrlError(f"{path} holds no named tensors.")

    def __len__(self) -> int:
        return len(self._views)

    def __iter__(self) -> Iterator[str]:
        return iter(self._views)

    def __contains__(self, name: object) -> bool:
        return name in self._views

    def __getitem__(self, name: str) -> Tensor:
        view = self._views[name]
        try:
            values = self._values(view)
            _check_bounds(view, len(values))
            return values.as_strided(view.size, view.stride, view.offset).clone()
        except Exception as error:
            raise MmrlError(f"tensor '{name}' of {self.path} is damaged: {error}") from error

    def _values(self, view: _View) -> Tensor:
        """All values of the storage that `view` looks at (N,)."""
        if not self._little:
            raise ValueError("it was written on a machine with another byte order")
        with zipfile.ZipFile(self.path) as archive:
            content = bytearray(_stored(archive, f"{self._prefix}data/{view.key}", LARGEST_TENSOR))
        return torch.frombuffer(content, dtype=view.dtype) if content else torch.empty(0, dtype=view.dtype)


def _stored(archive: zipfile.ZipFile, name: str, most: int) -> bytes:
    """A member of at most `most` bytes. torch.save compresses nothing, so what is compressed could only grow without bounds."""
    info = archive.getinfo(name)
    if info.compress_type != zipfile.ZIP_STORED:
        raise ValueError(f"its part {name} is compressed, as torch.save leaves none")
    if info.file_size > most:
        raise ValueError(f"its part {name} has {info.file_size:,} bytes; at most {most:,} are read")
    return archive.read(info)


def _view(note: Any) -> _View | None:
    """The tensor that a note describes, or None if it describes something else."""
    arguments = _arguments(note, (_PARAMETER,))
    if arguments:
        note = arguments[0]
    arguments = _arguments(note, _TENSORS)
    if len(arguments) < 4:
        return None
    storage, offset, size, stride = arguments[:4]
    if not isinstance(storage, Reference) or not isinstance(storage.what, tuple) or len(storage.what) != 5:
        return None
    _, kind, key, _, _ = storage.what
    if not isinstance(kind, Name) or kind.module != "torch" or kind.name not in _DTYPES:
        return None
    if not isinstance(key, str) or not isinstance(size, tuple) or not isinstance(stride, tuple):
        return None
    return _View(key, _DTYPES[kind.name], offset, size, stride)


def _arguments(note: Any, of: Collection[Name]) -> tuple[Any, ...]:
    """The arguments of a call of one of these names; none for any other note."""
    called = isinstance(note, Call) and isinstance(note.what, Name) and note.what in of
    return note.arguments if called and isinstance(note.arguments, tuple) else ()


def _check_bounds(view: _View, length: int) -> None:
    numbers = (view.offset, *view.size, *view.stride)
    if not all(isinstance(n, int) and n >= 0 for n in numbers) or len(view.size) != len(view.stride):
        raise ValueError("its shape is not made of sizes")
    if prod(view.size) > length:  # also what repeats values by a stride of 0, which could be made arbitrarily large
        raise ValueError("its shape has more values than its storage")
    if prod(view.size) and view.offset + sum((n - 1) * s for n, s in zip(view.size, view.stride, strict=True)) >= length:
        raise ValueError("it reaches beyond its storage")
