"""Write the typed options of `mmrl.fit` (src/mmrl/fit_options.py) from where they are defined, so that editors complete them.

python -m tools.fit_options --write
"""

from __future__ import annotations

import argparse
import dataclasses
import textwrap
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from mmrl import api, methods
from mmrl.engine import FitConfig
from mmrl.methods import Method

TARGET = Path(__file__).parents[1] / "src" / "mmrl" / "fit_options.py"
WIDTH = 136
MOST = 150  # letters of a method's description; `mmrl methods NAME` has the whole
HEAD = '''"""What `mmrl.fit`, `mmrl.train` and `mmrl.advise` take by name, for editors and type checkers; written by tools/fit_options.py.

Options of methods from outside the package are not here: they are taken all the same, and a checker accepts them in `overrides={...}`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from typing_extensions import TypedDict

if TYPE_CHECKING:
    from mmrl.clip import Clip
    from mmrl.data import Draw
    from mmrl.data.given import Labelled
    from mmrl.engine.progress import Watch
    from mmrl.templates import Template


class FitOptions(TypedDict, total=False):
    """All optional. Which options of methods and of training apply depends on the method: `mmrl methods NAME`."""
'''


class Spelled(typing.NamedTuple):
    """One option: its types in the order in which they were found, and what is said of it."""

    types: list[str]
    about: list[str]


def options() -> dict[str, Spelled]:
    """All options by name: those of data, run and place, then of training, then of the methods."""
    out: dict[str, Spelled] = {}
    for cls in (api.Data, api.What, api.Where):
        about = _attributes(cls.__doc__ or "")
        for field in dataclasses.fields(cls):
            if field.name != "data":
                out[field.name] = Spelled([str(field.type)], [about.get(field.name, "")])
    for name, field in FitConfig.model_fields.items():
        out.setdefault(name, Spelled([spelled(field.annotation)], [field.description or ""]))
    for method in of_the_package():
        for name, field in method.Options.model_fields.items():
            found = out.setdefault(name, Spelled([], []))
            kind, said = spelled(field.annotation), f"{method.name}: {textwrap.shorten(field.description or '', MOST, placeholder=' ...')}"
            found.types.extend([kind] if kind not in found.types else [])
            found.about.append(said)
    return out


def of_the_package() -> Iterator[type[Method]]:
    """Classes of the methods that ship with it, by name."""
    for _, cls in sorted(methods.registered().items()):
        if cls.__module__.startswith("mmrl."):
            yield cls


def spelled(kind: Any) -> str:
    """A type as it is written."""
    origin, inside = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        return f"Literal[{', '.join(repr(each) for each in inside)}]".replace("'", '"')
    if origin is typing.Annotated:
        return spelled(inside[0])
    if origin in (typing.Union, types.UnionType):
        return " | ".join(spelled(each) for each in inside)
    if origin is not None:
        return f"{origin.__name__}[{', '.join('...' if each is ... else spelled(each) for each in inside)}]"
    return "None" if kind is type(None) else kind.__name__


def _attributes(doc: str) -> dict[str, str]:
    """What a docstring says of each attribute."""
    out: dict[str, str] = {}
    name = ""
    for line in textwrap.dedent(doc.partition("Attributes:")[2]).split("\n"):
        if line and not line.startswith(" "):
            name, _, text = line.strip().partition(": ")
            out[name] = text
        elif line.strip() and name:
            out[name] += f" {line.strip()}"
    return out


def text() -> str:
    """The whole file."""
    parts = [HEAD]
    for name, option in options().items():
        alternatives = list(dict.fromkeys(part.strip() for kind in option.types for part in _split(kind)))
        about = "; ".join(dict.fromkeys(_merged(option.about)))
        about += "" if about.endswith("...") else "."
        parts.append(f"    {name}: {' | '.join(sorted(alternatives, key=lambda each: each == 'None'))}")
        parts += textwrap.wrap(f'"""{about}"""', WIDTH, initial_indent="    ", subsequent_indent="    ", break_long_words=False)
    return "\n".join([*parts, ""])


def _split(kind: str) -> list[str]:
    """Alternatives of a type, which stand between bars outside brackets."""
    out, depth = [""], 0
    for letter in kind:
        depth += (letter == "[") - (letter == "]")
        if letter == "|" and not depth:
            out.append("")
        else:
            out[-1] += letter
    return out


def _merged(about: list[str]) -> list[str]:
    """Several methods that say the same of an option are named together."""
    if len(about) == 1 or ": " not in about[-1]:
        return [each.removesuffix(".") for each in about]
    first = [each for each in about[:1] if not _of_method(each)]
    groups: dict[str, list[str]] = {}
    for each in about[len(first) :]:
        name, _, said = each.partition(": ")
        groups.setdefault(said, []).append(name)
    return [each.removesuffix(".") for each in first] + [f"{', '.join(names)}: {said}" for said, names in groups.items()]


def _of_method(said: str) -> bool:
    return said.partition(": ")[0] in methods.registered()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="write the file; otherwise print it")
    if parser.parse_args().write:
        TARGET.write_text(text(), encoding="utf-8")
    else:
        print(text())


if __name__ == "__main__":
    main()
