"""Where the command meets its user: whatever goes wrong is said in one line, with what it was about, and an exit code.

Errors that point to a fault of this program (an index, a type, an assertion) are none of that: they end with their traceback, which is
what a report of the fault needs. With MMRL_DEBUG=1 in the environment every error does.
"""

from __future__ import annotations

import codecs
import errno
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import NoReturn

from mmrl.console import launcher
from mmrl.errors import MmrlError, Notice, first_line, shortened

DEBUG = "MMRL_DEBUG"
_ESCAPED = "mmrl.escaped"
LONGEST_OF_TORCH = 400  # letters; a message of it may list every device there could be
_NO_SUCH_PATH = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.EINVAL)


def told(error: BaseException) -> tuple[str, int] | None:
    """What to say of an error and the exit code: 2 where what was asked for cannot be, 1 where it failed; None for a fault of ours."""
    if isinstance(error, MmrlError):
        return str(error), error.exit_code
    if isinstance(error, OSError):
        name = os.fsdecode(error.filename) if isinstance(error.filename, (str, bytes)) else "output" if error.errno == errno.ENOSPC else ""
        what = error.strerror or first_line(error)
        return f"{name}: {what}." if name else f"{what}.", 2 if error.errno in _NO_SUCH_PATH else 1
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return f"there is not enough memory for this: {first_line(error)}", 1
    if isinstance(error, UnicodeError):
        return f"text that cannot be read or written: {first_line(error)}", 1
    if isinstance(error, RecursionError):
        return "a file is nested too deeply to be read.", 1
    if isinstance(error, RuntimeError):  # torch's, of memory, devices and shapes that no check foresaw
        return shortened(first_line(error), LONGEST_OF_TORCH), 1
    return None


def interrupted() -> NoReturn:
    """Say that the user stopped the command, and end."""
    print("interrupted", file=sys.stderr)
    sys.exit(130)


def _escaped(error: UnicodeError) -> tuple[str, int]:
    r"""Letters that a stream cannot show as \uXXXX, which JSON reads as they were, unlike the \xXX of Python's own escapes."""
    assert isinstance(error, UnicodeEncodeError)
    units = error.object[error.start : error.end].encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[at : at + 2].hex()}" for at in range(0, len(units), 2)), error.end


codecs.register_error(_ESCAPED, _escaped)


def guarded(command: Callable[[], object]) -> None:
    """Run `command`; its end is the process's. What it warns of as a `Notice` is printed as a note."""
    for stream in (sys.stdout, sys.stderr):  # a name that the terminal cannot show is shown escaped
        with suppress(AttributeError, ValueError):
            stream.reconfigure(errors=_ESCAPED)  # type: ignore[union-attr]
    try:
        with _notes():
            try:
                command()
            finally:
                sys.stdout.flush()  # here, where a full disk can still be told
    except KeyboardInterrupt:
        interrupted()
    except BrokenPipeError:
        _drop_output()
        sys.exit(0)
    except Exception as error:
        found = told(error)
        if found is None or os.environ.get(DEBUG, "") not in ("", "0"):
            raise
        text, code = found
        if isinstance(error, OSError):
            _drop_output()
        lines = "\n".join(map(shortened, text.split("\n")))
        launcher.fail(f"error: {lines}", code)


@contextmanager
def _notes() -> Iterator[None]:
    with warnings.catch_warnings():
        if os.environ.get(DEBUG, "") in ("", "0"):
            warnings.simplefilter("ignore")
        warnings.filterwarnings("always", category=Notice)
        usual, said = warnings.showwarning, set[str]()

        def show(message: Warning | str, category: type[Warning], *where: object, **more: object) -> None:
            if issubclass(category, Notice):
                if str(message) not in said:  # a grid comes to the same for every seed
                    print(f"note: {message}", file=sys.stderr)
                said.add(str(message))
            else:
                usual(message, category, *where, **more)  # type: ignore[arg-type]

        warnings.showwarning = show  # type: ignore[assignment]
        yield


def _drop_output() -> None:
    """What is still to be written goes nowhere: writing it again at the end of the process would fail again, with a traceback."""
    with suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
