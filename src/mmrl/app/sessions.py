"""All visitors: who is there, and what goes when somebody has left."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from mmrl.app.jobs import Queue
from mmrl.app.session import Backbones, Session
from mmrl.app.uploads import UploadLimits
from mmrl.errors import MmrlError, UsageError
from mmrl.files import lock, unlock

PREFIX = "mmrl-app-"
OWN = "visitor-"  # begins the name of a visitor's folder
LOCK = ".lock"
MOST = 100  # visitors at once
IDLE = 2 * 3600.0  # seconds without a click after which a visitor's photos go, though the page is still open
GRACE = 300.0  # seconds after the page was closed, or the connection lost
UPLOADED = 600.0  # seconds that an upload may lie around before it is read
EVERY = 20.0  # seconds between two looks
NEW = 60.0  # seconds that a folder may exist before its process has locked it
log = logging.getLogger(__name__)


class Sessions:
    """The visitors by a key that the browser of each has.

    Args:
        backbones: that may be chosen.
        parent: where the folder of all photos is made; default: the system's folder for temporary files.
        ended: is given the key of a visitor whose photos are gone.

    Attributes:
        root: that folder, private to this user: uploads, and below `visitor-...` what each visitor has.
    """

    def __init__(
        self, backbones: Backbones, limits: UploadLimits | None = None, *, parent: Path | None = None,
        ended: Callable[[str], object] = lambda key: None,
    ) -> None:  # fmt: skip
        self.backbones, self.limits = backbones, limits or UploadLimits()
        place = Path(tempfile.gettempdir()) if parent is None else parent
        remove_abandoned(place)
        try:
            self.root = Path(tempfile.mkdtemp(prefix=PREFIX, dir=place)).resolve()  # of mode 0700
        except OSError as error:
            raise MmrlError(f"cannot make a folder for photos in {place}: {error.strerror or error}. Set TMPDIR to another.") from error
        self._held = lock(self.root / LOCK)
        self.ended = ended
        self._queue = Queue()
        self._sessions: dict[str, Session] = {}
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._watcher = threading.Thread(target=self._watch, name="mmrl-app-sweep", daemon=True)
        self._watcher.start()

    def __len__(self) -> int:
        return len(self._sessions)

    def of(self, key: str | None) -> Session:
        """The visitor's session, a new one for a new key. Raises UsageError for no key, and where there are too many visitors."""
        if not key:
            raise UsageError("Your browser did not say which page this is. Load it again.")
        with self._lock:
            if key not in self._sessions:
                if len(self._sessions) >= MOST or self._over.is_set():
                    raise UsageError("There are too many visitors at the moment. Try again in some minutes.")
                folder = self.root / f"{OWN}{secrets.token_hex(16)}"
                self._sessions[key] = Session(folder, self.backbones, self._queue, self.limits)
            session = self._sessions[key]
            session.used, session.left = time.monotonic(), None
            return session

    def leave(self, key: str | None) -> None:
        """The page of this visitor was closed. What is there goes after a while, as the connection may only have been lost."""
        with self._lock:
            session = self._sessions.get(key or "")
            if session is not None:
                session.left = time.monotonic()

    def sweep(self) -> None:
        """Take away what visitors who are gone left, and uploads that nobody read."""
        now = time.monotonic()
        with self._lock:
            for each in self._sessions.values():
                if each.busy:  # a visitor who waits for a training does not click
                    each.used = now
            gone = [
                key for key, each in self._sessions.items()
                if (each.left is not None and now - each.left > GRACE) or now - each.used > IDLE
            ]  # fmt: skip
            sessions = {key: self._sessions.pop(key) for key in gone}
        for key, session in sessions.items():
            with _logged():
                session.close()
            with _logged():
                self.ended(key)
        for path in self._uploads():
            _remove_old(path)

    def close(self) -> None:
        """End everything and take all photos away."""
        self._over.set()
        with self._lock:
            sessions, self._sessions = list(self._sessions.values()), {}
        for session in sessions:
            with _logged():
                session.close()
        self._queue.close()
        self._watcher.join(10)
        if self.root.exists():
            unlock(self.root / LOCK, self._held)
            with _logged():
                shutil.rmtree(self.root, ignore_errors=True)

    def room(self, coming: int = 0) -> bool:
        """Whether another upload may come: those that were not read yet, or come with `coming` bytes, are few, and the disk is not full."""
        most = 4 * self.limits.upload_bytes
        waiting = coming + sum(map(_size, self._uploads()))
        return waiting < most and shutil.disk_usage(self.root).free > most

    def _uploads(self) -> list[Path]:
        return [path for path in self.root.iterdir() if not path.name.startswith((OWN, LOCK))]

    def _watch(self) -> None:
        while not self._over.wait(EVERY):
            with _logged():
                self.sweep()


@contextlib.contextmanager
def _logged() -> Iterator[None]:
    """What goes wrong with one visitor goes to the log, and keeps nobody from taking away what others left."""
    try:
        yield
    except Exception:
        log.exception("could not take away all that visitors left")


def _files(place: Path) -> list[os.stat_result]:
    """Of an upload, which lies in a folder of its own, or is being written."""
    found = []
    for each in [place, *place.rglob("*")]:
        with contextlib.suppress(OSError):  # it went in between
            found.append(each.stat())
    return found


def _size(place: Path) -> int:
    return sum(each.st_size for each in _files(place))


def _remove_old(path: Path) -> None:
    with contextlib.suppress(OSError):
        if time.time() - max((each.st_mtime for each in _files(path)), default=0.0) > UPLOADED:
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def remove_abandoned(place: Path) -> None:
    """Take away folders in `place` of this user's processes that were killed before they could."""
    if os.name != "posix":  # without locks it cannot be told who lives
        return
    for root in place.glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError, RecursionError):  # the latter of folders inside each other without end
            found = root.lstat()
            own = not hasattr(os, "getuid") or found.st_uid == os.getuid()
            if own and root.is_dir() and not root.is_symlink() and time.time() - found.st_ctime > NEW:
                unlock(root / LOCK, lock(root / LOCK))  # BlockingIOError while its process lives
                shutil.rmtree(root, ignore_errors=True)
