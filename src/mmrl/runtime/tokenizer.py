"""CLIP's byte-pair tokenizer in plain Python: the ids of open_clip's, without its libraries."""

from __future__ import annotations

import gzip
import io
import re
import unicodedata
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mmrl.errors import MmrlError
from mmrl.runtime.cleaning import cleaned
from mmrl.too_long import TooLongError

LARGEST = 2**26  # bytes of merges
START, END = "<start_of_text>", "<end_of_text>"
_FIRST = re.compile(f"{START}|{END}|'s|'t|'re|'ve|'m|'ll|'d", re.IGNORECASE)
_ENDS = "</w>"  # a word


class Tokenizer:
    """Ids of prompts, of a text tower that reads `context_length` of them.

    Args:
        name: of the backbone, for messages.
        merges: pairs of parts, the most frequent first.
    """

    def __init__(self, name: str, context_length: int, merges: Sequence[tuple[str, str]]) -> None:
        self.name, self.context_length = name, context_length
        letters = list(_letters().values())
        words = [*letters, *(letter + _ENDS for letter in letters), *("".join(pair) for pair in merges), START, END]
        self._ids = {word: number for number, word in enumerate(words)}
        self._ranks = {pair: rank for rank, pair in enumerate(merges)}
        self._word = lru_cache(maxsize=2**14)(self._ids_of)

    @classmethod
    def read(cls, path: Path, name: str, context_length: int) -> Tokenizer:
        """The tokenizer of a file of merges.

        Raises:
            MmrlError: it is no such file.
        """
        try:
            with gzip.open(io.BytesIO(path.read_bytes())) as file:
                content = file.read(LARGEST)
            merges = [(first, second) for first, second in (line.split() for line in content.decode().split("\n")[1:] if line)]
        except (OSError, EOFError, ValueError) as error:
            raise MmrlError(f"{path} is no file of merges: {error}. Export again.") from error
        return cls(name, context_length, merges)

    def tokens(self, prompts: Sequence[str]) -> NDArray[np.int64]:
        """Ids (C, context), zeros behind the end of each.

        Raises:
            TooLongError: a prompt is longer than the context.
        """
        ids = self._wide(prompts)
        ends = ids.argmax(1)
        if int(ends.max()) >= self.context_length:
            worst = int(ends.argmax())
            raise TooLongError(self, prompts[worst], worst, int(ends[worst]) + 1)
        return ids[:, : self.context_length]

    def lengths(self, prompts: Sequence[str], /) -> list[int]:
        """How many tokens each has, up to four times the context."""
        return [int(end) + 1 for end in self._wide(prompts).argmax(1)]

    def _wide(self, prompts: Sequence[str]) -> NDArray[np.int64]:
        """Ids (C, 4 * context); a prompt that is longer ends there."""
        most = 4 * self.context_length
        out = np.zeros((len(prompts), most), np.int64)
        for row, prompt in zip(out, prompts):
            ids = [self._ids[START], *self.encode(prompt), self._ids[END]]
            row[: len(ids)] = ids[:most]
            if len(ids) > most:
                row[-1] = self._ids[END]
        return out

    def encode(self, text: str) -> list[int]:
        """Ids of a text, without those of its start and its end."""
        return [number for word in _words(cleaned(text)) for number in self._word(word)]

    def _ids_of(self, word: str) -> tuple[int, ...]:
        if word in (START, END):
            return (self._ids[word],)
        letters = _letters()
        parts = [letters[byte] for byte in word.encode()]
        parts[-1] += _ENDS
        while len(parts) > 1:
            rank, pair = min((self._ranks.get(pair, len(self._ranks)), pair) for pair in pairwise(parts))
            if rank == len(self._ranks):
                break
            parts = _merged(parts, pair)
        return tuple(self._ids[part] for part in parts)


def _merged(parts: list[str], pair: tuple[str, str]) -> list[str]:
    """`parts` with each occurrence of `pair`, from the left, as one."""
    out, at = [], 0
    while at < len(parts):
        if (parts[at], *parts[at + 1 : at + 2]) == pair:
            out.append("".join(pair))
            at += 2
        else:
            out.append(parts[at])
            at += 1
    return out


def _words(text: str) -> Iterator[str]:
    """What is encoded on its own: English endings, runs of letters, single digits, runs of anything else but spaces."""
    at = 0
    while at < len(text):
        if found := _FIRST.match(text, at):
            stop = found.end()
        else:
            kind, stop = _kind(text[at]), at + 1
            while kind != "N" and stop < len(text) and _kind(text[stop]) == kind:
                stop += 1
            if kind == " ":
                at = stop
                continue
        yield text[at:stop]
        at = stop


def _kind(letter: str) -> str:
    """'L' for letters, 'N' for numbers, ' ' for white space, '' for others."""
    if letter.isspace() or letter == "\u0345":  # a mark whose capital is a letter: CLIP's expression takes it for neither, and drops it
        return " "
    category = unicodedata.category(letter)[0]
    return category if category in "LN" else ""


@lru_cache(maxsize=1)
def _letters() -> dict[int, str]:
    """A letter for each byte, in the order of their ids: itself where it can be printed, else one from 256 on."""
    shown = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    hidden = [byte for byte in range(256) if byte not in shown]
    return {byte: chr(byte) for byte in shown} | {byte: chr(256 + number) for number, byte in enumerate(hidden)}
