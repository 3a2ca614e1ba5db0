"""What users add from outside: modules that register methods, data sets or recipes when they are imported.

Installed packages name theirs in the entry-point groups `mmrl.methods` and `mmrl.datasets`. Single files are named by `mmrl --plugin` or by
the environment variable MMRL_PLUGINS, which processes of a grid inherit, so that each of them knows the same methods.
"""

from __future__ import annotations

import hashlib
import importlib.machinery
import importlib.util
import os
import sys
import traceback
import warnings
from collections.abc import Iterable
from importlib.metadata import entry_points
from pathlib import Path

from mmrl.errors import MmrlError, Notice, UsageError, first_line
from mmrl.files import read_regular, user_path

VARIABLE = "MMRL_PLUGINS"
LARGEST = 2**24  # bytes of a plugin's source
_revisions: dict[str, str] = {}  # by the name of a plugin's module
_busy: set[str] = set()  # plugins import mmrl, which loads plugins


def add(files: Iterable[str | Path]) -> None:
    """Load `files` now, and have every process that this one starts load them, too.

    Raises:
        UsageError, MmrlError: as `load`.
    """
    paths = [os.path.abspath(user_path(file)) for file in files]
    for path in paths:
        if os.pathsep in path:
            raise UsageError(f"plugin {path}: '{os.pathsep}' separates files in {VARIABLE}, so the path must not have one. Rename it.")
    before = os.environ.get(VARIABLE, "")
    os.environ[VARIABLE] = os.pathsep.join(dict.fromkeys([*_named(), *paths]))
    try:
        load()
    except MmrlError:
        os.environ[VARIABLE] = before
        raise


def load() -> None:
    """Import the files that MMRL_PLUGINS names, each once.

    Raises:
        UsageError: there is no such file, or it cannot be read.
        MmrlError: it fails; the message has its file, line and error.
    """
    if _busy:
        return
    for name in _named():
        _import(user_path(name))


def load_installed(group: str) -> None:
    """Import what installed packages name in an entry-point group. One that fails is left out with a note: the others are needed."""
    for entry in entry_points(group=group):
        try:
            entry.load()
        except Exception as error:
            package = entry.dist.name if entry.dist else entry.value
            warnings.warn(f"the plugin '{entry.name}' of the package {package} is left out: {_said(error)}", Notice, stacklevel=2)


def revision_of(module: str) -> str:
    """Hash of the plugin file that `module` was loaded from; '' for any other module."""
    return _revisions.get(module, "")


def file_of(module: str) -> str:
    """Name of the plugin file, without its folder, that `module` was loaded from; '' for any other module."""
    return Path(str(sys.modules[module].__file__)).name if module in _revisions else ""


def _named() -> list[str]:
    return [name for name in os.environ.get(VARIABLE, "").split(os.pathsep) if name.strip()]


def _import(path: Path) -> None:
    if not path.is_file():
        raise UsageError(f"plugin {path} {'is a folder' if path.is_dir() else 'does not exist'}; give a Python file.")
    path = path.resolve()
    module = f"mmrl_plugin_{path.stem}_{hashlib.sha256(os.fsencode(path)).hexdigest()[:8]}"
    if module in _revisions:
        return
    content = read_regular(path, what="plugin", most=LARGEST)
    spec = importlib.util.spec_from_loader(module, importlib.machinery.SourceFileLoader(module, str(path)))
    assert spec is not None and spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    made.__file__ = str(path)
    sys.modules[module], _revisions[module] = made, hashlib.sha256(content).hexdigest()[:16]
    _busy.add(module)
    try:
        spec.loader.exec_module(made)
    except (Exception, SystemExit) as error:
        del sys.modules[module], _revisions[module]
        raise MmrlError(f"plugin {path}{_line(error, path)}: {_said(error)}") from error
    finally:
        _busy.discard(module)


def _line(error: BaseException, path: Path) -> str:
    """', line N': where in the file it went wrong."""
    if isinstance(error, SyntaxError) and error.filename == str(path):
        return f", line {error.lineno}"
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    return f", line {lines[-1]}" if lines else ""


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {error.msg if isinstance(error, SyntaxError) else first_line(error)}"
