"""Damage done to files by a seeded generator, and what a reader may do with them: give something valid, or say in a line what is wrong."""

from __future__ import annotations

import copy
import json
import pickletools
import signal
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from random import Random
from typing import Any

from mmrl.errors import MmrlError

SEED = 20261126
LONGEST_LINE = 1200  # letters of a line that a user is shown
PATIENCE = 20.0  # seconds for one file: thousands of times what any of them takes
LETTERS = (
    *("\0", "\ufeff", "\n", "\r", "\u2028", "\x85", "\x1b[31m", "\u202e", "\u0130", "\xdf", "\xe9", "\u2603", "\U0001f98a"),
    *(",", '"', "{}", "..", "/", "\\", " ", "_", "%s"),
)
DEEP = (40, 600, 990, 100_000)  # the last overflows any parser's stack, those before it what works on what was parsed


@dataclass(frozen=True)
class Raw:
    """JSON text that `json.dumps` would not write."""

    text: str


class Hang(BaseException):
    """A reader took longer than anyone waits. No `Exception`, which readers of damaged files catch."""


@contextmanager
def patience(seconds: float = PATIENCE) -> Iterator[None]:
    """Raise `Hang` after `seconds`. An alarm that was set before (pytest's own) goes on afterwards."""

    def ring(*_: object) -> None:
        raise Hang(f"still at it after {seconds:g} s")

    if not hasattr(signal, "setitimer"):  # not POSIX
        yield
        return
    handler, began = signal.signal(signal.SIGALRM, ring), time.monotonic()
    left, interval = signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        rest = max(left - (time.monotonic() - began), 0.001) if left else 0.0
        signal.signal(signal.SIGALRM, handler)
        signal.setitimer(signal.ITIMER_REAL, rest, interval)


def attempt(read: Callable[[], object]) -> MmrlError | None:
    """The error of a reader that refuses, None if it gives something. Raises whatever else it does."""
    try:
        with patience():
            read()
    except MmrlError as error:
        lines = str(error).split("\n")
        assert str(error).strip() and max(map(len, lines)) <= LONGEST_LINE, f"a message of {max(map(len, lines))} letters"
        return error
    return None


def fuzz(name: str, count: int, once: Callable[[Random], object], *, seed: int = SEED, first: int = 0) -> int:
    """Call `once` for each input with a generator of its own; how many were refused.

    Raises:
        AssertionError: one did anything but give something or refuse; the message has the seed and the number of the input.
    """
    refused = 0
    for number in range(first, first + count):
        try:
            refused += attempt(lambda number=number: once(Random(f"{seed} {name} {number}"))) is not None  # type: ignore[misc]
        except (Exception, Hang) as error:
            raise AssertionError(f"{name}, seed {seed}, input {number}: {type(error).__name__}: {error}") from error
    return refused


# ---- bytes ----


def _slice(random: Random, content: bytes) -> slice:
    first = random.randrange(len(content) + 1)
    return slice(first, min(len(content), first + random.choice((1, 2, 4, 16, 64, 1000))))


def _flipped(random: Random, content: bytes) -> bytes:
    changed = bytearray(content)
    for _ in range(random.choice((1, 1, 2, 8, 40))):
        if changed:
            changed[random.randrange(len(changed))] ^= 1 << random.randrange(8)
    return bytes(changed)


def _junk(random: Random) -> bytes:
    odd = (b"\0", b"\xff\xfe", b"\xef\xbb\xbf", b"\xed\xa0\x80", b"\xc3", b"9" * 5000, b"[" * 100_000, b"-1", b"1e999", b"NaN", b"\xff" * 8)
    return random.choice((*odd, random.randbytes(random.randrange(1, 40)), random.choice(LETTERS).encode() * random.choice((1, 3, 300))))


def damaged(random: Random, content: bytes) -> bytes:
    """`content` with bits flipped, cut, with parts twice, missing, moved or zeroed, or with junk in between; once or a few times."""
    for _ in range(random.choice((1, 1, 1, 2, 4))):
        at, way = _slice(random, content), random.randrange(9)
        before, part, after = content[: at.start], content[at], content[at.stop :]
        if way <= 2:
            content = _flipped(random, content)
        elif way == 3:
            content = before
        elif way == 4:
            content = before + part * random.choice((2, 2, 50)) + after
        elif way == 5:
            content = before + after
        elif way == 6:
            content = before + _junk(random) + after
        elif way == 7:
            content = before + bytes(len(part)) + after
        else:
            to = random.randrange(len(content) + 1)
            content = content[:to] + part + content[to:]
    return content


# ---- JSON ----


def odd_value(random: Random) -> Any:
    """What does not belong where it is put."""
    nested = random.choice(DEEP)
    deep = random.choice(("[" * nested + "]" * nested, '{"a":' * nested + "1" + "}" * nested))
    return random.choice(
        (
            *(None, True, False, 0, 1, -1, 3, 2**31, 2**63, -(2**64), 0.5, -0.0, 1e308, 5e-324, 0.1 + 0.2, 1e16),
            *("", " ", "x", "0", "None", "__proto__", "../../etc/passwd", "/etc/passwd", "a" * 300, "é" * 5000, "ab " * 20_000),
            *([], [[]], {}, {"a": 1}, [0] * 30, ["x"] * 3, [None], {"size": 9, "counts": [[0, 0, 1]]}, {"size": -1, "counts": []}),
            *(Raw("NaN"), Raw("Infinity"), Raw("1e999"), Raw("-1e999"), Raw("1" + "0" * 400), Raw("1" + "0" * 5000), Raw('"\\ud800"')),
            *(Raw('"\\u0000"'), Raw(deep), random.choice(LETTERS), random.choice(LETTERS) * 2000, "2100-01-01T00:00:00+00:00"),
        )
    )


def _places(value: Any, found: list[tuple[Any, Any]]) -> list[tuple[Any, Any]]:
    """(container, key) of everything in `value`."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in pairs:
        found.append((value, key))
        _places(inner, found)
    return found


def altered(random: Random, value: Any) -> Any:
    """A copy of plain data in which something is missing, exchanged, doubled, or of another kind; once or a few times."""
    value = copy.deepcopy(value)
    for _ in range(random.choice((1, 1, 1, 2, 5))):
        places = _places(value, [])
        if not places or random.random() < 0.02:
            return odd_value(random)
        holder, key = random.choice(places)
        way = random.randrange(7)
        if way == 0:
            del holder[key]
        elif way == 1 and isinstance(holder, dict):
            holder[random.choice(("", "x" * 5000, "schema", random.choice(LETTERS)))] = holder.pop(key)
        elif way == 1:
            holder.insert(key, copy.deepcopy(holder[key]))
        elif way == 2:
            other, place = random.choice(places)
            if place in range(len(other)) if isinstance(other, list) else place in other:
                holder[key] = copy.deepcopy(other[place])
        elif way == 3:
            holder[key] = random.choice(([holder[key]], {"a": holder[key]}, str(holder[key])[:100_000], random.choice((None, holder[key]))))
        else:
            holder[key] = odd_value(random)
    return value


def json_bytes(value: Any) -> bytes:
    """JSON of plain data that may hold `Raw` text."""
    raw: list[str] = []

    def kept(each: object) -> str:
        assert isinstance(each, Raw), f"{each!r} is no plain data"
        raw.append(each.text)
        return f"@raw {len(raw) - 1}@"

    text = json.dumps(value, default=kept)
    for number, inserted in enumerate(raw):
        text = text.replace(f'"@raw {number}@"', inserted)
    return text.encode()


def damaged_json(random: Random, value: Any) -> bytes:
    """JSON that is damaged as text, as data, or in both ways."""
    way = random.random()
    content = json_bytes(altered(random, value) if way < 0.75 else value)
    return damaged(random, content) if way > 0.7 else content


# ---- pickles and archives ----

_ARGUMENTS = {  # random ones by the kind that pickletools names
    "uint1": lambda r: bytes([r.randrange(256)]),
    "uint2": lambda r: r.randbytes(2),
    "int4": lambda r: r.choice((r.randbytes(4), b"\xff\xff\xff\x7f")),
    "uint4": lambda r: r.choice((r.randbytes(4), b"\xff\xff\xff\xff")),
    "uint8": lambda r: r.randbytes(8),
    "float8": lambda r: r.randbytes(8),
    "long1": lambda r: b"\xff" + r.randbytes(255),
    "long4": lambda r: r.choice((b"\xff\xff\xff\x7f", b"\xb8\x0b\0\0" + r.randbytes(3000))),
}


def _instruction(random: Random, gadget: bytes) -> bytes:
    if random.random() < 0.2:
        return gadget
    opcode = random.choice(pickletools.opcodes)
    argument = _ARGUMENTS.get(opcode.arg.name) if opcode.arg else lambda _: b""
    text = random.choice((b"1\n", b"x\n", b"'x'\n", b"os\nsystem\n", b"\x01x", b"\x01\0\0\0x"))
    return opcode.code.encode("latin-1") + (argument(random) if argument else text)


def gadget(target: Path) -> bytes:
    """Instructions that make Python's own reader of pickles create the file `target`."""
    return f"cbuiltins\nopen\n(V{target}\nVw\ntR".encode()


def damaged_pickle(random: Random, content: bytes, trap: bytes) -> bytes:
    """A pickle with instructions left out, doubled, moved and put in between, `trap` among them; at times damaged as bytes, too."""
    if random.random() < 0.3:
        return damaged(random, content)
    starts = [place for _, _, place in pickletools.genops(content) if place is not None]
    parts = [content[a:b] for a, b in zip(starts, [*starts[1:], len(content)])]
    for _ in range(random.choice((1, 1, 2, 6))):
        at, way = random.randrange(len(parts)), random.randrange(6)
        if way == 0:
            del parts[at]
        elif way == 1:
            parts.insert(at, random.choice(parts))
        else:
            parts.insert(at, _instruction(random, trap) * random.choice((1, 1, 1, 5)))
        parts = parts or [b"."]
    return b"".join(parts)


def damaged_archive(random: Random, content: bytes, trap: bytes) -> bytes:
    """A file of torch.save: bytes of it, or of one of its parts, or the pickle in it; parts may be left out, doubled or compressed."""
    if random.random() < 0.3:
        return damaged(random, content)
    out = BytesIO()
    with zipfile.ZipFile(BytesIO(content)) as old, zipfile.ZipFile(out, "w") as new:
        chosen = random.choice(["pickle"] * 6 + old.namelist())
        for name in old.namelist():
            part = old.read(name)
            if chosen == "pickle" and name.endswith("data.pkl"):
                part = damaged_pickle(random, part, trap)
            elif chosen == name:
                if random.random() < 0.3:
                    continue
                part = damaged(random, part)
            new.writestr(name, part, zipfile.ZIP_DEFLATED if random.random() < 0.02 else zipfile.ZIP_STORED)
    return out.getvalue()
