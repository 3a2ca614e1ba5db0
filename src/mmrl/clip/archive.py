"""Tensors of an archive that `torch.save` or TorchScript wrote, without running anything that the file asks for.

`torch.load` interprets the pickle inside, and `torch.jit.load` runs what a module asks to be run when it is loaded. Here the pickle is
taken down as notes (`mmrl.pickles`), tensors are read where the notes say they are, and nothing else is done. What is read is at most a
few times as large as the file.
"""

from __future__ import annotations

import zipfile
from collections.abc import Collection, Iterable, Iterator
from math import prod
from pathlib import Path
from typing import IO, Any, NamedTuple

import torch
from torch import Tensor

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
LARGEST_NOTES = 2**23  # bytes that describe the tensors; those of a whole CLIP take about 100 kB
LARGEST_TENSOR = 4 * 2**30  # bytes
MOST_SIZES = 64  # of a tensor, as torch has it
MOST_TIMES = 4  # the file's size that its tensors may have together: where parameters are tied, one storage is seen twice
DEEPEST = 50  # levels of dicts and lists, in what is given back whole
_PARAMETER = Name("torch._utils", "_rebuild_parameter")
_TENSORS = (Name("torch._utils", "_rebuild_tensor_v2"), Name("torch._utils", "_rebuild_tensor"))
STORAGES = tuple(Name("torch", kind) for kind in _DTYPES)
NAMES = (_PARAMETER, *_TENSORS, *STORAGES, Name("collections", "OrderedDict"))  # that tensors and what holds them need


class View(NamedTuple):
    """A tensor not yet read: where its values are, how many are said to be there, and how they are laid out."""

    key: str
    dtype: torch.dtype
    stored: int
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


class Archive:
    """An archive of tensors, open as long as this lives.

    Attributes:
        scripted: whether TorchScript wrote it.

    Raises:
        zipfile.BadZipFile: it is cut, or no archive.
        ValueError: it is an archive of something else.
    """

    def __init__(self, file: Path | IO[bytes]) -> None:
        self._archive = zipfile.ZipFile(file)
        names = self._archive.namelist()
        found = next((name for name in names if name.endswith("data.pkl")), None)
        if found is None:
            raise ValueError("it has no data.pkl")
        self._prefix = found[: -len("data.pkl")]
        self._size = file.stat().st_size if isinstance(file, Path) else file.seek(0, 2)
        self._order = f"{self._prefix}byteorder" if f"{self._prefix}byteorder" in names else None
        self.scripted = f"{self._prefix}constants.pkl" in names

    def notes(self, *, most: int = LARGEST_NOTES, allowed: Collection[Name] | None = None) -> Any:
        """What the pickle describes, as `read_notes` gives it. Raises as that does, and ValueError for one of more than `most` bytes."""
        return read_notes(self._stored("data.pkl", most), allowed=allowed)

    def check(self, views: Iterable[View]) -> None:
        """Raises ValueError if these tensors together are larger than those of any such file, as views of one storage can be."""
        total = sum(prod(view.size) * view.dtype.itemsize for view in views if not _problem(view))
        if total > MOST_TIMES * self._size:
            raise ValueError(f"its tensors would take {total:,} bytes, and the file has {self._size:,}")

    def read(self, view: View) -> Tensor:
        """The tensor, on the CPU. Raises an exception of some kind where it is damaged."""
        problem = _problem(view)
        if problem:
            raise ValueError(problem)
        if self._order is not None and self._archive.read(self._order) != b"little":
            raise ValueError("it was written on a machine with another byte order")
        content = bytearray(self._stored(f"data/{view.key}", LARGEST_TENSOR))
        values = torch.frombuffer(content, dtype=view.dtype) if content else torch.empty(0, dtype=view.dtype)
        if view.stored > len(values):  # torch takes it at its word, and reads beyond
            raise ValueError("its storage is shorter than it says")
        if prod(view.size) > len(values):  # also what repeats values by a stride of 0, which could be made arbitrarily large
            raise ValueError("its shape has more values than its storage")
        if prod(view.size) and view.offset + sum((n - 1) * s for n, s in zip(view.size, view.stride, strict=True)) >= len(values):
            raise ValueError("it reaches beyond its storage")
        return values.as_strided(view.size, view.stride, view.offset).clone()

    def plain(self, notes: Any) -> Any:
        """Notes of plain data with the tensors in their places. Raises ValueError where they are of anything else, or nested too deeply."""
        self.check(_views(notes))
        return self._plain(notes, DEEPEST, {})

    def _plain(self, notes: Any, levels: int, done: dict[int, Any]) -> Any:
        """`done` by identity: what stands in many places is made once, as a file of a few bytes may name it in 2^50 of them."""
        if not isinstance(notes, (dict, list, tuple, Call)):
            return notes
        if id(notes) in done:
            return done[id(notes)]
        if not levels:
            raise ValueError("it is nested too deeply")
        made: Any
        view = view_of(notes)
        if view is not None:
            made = self.read(view)
        elif isinstance(notes, (Name, Reference, Call)):
            raise ValueError("it holds something besides numbers, texts and tensors")
        elif isinstance(notes, dict):
            made = {key: self._plain(value, levels - 1, done) for key, value in notes.items()}
        else:
            made = type(notes)([self._plain(value, levels - 1, done) for value in notes])
        done[id(notes)] = made
        return made

    def _stored(self, part: str, most: int) -> bytes:
        """A part of at most `most` bytes. Nothing that is read is ever compressed, so what is could only grow without bounds."""
        name = f"{self._prefix}{part}"
        info = self._archive.getinfo(name)
        if info.compress_type != zipfile.ZIP_STORED:
            raise ValueError(f"its part {name} is compressed, as torch leaves none")
        if info.file_size > min(most, self._size):
            raise ValueError(f"its part {name} has {info.file_size:,} bytes; at most {min(most, self._size):,} are read")
        return self._archive.read(info)


def _problem(view: View) -> str:
    """What is wrong with the numbers of `view`; '' if they can be a tensor's."""
    numbers = (view.stored, view.offset, *view.size, *view.stride)
    if len(view.size) != len(view.stride) or len(view.size) > MOST_SIZES:
        return "its shape is not made of sizes"
    return "" if all(isinstance(n, int) and 0 <= n < 2**63 for n in numbers) else "its shape is not made of sizes"


def _views(notes: Any) -> Iterator[View]:
    """The tensors in dicts, lists and tuples, each once."""
    left, seen = [notes], set[int]()
    while left:
        note = left.pop()
        if id(note) in seen:
            continue
        seen.add(id(note))
        view = view_of(note)
        if view is not None:
            yield view
        elif isinstance(note, (dict, list, tuple)):
            left += note.values() if isinstance(note, dict) else note


def view_of(note: Any) -> View | None:
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
    _, kind, key, _, stored = storage.what
    if not isinstance(kind, Name) or kind.module != "torch" or kind.name not in _DTYPES:
        return None
    if not isinstance(key, str) or not isinstance(size, tuple) or not isinstance(stride, tuple):
        return None
    return View(key, _DTYPES[kind.name], stored, offset, size, stride)


def _arguments(note: Any, of: Collection[Name]) -> tuple[Any, ...]:
    """The arguments of a call of one of these names; none for any other note."""
    called = isinstance(note, Call) and isinstance(note.what, Name) and note.what in of
    return note.arguments if called and isinstance(note.arguments, tuple) else ()
