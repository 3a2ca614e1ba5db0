"""Variables of MATLAB files (versions 5 to 7), as far as lists of images need them: numbers, texts, cells and structs.

Read here, as scipy's reader ends the whole process on files that are cut or have a bit flipped. The format is described in "MAT-File
Format" by The MathWorks. Nothing is read beyond its element, and what an element says of its size is held against the bytes there are.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from math import prod
from typing import Any, NamedTuple

LARGEST = 2**24  # bytes of one variable, unpacked; that of 8144 cars has 3 MB
DEEPEST = 8  # levels of cells and structs
_HEADER = 128  # bytes
_COMPRESSED, _MATRIX = 15, 14
_NUMBERS = {1: "b", 2: "B", 3: "h", 4: "H", 5: "i", 6: "I", 7: "f", 9: "d", 12: "q", 13: "Q"}
_TEXTS = {1: "latin-1", 2: "latin-1", 16: "utf-8"}
_UTF16 = (4, 17)
_COMPLEX = 0x800
_CELL, _STRUCT, _TEXT, _NUMERIC = 1, 2, 4, range(6, 16)


class _Element(NamedTuple):
    kind: int
    content: memoryview


def read_variable(content: bytes, name: str) -> Any:
    """The variable `name`: a text as str; numbers and cells as a flat list in the file's order; structs as a list of dicts.

    Raises:
        ValueError: the file is damaged, of another format, or has no such variable.
    """
    if len(content) < _HEADER or content[126:128] not in (b"IM", b"MI"):
        raise ValueError("it is no MATLAB file of version 5 to 7")
    reader = _Reader("<" if content[126:128] == b"IM" else ">")
    try:
        for element in reader.elements(memoryview(content)[_HEADER:], padded=False):
            if element.kind == _COMPRESSED:
                unpacked = zlib.decompressobj().decompress(element.content, LARGEST)
                element = next(reader.elements(memoryview(unpacked)), element)
            if element.kind == _MATRIX and reader.name(element.content) == name:
                return reader.matrix(element.content, DEEPEST)
    except (struct.error, zlib.error, StopIteration, UnicodeError, IndexError) as error:
        raise ValueError(f"it is damaged: {error or 'cut short'}") from error
    raise ValueError(f"it has no variable '{name}'")


class _Reader:
    def __init__(self, order: str) -> None:
        self.order = order

    def elements(self, content: memoryview, *, padded: bool = True) -> Iterator[_Element]:
        """Raises ValueError for one that reaches beyond `content`. At the top of a file, compressed ones are not padded to 8 bytes."""
        at = 0
        while at < len(content):
            kind, size = struct.unpack_from(f"{self.order}II", content, at)
            if kind >> 16:  # a small element: kind, size and up to 4 bytes in 8
                kind, size, first, after = kind & 0xFFFF, kind >> 16, at + 4, at + 8
                if size > 4:
                    raise ValueError("a small element is not small")
            else:
                first = at + 8
                after = first + size + (0 if kind == _COMPRESSED and not padded else -size % 8)
            if first + size > len(content):
                raise ValueError("an element is cut short")
            yield _Element(kind, content[first : first + size])
            at = after

    def numbers(self, element: _Element) -> list[Any]:
        code = _NUMBERS.get(element.kind)
        if code is None or len(element.content) % struct.calcsize(code):
            raise ValueError("numbers are of an unknown kind")
        count = len(element.content) // struct.calcsize(code)
        return list(struct.unpack(f"{self.order}{count}{code}", element.content))

    def sizes(self, element: _Element) -> list[int]:
        """Whole numbers from 0 on, at least one."""
        found = self.numbers(element)
        if not found or not all(isinstance(each, int) and each >= 0 for each in found):
            raise ValueError("a size is no whole number")
        return found

    def name(self, content: memoryview) -> str:
        elements = self.elements(content)
        next(elements), next(elements)
        return bytes(next(elements).content).decode("latin-1")

    def matrix(self, content: memoryview, levels: int) -> Any:
        if not len(content):
            return []
        if not levels:
            raise ValueError("it is nested too deeply")
        elements = self.elements(content)
        flags = self.sizes(next(elements))[0]
        kind = flags & 0xFF
        count = prod(self.sizes(next(elements)))
        next(elements)  # its name
        if kind == _TEXT:
            return self._text(next(elements))
        if kind in _NUMERIC and not flags & _COMPLEX:
            found = self.numbers(next(elements))
            if len(found) != count:
                raise ValueError(f"an array of {count} numbers has {len(found)}")
            return found
        if kind == _CELL:
            return self._parts(elements, count, levels)
        if kind == _STRUCT:
            return self._structs(elements, count, levels)
        raise ValueError(f"an array is of the kind {flags & 0xFFF:#x}, which no list of images has")

    def _text(self, element: _Element) -> str:
        if element.kind in _UTF16:
            return bytes(element.content).decode("utf-16-le" if self.order == "<" else "utf-16-be")
        if element.kind not in _TEXTS:
            raise ValueError("a text is of an unknown kind")
        return bytes(element.content).decode(_TEXTS[element.kind])

    def _parts(self, elements: Iterator[_Element], count: int, levels: int) -> list[Any]:
        found = [self.matrix(element.content, levels - 1) for element in elements if element.kind == _MATRIX]
        if len(found) != count:
            raise ValueError(f"an array of {count} parts has {len(found)}")
        return found

    def _structs(self, elements: Iterator[_Element], count: int, levels: int) -> list[dict[str, Any]]:
        length = self.sizes(next(elements))[0]
        written = bytes(next(elements).content)
        if length < 1 or len(written) % length:
            raise ValueError("the names of a struct's fields are cut short")
        fields = [written[at : at + length].partition(b"\0")[0].decode("latin-1") for at in range(0, len(written), length)]
        found = self._parts(elements, count * len(fields), levels)
        return [dict(zip(fields, found[at : at + len(fields)])) for at in range(0, len(found), len(fields) or 1)]
