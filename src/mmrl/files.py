"""Writing files so that a kill or a full disk leaves either the old file or the new one, never half of one."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mmrl.errors import MmrlError


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it to `path` when the block ends well.

    Raises:
        MmrlError: the folder cannot be written to, or the disk is full. `path` is as it was before.
    """
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".partial")
        os.close(handle)
        temporary = Path(name)
        yield temporary
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        temporary.chmod(0o644)
        os.replace(temporary, path)
    except OSError as error:
        raise MmrlError(f"cannot write {path}: {error.strerror or error}. Free some space or choose another folder.") from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes) -> None:
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def write_text(path: Path, content: str) -> None:
    write_bytes(path, content.encode())


def write_json(path: Path, content: Any, *, compact: bool = False) -> None:
    """Write `content`, indented; `compact` puts it on one line, for files that are many and read by programs."""
    layout: dict[str, Any] = {"separators": (",", ":")} if compact else {"indent": 2}
    write_text(path, json.dumps(content, ensure_ascii=False, **layout) + "\n")


def read_json(path: Path, *, what: str) -> Any:
    """Parsed content of `path`.

    Raises:
        MmrlError: the file is missing or is not valid JSON; `what` names it in the message.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise MmrlError(f"{what} not found: {path}") from error
    except (OSError, ValueError) as error:
        raise MmrlError(f"{what} is damaged: {path} ({error})") from error


def lock(path: Path) -> int:
    """Descriptor of the locked file `path`. The system gives the lock back when the process ends, however it ends.

    Raises:
        BlockingIOError: another process has it.
    """
    try:
        import fcntl
    except ImportError:  # not POSIX: no lock there
        return os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(descriptor), path.stat()):
                return descriptor
        except FileNotFoundError:  # taken away by its holder
            pass
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # its holder took the file away in between: lock the new one


def unlock(path: Path, descriptor: int) -> None:
    """Give back what `lock` gave, and take the file away."""
    path.unlink(missing_ok=True)  # before the lock goes: `lock` notices a file that was unlinked
    os.close(descriptor)
