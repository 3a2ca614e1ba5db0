"""What a pickled file says, taken down without doing any of it.

A pickle is a program that may call whatever it names. `read_notes` walks over its instructions and keeps plain data (dicts, lists,
numbers, strings); of names and calls it only takes notes. No name is looked up and nothing is called, whatever the file contains, and
time and memory stay in proportion to its size: nothing is hashed or compared but plain keys, and no place in a memo is reserved.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, NamedTuple

_VALUES = {  # instructions whose argument is the value
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
}
_CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_DICT": dict,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
    "EMPTY_SET": list,
}
_IGNORED = ("PROTO", "FRAME", "READONLY_BUFFER")
_PLAIN_KEYS = (str, int, float, bool, bytes, type(None))


class Name(NamedTuple):
    """Something the file names, such as torch._utils._rebuild_tensor_v2."""

    module: str
    name: str


class Reference(NamedTuple):
    """Something kept outside of the pickle, in torch's files a storage."""

    what: Any


@dataclass(eq=False)
class Call:
    """A call that the file asks for, or an object that it wants made; `state` is what the object's attributes would be set from."""

    what: Any
    arguments: Any
    state: Any = None


class ForbiddenName(ValueError):
    """The file names something that it has no need of."""


class _Machine:
    def __init__(self, allowed: Collection[Name] | None) -> None:
        self.stack: list[Any] = []
        self.marks: list[int] = []  # heights of the stack
        self.memo: dict[int, Any] = {}
        self.allowed = allowed

    def since_mark(self) -> list[Any]:
        at = self.marks.pop()
        values = self.stack[at:]
        del self.stack[at:]
        return values

    def run(self, content: bytes) -> Any:
        steps = {name[3:].upper(): getattr(self, name) for name in dir(self) if name.startswith("op_")}
        for opcode, argument, _ in pickletools.genops(content):
            name = opcode.name
            if name == "STOP":
                return self.stack.pop()
            if name in _VALUES:
                self.stack.append(argument)
            elif name in _CONSTANTS:
                self.stack.append(_CONSTANTS[name]())
            elif name not in _IGNORED:
                if name not in steps:
                    raise ValueError(f"instruction {name} is not known")
                steps[name](argument)
        raise ValueError("it ends too early")

    # ---- stack and memory ----

    def op_mark(self, _: Any) -> None:
        self.marks.append(len(self.stack))

    def op_pop(self, _: Any) -> None:
        self.stack.pop()

    def op_pop_mark(self, _: Any) -> None:
        self.since_mark()

    def op_dup(self, _: Any) -> None:
        self.stack.append(self.stack[-1])

    def op_put(self, index: int) -> None:
        self.memo[index] = self.stack[-1]

    op_binput = op_long_binput = op_put

    def op_memoize(self, _: Any) -> None:
        self.memo[len(self.memo)] = self.stack[-1]

    def op_get(self, index: int) -> None:
        self.stack.append(self.memo[index])

    op_binget = op_long_binget = op_get

    # ---- containers ----

    def op_tuple(self, _: Any) -> None:
        self.stack.append(tuple(self.since_mark()))

    def op_list(self, _: Any) -> None:
        self.stack.append(self.since_mark())

    op_frozenset = op_list

    def op_dict(self, _: Any) -> None:
        values = self.since_mark()
        self.stack.append({})
        self._set(values)

    def _tuple_of(self, count: int) -> None:
        self.stack[-count:] = [tuple(self.stack[-count:])]

    def op_tuple1(self, _: Any) -> None:
        self._tuple_of(1)

    def op_tuple2(self, _: Any) -> None:
        self._tuple_of(2)

    def op_tuple3(self, _: Any) -> None:
        self._tuple_of(3)

    def _add(self, values: list[Any]) -> None:
        if isinstance(self.stack[-1], list):
            self.stack[-1].extend(values)

    def _set(self, values: list[Any]) -> None:
        if isinstance(self.stack[-1], dict):
            pairs = zip(values[::2], values[1::2], strict=True)
            self.stack[-1].update({key: value for key, value in pairs if isinstance(key, _PLAIN_KEYS)})

    def op_append(self, _: Any) -> None:
        value = self.stack.pop()
        self._add([value])

    def op_appends(self, _: Any) -> None:
        values = self.since_mark()
        self._add(values)

    op_additems = op_appends

    def op_setitem(self, _: Any) -> None:
        key, value = self.stack[-2:]
        del self.stack[-2:]
        self._set([key, value])

    def op_setitems(self, _: Any) -> None:
        values = self.since_mark()
        self._set(values)

    # ---- names and calls: notes only ----

    def _name(self, module: Any, name: Any) -> Name:
        if not isinstance(module, str) or not isinstance(name, str):
            raise ValueError("a name that is no text")
        found = Name(module, name)
        if self.allowed is not None and found not in self.allowed:
            raise ForbiddenName(f"{module}.{name}")
        return found

    def op_global(self, both: str) -> None:
        module, _, name = both.partition(" ")
        self.stack.append(self._name(module, name))

    def op_stack_global(self, _: Any) -> None:
        module, name = self.stack[-2:]
        self.stack[-2:] = [self._name(module, name)]

    def op_ext1(self, code: int) -> None:
        self.stack.append(self._name("extension", str(code)))

    op_ext2 = op_ext4 = op_ext1

    def op_reduce(self, _: Any) -> None:
        what, arguments = self.stack[-2:]
        ordered = isinstance(what, Name) and what == Name("collections", "OrderedDict") and not arguments
        self.stack[-2:] = [{} if ordered else Call(what, arguments)]

    op_newobj = op_reduce

    def op_newobj_ex(self, _: Any) -> None:
        self.stack.pop()
        self.op_reduce(None)

    def op_obj(self, _: Any) -> None:
        values = self.since_mark()
        self.stack.append(Call(values[0], tuple(values[1:])))

    def op_inst(self, both: str) -> None:
        values = self.since_mark()
        self.op_global(both)
        self.stack.append(Call(self.stack.pop(), tuple(values)))

    def op_build(self, _: Any) -> None:
        state = self.stack.pop()
        if isinstance(self.stack[-1], Call):
            self.stack[-1].state = state

    def op_persid(self, text: str) -> None:
        self.stack.append(Reference(text))

    def op_binpersid(self, _: Any) -> None:
        self.stack.append(Reference(self.stack.pop()))


def read_notes(content: bytes, *, allowed: Collection[Name] | None = None) -> Any:
    """What the pickle `content` describes: plain data as such, `Name`, `Call` and `Reference` for the rest.

    Args:
        allowed: what it may name; None for anything, as nothing comes of it.

    Raises:
        ForbiddenName: it names something else.
        Exception: of some kind, where the pickle is damaged.
    """
    return _Machine(allowed).run(content)
