"""Folders that are written whole or not at all, and the manifest in them."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from glob import escape
from pathlib import Path
from typing import Any

from mmrl.errors import MmrlError, UsageError
from mmrl.files import PARTIAL, json_text, read_json, user_path
from mmrl.names import listed
from mmrl.runtime.manifest import FULL, MANIFEST, TRAINED, file_entry

INDEX, PAGE, ORT = "index.html", "page", "ort"  # what lies beside the files that a manifest names, where the export is a page
_ABANDONED = 86_400.0  # seconds; no export takes as long


@contextmanager
def whole_folder(given: str | Path) -> Iterator[tuple[Path, Path]]:
    """The folder that a user named, and a temporary one beside it that takes its place when the block ends well.

    Raises:
        UsageError: something else than an earlier export is there, or the folder is the current one or holds it.
        MmrlError: it cannot be written.
    """
    folder = user_path(given)
    try:
        if Path.cwd().is_relative_to(folder.resolve()):
            raise UsageError(f"{folder} is the folder that you are in, or holds it; an export takes a place of its own. Name a new one.")
        _require_free(folder)
        folder.parent.mkdir(parents=True, exist_ok=True)
        _sweep(folder)
        temporary = _temporary(folder)
    except OSError as error:
        raise MmrlError(f"cannot write {folder}: {error.strerror or error}. Choose another folder.") from error
    try:
        yield folder, temporary
        temporary.chmod(0o755)
        _require_free(folder)
        _exchange(temporary, folder)
    except OSError as error:
        raise MmrlError(f"cannot write {folder}: {error.strerror or error}. Free some space or choose another folder.") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _temporary(folder: Path) -> Path:
    return Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name[:40]}.", suffix=PARTIAL))


def _sweep(folder: Path) -> None:
    """Take away the temporary folders of `folder` that killed exports left."""
    for left in folder.parent.glob(f".{escape(folder.name[:40])}.{'?' * 8}{PARTIAL}"):
        with suppress(OSError):
            if left.is_dir() and time.time() - left.stat().st_mtime >= _ABANDONED:
                shutil.rmtree(left)


def _require_free(folder: Path) -> None:
    if folder.is_dir():
        found, own = {path.name for path in folder.iterdir()}, _written(folder)
        if found and own is None:
            raise UsageError(f"{folder} holds something that is no export: it has no {MANIFEST} of one. Choose a new folder.")
        if own is not None and (other := sorted(found - own)):
            raise UsageError(f"{folder} holds something besides an export: {listed(other, 3)}. Move it away, or choose a new folder.")
    elif folder.exists() or folder.is_symlink():
        raise UsageError(f"{folder} is a file; an export is a folder. Choose another name.")


def _written(folder: Path) -> set[str] | None:
    """Names of what an export wrote into `folder`; None where there is none."""
    try:
        content = read_json(folder / MANIFEST, what="manifest of an export")
        if isinstance(content["format"], int) and content["kind"] in (FULL, TRAINED):
            return {MANIFEST, *content["files"], INDEX, PAGE, ORT}
    except (MmrlError, KeyError, TypeError):
        pass
    return None


def _exchange(temporary: Path, folder: Path) -> None:
    """Put `temporary` at `folder`; what was there is gone once it is in place."""
    if not folder.exists():
        temporary.rename(folder)
        return
    old = _temporary(folder)
    try:
        folder.rename(old / "old")
        temporary.rename(folder)
    except BaseException:  # also a key pressed in between
        if not folder.exists():
            (old / "old").rename(folder)
        raise
    finally:
        if folder.exists():
            shutil.rmtree(old, ignore_errors=True)


def write_manifest(folder: Path, content: dict[str, Any]) -> None:
    """Write the manifest of all that is in `folder`, with the size and the hash of each file."""
    files = {path.name: file_entry(path) for path in sorted(folder.iterdir()) if path.name != MANIFEST}
    (folder / MANIFEST).write_text(json_text({**content, "files": files}), encoding="utf-8")
