"""The rules that keep the package readable, checked on its source: imports point downwards, files stay short, nothing is written
twice, start-up loads nothing heavy, the packaging files agree."""

from __future__ import annotations

import ast
import importlib
import json
import os
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

from mmrl import methods
from mmrl.protocols.plan import ZERO_SHOT

ROOT = Path(__file__).parents[2]
SRC = ROOT / "src" / "mmrl"
PYTHON = sorted(path for folder in ("src", "tests", "tools", "benchmarks") for path in (ROOT / folder).rglob("*.py"))
SOURCES = sorted(SRC.rglob("*.py"))
LONGEST = 400

BASE = {"class_lists", "errors", "files", "names", "pickles", "plugins", "rows", "templates", "too_long", "version"}
ALLOWED = {
    "clip": BASE,
    "data": BASE,
    "recipes": BASE,
    "reports": BASE,
    "methods": BASE | {"clip"},
    "protocols": BASE | {"recipes"},
    "trust": BASE | {"reports"},
}
ALLOWED["engine"] = BASE | set(ALLOWED)
ALLOWED["fit_options"] = {"clip", "data", "engine", "templates"}  # for type checkers alone
ALLOWED["classifier"] = ALLOWED["engine"] | {"engine"}
ALLOWED["api"] = ALLOWED["classifier"] | {"classifier", "fit_options"}
ALLOWED["sklearn"] = ALLOWED["bulk"] = ALLOWED["api"] | {"api"}
ALLOWED["runtime"] = {"class_lists", "console", "data", "errors", "files", "names", "templates", "too_long", "trust", "version"}  # no torch
ALLOWED["client"], ALLOWED["console"] = {"errors", "version"}, {"errors"}
ALLOWED["export"] = ALLOWED["api"] | {"api", "runtime"}
ALLOWED["server"] = ALLOWED["api"] | {"api"}
ALLOWED["app"] = ALLOWED["export"] | {"export"}
ALLOWED["cli"] = ALLOWED["app"] | {"app", "bulk", "client", "console", "server", "sklearn"}
ALLOWED |= {"errors": set(), "version": set(), "files": {"errors"}, "names": {"errors"}, "pickles": set(), "templates": {"errors", "names"}}
ALLOWED["plugins"] = ALLOWED["rows"] = ALLOWED["class_lists"] = {"errors", "files"}
ALLOWED["too_long"] = {"errors", "names", "templates"}
ALLOWED |= {"__init__": ALLOWED["cli"], "__main__": {"cli"}}

WITHOUT_TORCH = ("recipes", "reports", "protocols", "trust")
TORCH = {"torch", "torchvision", "open_clip", "timm", "safetensors"}
HEAVY = TORCH | {"matplotlib", "sklearn", "scipy", "pydantic", "numpy", "PIL", "huggingface_hub", "jinja2", "pandas"}
GONE = {"accelerate"}  # torch has what was taken from it

THE_PACKAGE = "the command and the package, of the same name"
A_DEFAULT = "what a user gets who names no method"
NAMING = {  # files outside `methods` that may name a method, and why
    "api.py": A_DEFAULT,
    "clip/identities.py": THE_PACKAGE,
    "cli/ablate.py": A_DEFAULT,
    "cli/bench.py": A_DEFAULT,
    "cli/config.py": A_DEFAULT,
    "cli/cost.py": A_DEFAULT,
    "cli/train.py": A_DEFAULT,
    "cli/demo.py": "what it shows",
    "cli/grid.py": THE_PACKAGE,
    "cli/main.py": THE_PACKAGE,
    "engine/record.py": THE_PACKAGE,
    "engine/grid/store.py": THE_PACKAGE,
    "protocols/ablations.py": "the paper's ablations are of MMRL",
    "reports/claims.py": "the paper's claims are about MMRL",
    "reports/ranking.py": "others are compared with it",
    "reports/paper/__init__.py": "a row of the paper's Table 4",
    "server/settings.py": THE_PACKAGE,
}


def part_of(path: Path) -> str:
    """'clip' for src/mmrl/clip/load.py, 'errors' for src/mmrl/errors.py."""
    return path.relative_to(SRC).parts[0].removesuffix(".py")


def imported(tree: ast.AST, path: Path) -> Iterator[str]:
    """Dotted names of every module imported anywhere in `tree`, inside functions too; relative ones made absolute."""
    package = ["mmrl", *path.relative_to(SRC).parts[:-1]] if path.is_relative_to(SRC) else []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*start, *([node.module] if node.module else [])])
            yield from (f"{module}.{alias.name}" for alias in node.names)


def internal(path: Path) -> set[str]:
    """The parts of mmrl that `path` imports; '__init__' for a name that the top level itself provides."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    parts = [[*name.split("."), ""] for name in imported(tree, path) if name.split(".")[0] == "mmrl"]
    return {names[1] if names[1] in ALLOWED or (SRC / names[1]).is_dir() else "__init__" for names in parts}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(SRC)))
def test_imports_point_downwards(path: Path):
    part = part_of(path)
    assert part in ALLOWED, f"src/mmrl/{part} is not in the layout: add it to ALLOWED with what it may import"
    wrong = internal(path) - ALLOWED[part] - {part}
    assert not wrong, f"{path.relative_to(ROOT)} imports mmrl.{', mmrl.'.join(sorted(wrong))}; {part} may import {sorted(ALLOWED[part])}"


def test_the_import_rule_sees_every_form(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "SRC", tmp_path)
    for name in ("clip", "engine", "data"):
        (tmp_path / name).mkdir()
    path = tmp_path / "clip" / "load.py"
    lines = ["import torch", "from mmrl import engine", "from ..data import x", "from . import y", "def f():"]
    path.write_text("\n".join([*lines, "    import mmrl.errors", "    from mmrl import fit"]))
    assert internal(path) == {"engine", "data", "clip", "errors", "__init__"}


@pytest.mark.parametrize("part", WITHOUT_TORCH)
def test_parts_without_torch(part: str):
    for path in (SRC / part).rglob("*.py"):
        roots = {name.split(".")[0] for name in imported(ast.parse(path.read_text(encoding="utf-8")), path)}
        assert not roots & TORCH, f"{path.relative_to(ROOT)} imports {sorted(roots & TORCH)}"


def test_open_clip_is_known_to_clip_alone():
    for path in SOURCES:
        roots = {name.split(".")[0] for name in imported(ast.parse(path.read_text(encoding="utf-8")), path)}
        assert part_of(path) == "clip" or "open_clip" not in roots, f"{path.relative_to(ROOT)} imports open_clip"


def named_in(tree: ast.AST, names: set[str]) -> set[str]:
    """Method names that are string constants in `tree`, alone or in a list with commas; zero-shot CLIP alone is no adapted method."""
    parts = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}  # of f-strings: messages
    texts = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and id(node) not in parts]
    lists = [{part.strip() for part in text.split(",")} for text in texts if isinstance(text, str)]
    return set().union(*(found for found in lists if found <= names | {ZERO_SHOT})) & names


def of_the_package() -> dict[str, str]:
    """Modules of the methods in this package, by name."""
    return {name: cls.__module__ for name, cls in methods.registered().items() if cls.__module__.startswith("mmrl.methods.")}


def test_methods_are_named_by_themselves_alone():
    modules = of_the_package()
    adapted, wrong = set(modules) - {ZERO_SHOT}, {}
    assert {"mmrl", "coop", "linear-probe"} <= adapted
    for path in SOURCES:
        tree, place = ast.parse(path.read_text(encoding="utf-8")), path.relative_to(SRC).as_posix()
        if part_of(path) == "methods":
            continue
        named = named_in(tree, adapted) | {module for module in imported(tree, path) if module.startswith(tuple(modules.values()))}
        if named and place not in NAMING:
            wrong[place] = sorted(named)
        elif place in NAMING:
            assert named, f"src/mmrl/{place} names no method any more: take it out of NAMING"
    assert not wrong, f"methods are found by their names in the registry, and say of themselves what is special: {wrong}"


def test_the_rule_on_names_sees_every_form():
    names = {"mmrl", "coop"}
    for code in ('x == "coop"', '{"coop": 1}', 'f(x="zero-shot,mmrl, coop")', 'match x:\n    case "coop": pass', 'f"{x}" in ("coop",)'):
        assert "coop" in named_in(ast.parse(code), names), code
    for code in ('"the coop of hens"', "coop", '"zero-shot"', '"coop.json"', '"mmrl.run/2"', 'f"mmrl {x}"'):
        assert not named_in(ast.parse(code), names), code


def test_what_is_gone_is_nowhere():
    for path in PYTHON:
        roots = {name.split(".")[0] for name in imported(ast.parse(path.read_text(encoding="utf-8")), path)}
        assert not roots & GONE, f"{path.relative_to(ROOT)} imports {sorted(roots & GONE)}"


@pytest.mark.parametrize("path", PYTHON, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_file_is_too_long(path: Path):
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= LONGEST, f"{path.relative_to(ROOT)} has {lines} lines, {LONGEST} are allowed: split it by responsibility"


def test_nothing_is_written_twice():
    """Two modules share a responsibility when they hold the same function or a public class of the same name."""
    bodies: dict[str, list[str]] = defaultdict(list)
    classes: dict[str, list[str]] = defaultdict(list)
    for path in PYTHON:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        if path.is_relative_to(SRC):
            for node in tree.body:
                if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                    classes[node.name].append(str(path.relative_to(ROOT)))
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                body = node.body[1:] if ast.get_docstring(node) else node.body
                if sum(isinstance(each, ast.stmt) for statement in body for each in ast.walk(statement)) >= 4:
                    bodies["".join(map(ast.dump, body))].append(f"{path.relative_to(ROOT)}:{node.name}")
    assert not [places for places in bodies.values() if len(places) > 1]
    assert not {name: places for name, places in classes.items() if len(places) > 1}


def test_nothing_unpickles():
    for path in PYTHON:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
                safe = [word for word in node.keywords if word.arg == "weights_only" and ast.unparse(word.value) == "True"]
                assert safe, f"{path.relative_to(ROOT)}:{node.lineno}: torch.load without weights_only=True"
        if path.is_relative_to(SRC):
            roots = {name.split(".")[0] for name in imported(tree, path)}
            assert not roots & {"pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}, path


def loaded_by(code: str) -> set[str]:
    """Top-level modules in a fresh interpreter after `code`, whose output does not matter."""
    report = f"import json, sys\ntry:\n    {code}\nexcept SystemExit as left:\n    assert not left.code, left\n"
    report += "print('\\n' + json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))"
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run([sys.executable, "-c", report], env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_import_loads_nothing_heavy():
    loaded = loaded_by("import mmrl")
    assert "mmrl" in loaded
    assert not loaded & HEAVY


@pytest.mark.parametrize("words", [["--help"], ["train", "--help"], ["--version"]])
def test_help_loads_nothing_heavy(words: list[str]):
    loaded = loaded_by(f"sys.argv = {['mmrl', *words]}; from mmrl.cli.main import run; run()")
    assert "typer" in loaded
    own = set() if words == ["--help"] else {"pydantic"}  # typer loads it to read options
    assert not loaded & (HEAVY - own)


def test_reports_and_recipes_load_no_torch():
    code = "import mmrl.recipes, mmrl.reports, mmrl.reports.plots, mmrl.reports.card"
    assert not loaded_by(code) & TORCH


def test_packaging_files_agree():
    toml = importlib.import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")
    project = toml.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    version = re.search(r'__version__ = "(.+)"', (SRC / "version.py").read_text(encoding="utf-8"))
    assert version and f"\nversion: {version[1]}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"## {version[1]}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")

    lines = [line for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    pin = re.compile(r'([A-Za-z0-9._-]+)==[0-9][0-9a-z.]*(; python_version (<|>=) "3\.\d+")?')
    assert not [line for line in lines if not pin.fullmatch(line)]
    pinned = {re.sub("[-_.]+", "-", line.partition("==")[0]).lower() for line in lines}
    assert not [name for name in pinned if name.startswith(("nvidia", "cuda"))]
    wanted = [*project["dependencies"], *(each for extra in project["optional-dependencies"].values() for each in extra)]
    names = {re.sub("[-_.]+", "-", re.split(r"[\[><=; ]", each)[0]).lower() for each in wanted}
    assert names - {"mmrl"} <= pinned
    assert not (names | pinned) & GONE
