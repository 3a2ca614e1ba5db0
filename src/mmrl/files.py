"""Files: reading what users name, within bounds; and writing so that a kill or a full disk leaves the old file or the new one, whole."""

from __future__ import annotations

import difflib
import json
import math
import os
import stat
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from mmrl.errors import MmrlError, UsageError

try:
    import fcntl
except ImportError:  # not POSIX: there are no locks then
    fcntl = None  # type: ignore[assignment]

LARGEST = 2**30  # bytes of a file that is read whole; none that belongs here comes near
LARGEST_JSON = 2**26  # bytes of JSON that this package wrote; a listing of ImageNet's images has some 40 MB
DEEPEST_JSON = 64  # levels of lists and objects: more would overflow the stack of whoever shows, compares or writes them again
LONGEST_NAME = 255  # bytes of a file's name, on the usual file systems
LONGEST_PATH = 3500  # bytes, which leaves room for the names of files in a folder: systems take 4096
PARTIAL = ".partial"  # how temporary files end
ABANDONED = 60.0  # seconds after which a temporary file that nobody holds is a killed process's


def user_path(given: str | Path) -> Path:
    """The path that a user wrote, with ~ filled in.

    Raises:
        UsageError: it cannot be a path: blank, of a user who is not known, too long as a whole or in one name, or not encodable.
    """
    text = os.fspath(given)
    if not text.strip() or "\0" in text:
        why = "it has a zero byte" if text.strip() else "it is blank"
        raise UsageError(f"'{text}' is no path: {why}. Give the name of a file or folder.")
    try:
        path = Path(text).expanduser()
        longest = max(path.parts, key=lambda part: len(os.fsencode(part)), default="")
    except RuntimeError as error:  # pathlib's, where a home folder is not known
        raise UsageError(f"'{text}' begins with a user's home folder that is not known here. Write the whole path.") from error
    except UnicodeError as error:
        raise UsageError(f"{text!a} cannot be the name of a file here: {error}.") from error
    if len(os.fsencode(longest)) > LONGEST_NAME:
        raise UsageError(f"'{longest}' is too long for the name of a file: at most {LONGEST_NAME} bytes between two slashes.")
    if len(os.fsencode(path)) > LONGEST_PATH:
        raise UsageError(f"'{text}' is too long for a path: at most {LONGEST_PATH:,} bytes. Give a shorter one, or a link to it.")
    return path


def near_path(path: Path) -> str:
    """' Did you mean PATH?' with what lies where `path`, which is missing, should, under the nearest name; '' where nothing is like it.

    Where a folder above is missing, too, it is that one's name that is looked for.
    """
    missing, rest = path, Path()
    with suppress(OSError):
        while missing.name and not missing.parent.is_dir():
            missing, rest = missing.parent, missing.name / rest
        names = [entry.name for entry in missing.parent.iterdir() if not entry.name.startswith(".")]
        folded = {name.casefold(): name for name in names}
        near = difflib.get_close_matches(missing.name.casefold(), folded, n=1, cutoff=0.6)
        if near:
            found = missing.parent / folded[near[0]]
            return f" Did you mean {found / rest if (found / rest).exists() else found}?"
    return ""


def read_regular(path: Path, *, what: str, most: int = LARGEST) -> bytes:
    """Content of a file, if it is one (no device, pipe or folder) of at most `most` bytes.

    Raises:
        UsageError: it is none, larger, or cannot be read; `what` names it in the message.
    """
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            kind = "a folder" if stat.S_ISDIR(found.st_mode) else "a device or a pipe"
            raise UsageError(f"{what} {path} is {kind}; give a regular file.")
        if found.st_size > most:
            raise UsageError(f"{what} {path} has {found.st_size:,} bytes; at most {most:,} are read. It is not what is expected here.")
        with path.open("rb") as file:
            return file.read(found.st_size)
    except FileNotFoundError as error:
        raise UsageError(f"{what} {path} does not exist.{near_path(path)} Check the path.") from error
    except OSError as error:
        raise UsageError(f"cannot read {what} {path}: {error.strerror or error}. Check the path and its permissions.") from error


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it to `path` when the block ends well.

    Raises:
        MmrlError: the folder cannot be written to, or the disk is full. `path` is as it was before.
    """
    with _explained(path), _beside(path) as temporary:
        yield temporary
        _settle(temporary)
        os.replace(temporary, path)


def write_together(contents: Mapping[Path, bytes]) -> None:
    """Write files that belong together, in this order. All are on the disk before the first is renamed, so a full one leaves the old."""
    with ExitStack() as stack:
        written: dict[Path, Path] = {}
        for path, content in contents.items():
            with _explained(path):
                written[path] = stack.enter_context(_beside(path))
                written[path].write_bytes(content)
                _settle(written[path])
        for path, temporary in written.items():
            with _explained(path):
                os.replace(temporary, path)


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise MmrlError(f"cannot write {path}: {error.strerror or error}. Free some space or choose another folder.") from error


@contextmanager
def _beside(path: Path) -> Iterator[Path]:
    """A temporary file in the folder of `path`, held by this process and taken away in the end."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:40]}.", suffix=PARTIAL)  # 40 letters may be 160 bytes
    held = _hold(handle)
    if not held:
        os.close(handle)
    try:
        yield Path(name)
    finally:
        Path(name).unlink(missing_ok=True)
        if held:
            os.close(handle)


def _settle(temporary: Path) -> None:
    with temporary.open("rb") as written:
        os.fsync(written.fileno())
    temporary.chmod(0o644)


def _hold(descriptor: int) -> bool:
    """Lock an open file for this process; whether that went. An open file cannot be renamed where there are no such locks."""
    if fcntl is None:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def sweep(folder: Path, *, age: float = ABANDONED) -> None:
    """Take away temporary files that killed processes left in `folder`: those that are `age` seconds old and held by nobody."""
    for left in folder.glob(f".*{PARTIAL}"):
        with suppress(OSError):
            if left.is_file() and time.time() - left.stat().st_mtime >= age:
                remove_unused(left)


def remove_unused(path: Path) -> bool:
    """Take away a file that no process holds (`share`, or a temporary one that is being written); whether it is gone."""
    try:
        descriptor = os.open(path, os.O_RDWR)
        try:
            if fcntl is not None and not _hold(descriptor):
                return False
            path.unlink(missing_ok=True)
        finally:
            os.close(descriptor)
    except OSError:
        return False
    return True


def share(descriptor: int) -> None:
    """Hold an open file that others may read too, until it is closed. It may be one that is being replaced: then nobody needs it held."""
    if fcntl is not None:
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)


def write_bytes(path: Path, content: bytes) -> None:
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def write_text(path: Path, content: str) -> None:
    write_bytes(path, encoded(content))


def encoded(text: str) -> bytes:
    """`text` in UTF-8. Raises UsageError where it holds what is not, as the name of a file in another encoding may."""
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        around = text[max(0, error.start - 40) : error.end + 20]
        raise UsageError(f"{around!a} is not UTF-8, so no file can hold it. Rename the file or folder that is called so.") from error


def write_json(path: Path, content: Any, *, compact: bool = False) -> None:
    """Write `content`, indented; `compact` puts it on one line, for files that are many and read by programs."""
    write_text(path, json_text(content, compact=compact))


def json_text(content: Any, *, compact: bool = False) -> str:
    layout: dict[str, Any] = {"separators": (",", ":")} if compact else {"indent": 2}
    return json.dumps(content, ensure_ascii=False, allow_nan=False, **layout) + "\n"


def read_json(path: Path, *, what: str, most: int = LARGEST_JSON) -> Any:
    """Parsed content of `path`, of at most `most` bytes, strictly JSON: no NaN or Infinity, and text that is Unicode.

    Raises:
        MmrlError: the file is missing, larger or not valid JSON; `what` names it in the message.
    """
    try:
        return parse_json(read_regular(path, what=what, most=most))
    except UsageError as error:  # whoever asks knows whether the user named the file
        raise MmrlError(str(error)) from error
    except ValueError as error:
        raise MmrlError(f"{what} is damaged: {path} ({error})") from error


def parse_json(text: str | bytes) -> Any:
    """What a JSON text holds. Raises ValueError where it is not strictly JSON, not Unicode, or nested too deeply."""

    def refused(constant: str) -> None:
        raise ValueError(f"{constant} is no number in JSON")

    def finite(number: str) -> float:
        value = float(number)
        if math.isinf(value):
            raise ValueError(f"{number:.20} is too large a number")
        return value

    try:
        written = text.decode("utf-8-sig") if isinstance(text, bytes) else text
        content = json.loads(written, parse_constant=refused, parse_float=finite)
        if "\\ud" in written or "\\uD" in written:  # half of a pair is no letter, and cannot be written again
            json.dumps(content, ensure_ascii=False).encode()
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    except UnicodeError as error:
        raise ValueError(f"it is not UTF-8: {error}") from error
    if written.count("[") + written.count("{") > DEEPEST_JSON:
        _check_depth(content)
    return content


def _check_depth(content: Any) -> None:
    level = [content]
    for _ in range(DEEPEST_JSON):
        inside = (each.values() if isinstance(each, dict) else each for each in level)
        level = [inner for values in inside for inner in values if isinstance(inner, (dict, list))]
        if not level:
            return
    raise ValueError("it is nested too deeply")


def lock(path: Path) -> int:
    """Descriptor of the locked file `path`. The system gives the lock back when the process ends, however it ends.

    Raises:
        BlockingIOError: another process has it.
    """
    if fcntl is None:
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
