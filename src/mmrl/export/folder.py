"""Folders that are written whole or not at all, and the manifest in them."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mmrl.errors import MmrlError, UsageError
from mmrl.files import PARTIAL, json_text, user_path
from mmrl.runtime.manifest import MANIFEST, file_entry


@contextmanager
def whole_folder(given: str | Path) -> Iterator[tuple[Path, Path]]:
    """The folder that a user named, and a temporary one beside it that takes its place when the block ends well.

    Raises:
        UsageError: something else than an earlier export is there.
        MmrlError: it cannot be written.
    """
    folder = user_path(given)
    try:
        _require_free(folder)
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name[:40]}.", suffix=PARTIAL))
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


def _require_free(folder: Path) -> None:
    if folder.is_dir():
        if any(folder.iterdir()) and not (folder / MANIFEST).is_file():
            raise UsageError(f"{folder} holds something that is no export: it has no {MANIFEST}. Choose a new folder.")
    elif folder.exists() or folder.is_symlink():
        raise UsageError(f"{folder} is a file; an export is a folder. Choose another name.")


def _exchange(temporary: Path, folder: Path) -> None:
    """Put `temporary` at `folder`; what was there is gone once it is in place."""
    if not folder.exists():
        temporary.rename(folder)
        return
    old = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name[:40]}.", suffix=PARTIAL))
    folder.rename(old / "old")
    try:
        temporary.rename(folder)
    except OSError:
        (old / "old").rename(folder)
        raise
    finally:
        shutil.rmtree(old, ignore_errors=True)


def write_manifest(folder: Path, content: dict[str, Any]) -> None:
    """Write the manifest of all that is in `folder`, with the size and the hash of each file."""
    files = {path.name: file_entry(path) for path in sorted(folder.iterdir()) if path.name != MANIFEST}
    (folder / MANIFEST).write_text(json_text({**content, "files": files}), encoding="utf-8")
