"""Identities of backbones that were hashed before, in small files of the user's cache folder.

A file's name is a hash of all that an identity follows from: the files that the weights came from, with their sizes and times; the code and
the releases that read them; the layers, and some values of every tensor. So what has changed is hashed again, and nothing has to be
cleared.
"""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from mmrl.errors import MmrlError, UsageError
from mmrl.files import read_regular, write_text

if TYPE_CHECKING:
    from mmrl.clip.backbone import Clip

PLACE = "MMRL_CACHE"  # the environment variable that names another folder
KEPT = 200  # identities
MOST_FILES = 500  # that one backbone may come from
YOUNG = 2.0  # seconds: a file changed since may change again within one tick of its file system's clock
SAMPLE = 16  # values of each tensor
_RELEASES = ("torch", "open_clip_torch", "safetensors", "timm", "transformers")
Stamp = tuple[tuple[Any, ...], ...]


def stamp_of(sources: Sequence[Path]) -> Stamp | None:
    """Name, size and times of every file that is one of `sources` or in one. None where there is none, or not all can be looked at."""
    try:
        files = [file for source in sources for file in _files(source)]
        states = [(os.path.realpath(file), file.stat()) for file in files[: MOST_FILES + 1]]
    except OSError:
        return None
    if not states or len(states) > MOST_FILES:
        return None
    return tuple((place, s.st_size, s.st_mtime_ns, s.st_ctime_ns, s.st_ino) for place, s in states)


def _files(source: Path) -> Iterator[Path]:
    yield from (sorted(each for each in source.rglob("*") if each.is_file()) if source.is_dir() else [source])


def recall(clip: Clip, sources: Sequence[Path], before: Stamp | None) -> None:
    """Give `clip`, just loaded, its identity: the kept one, or else a new one, which is kept. Where that cannot be, nothing is done, and
    the identity is computed when it is asked for.

    Args:
        sources: files and folders that decide the weights.
        before: their stamp from before they were read.
    """
    known = code()
    if before is None or known is None or stamp_of(sources) != before:
        return
    name = hash_of(known, releases(), before, clip.outline(), _sample(clip))
    file = folder() / name
    identity = _kept(file)
    if identity is None:
        if time.time_ns() - max(max(times) for _, _, *times, _ in before) < YOUNG * 1e9 or not writable(file.parent):
            return
        identity = clip.identity
        with suppress(MmrlError, UsageError, OSError):
            write_text(file, f"{identity} {hash_of(name, identity)}\n")
            _clear(file.parent)
    clip.__dict__["identity"] = identity


def folder() -> Path:
    """Where identities are kept: $MMRL_CACHE, or mmrl in the user's cache folder."""
    place = os.environ.get(PLACE) or os.path.join(os.environ.get("XDG_CACHE_HOME") or os.path.join("~", ".cache"), "mmrl")
    return Path(os.path.expanduser(place)) / "identities"


def _kept(file: Path) -> str | None:
    """The identity in `file`; None where there is none, or it is not as it was written."""
    with suppress(UsageError, UnicodeError):
        found = re.fullmatch(r"([0-9a-f]{16}) ([0-9a-f]{64})\n", read_regular(file, what="identity", most=100).decode())
        if found and found[2] == hash_of(file.name, found[1]):
            return found[1]
    return None


def writable(place: Path) -> bool:
    """Whether files can be put into the folder, which is made."""
    try:
        place.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(place, os.W_OK)


def _clear(place: Path) -> None:
    """Take away the oldest identities over `KEPT`."""
    files = sorted((each for each in place.iterdir() if len(each.name) == 64), key=lambda each: each.stat().st_mtime_ns)
    for old in files[:-KEPT]:
        old.unlink(missing_ok=True)


def _sample(clip: Clip) -> str:
    """A hash of some values of every tensor, with its shape and type."""
    digest = hashlib.sha256()
    for key, value in sorted(clip.model.state_dict().items()):
        digest.update(f"{key}{tuple(value.shape)}{value.dtype}".encode())
        digest.update(_some(value).numpy().tobytes())
    return digest.hexdigest()


def _some(value: Tensor) -> Tensor:
    flat = value.detach().flatten()
    return flat[:: max(1, len(flat) // SAMPLE)].float().cpu().contiguous()


@cache
def code() -> str | None:
    """A hash of this folder's code; None where it cannot be read."""
    try:
        return hash_of(*(file.read_bytes() for file in sorted(Path(__file__).parent.glob("*.py")))) if Path(__file__).is_file() else None
    except OSError:
        return None


@cache
def releases() -> tuple[str, ...]:
    """Of the packages that read weights and compute features."""
    found = []
    for name in _RELEASES:
        with suppress(PackageNotFoundError):
            found.append(f"{name} {version(name)}")
    return tuple(found)


def hash_of(*decides: object) -> str:
    """64 hex digits of a SHA-256."""
    return hashlib.sha256(repr(decides).encode("utf-8", "surrogateescape")).hexdigest()
