"""Unpacking untrusted archives: nothing is written outside the target folder, and the unpacked size is limited."""

from __future__ import annotations

import errno
import gzip
import io
import re
import shutil
import stat
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from lzma import LZMAError
from pathlib import Path, PurePosixPath
from typing import IO

from mmrl.data.benchmark.matlab import read_variable
from mmrl.errors import MmrlError

ENDINGS = (".tar.gz", ".tgz", ".tar", ".zip")
MOST_MEMBERS = 2_000_000  # ImageNet, the largest, has 1.3 million images
MOST_TIMES = 100  # unpacked to packed size: photographs hardly shrink, lists and .mat files to a tenth
SMALL = 2**24  # bytes; allowed for any archive, however small
RESERVE = 2**28  # bytes of the disk to leave free
_BROKEN = (
    tarfile.TarError, zipfile.BadZipFile, gzip.BadGzipFile, zlib.error, EOFError, LZMAError, RuntimeError, NotImplementedError,
)  # fmt: skip
_ADVICE = {errno.ENAMETOOLONG: "It holds a name that is too long for this disk", errno.ENOSPC: "Free some space"}
_JUNK = "__MACOSX"  # added by macOS, like names that start with "._"


class NoRoom(MmrlError):
    """What an archive would become does not fit on the disk."""


def is_archive(name: str) -> bool:
    return name.lower().endswith(ENDINGS)


def unpack(archive: Path, into: Path) -> None:
    """Write the files of a tar (plain or gzip) or zip archive below `into`.

    Raises:
        MmrlError: it is damaged or not an archive; it contains a symbolic link, a device or a path outside `into`; it would unpack to
            more than 100 times its size, to more than two million files, or to more than fits on the disk; this Python is too old to
            unpack safely. Files written before the error remain, so use a temporary folder.
    """
    with _explained(archive):
        budget = _Budget(archive, into)
        if archive.name.lower().endswith(".zip"):
            with zipfile.ZipFile(archive) as file:
                wanted = [info for info in file.infolist() if _wanted_zip(info)]
                for info in wanted:
                    budget.member(info.file_size)
                for info in wanted:
                    file.extract(info, into)  # zipfile writes no more bytes than declared, and checks their checksum
        else:
            with archive.open("rb") as raw, _tar(raw, budget) as tar:
                _extract_all(tar, into, budget)


def unpack_train(archive: Path, into: Path, _: list[Path]) -> None:
    """ImageNet's training images: one archive per class inside the large one, each unpacked to its own folder. Raises as `unpack`."""
    with _explained(archive):
        budget = _Budget(archive, into)
        with archive.open("rb") as raw, _tar(raw, budget) as tar:
            for member in tar:
                inside = tar.extractfile(member) if re.fullmatch(r"n\d{8}\.tar", member.name) and member.isreg() else None
                if inside is not None:
                    with _tar(inside, budget) as inner:
                        _extract_all(inner, into / "train" / member.name.removesuffix(".tar"), budget)


def unpack_val(archive: Path, into: Path, beside: list[Path]) -> None:
    """ImageNet's validation images, from one flat archive to one folder per class; `beside` is the development kit with the labels.

    Raises as `unpack`, and MmrlError if the kit does not fit the images.
    """
    with _explained(beside[0]), beside[0].open("rb") as raw, _tar(raw, _Budget(beside[0], into)) as kit:
        wnids = _validation_wnids(kit)
    with _explained(archive):
        budget = _Budget(archive, into)
        with archive.open("rb") as raw, _tar(raw, budget) as tar:
            for member in tar:
                number = re.fullmatch(r"(?:.*/)?ILSVRC2012_val_(\d{8})\.JPEG", member.name)
                if number:
                    if not 1 <= int(number[1]) <= len(wnids):
                        raise MmrlError(f"{beside[0]} knows the classes of {len(wnids)} images, but {archive} has '{member.name}'.")
                    member.name = PurePosixPath(member.name).name
                    budget.member(member.size)
                    tar.extract(member, into / "val" / wnids[int(number[1]) - 1], filter=_safe)


class _Budget:
    """Limits of what an archive may unpack to. Each method raises MmrlError if one is exceeded."""

    def __init__(self, archive: Path, into: Path) -> None:
        self.archive = archive
        self.size = archive.stat().st_size
        self.most = max(MOST_TIMES * self.size, SMALL)
        disk = next(place for place in (into, *into.absolute().parents) if place.exists())
        self.room = shutil.disk_usage(disk).free - RESERVE
        self.members = self.written = self.taken = 0

    def member(self, size: int) -> None:
        """Count a file of `size` bytes that is about to be written."""
        self.members += 1
        self.written += size
        if self.members > MOST_MEMBERS:
            raise MmrlError(f"{self._refused} more than {MOST_MEMBERS:,} files. None of these data sets has so many: download it again.")
        self._check(self.written)
        if self.written > self.room:
            raise NoRoom(
                f"{self._refused} at least {self.written:,} bytes; the disk has room for {max(self.room, 0):,}. Free some space."
            )

    def take(self, size: int) -> None:
        """Count `size` decompressed bytes that are about to be read or skipped."""
        self.taken += size
        self._check(self.taken)

    def _check(self, total: int) -> None:
        if total > self.most:
            why = "as to any small archive" if self.most == SMALL else f"{MOST_TIMES} times its size"
            raise MmrlError(
                f"{self._refused} at least {total:,} bytes; at most {self.most:,} are allowed, {why}. None of these data sets shrinks so "
                "much: download it again."
            )

    @property
    def _refused(self) -> str:
        return f"{self.archive} ({self.size:,} bytes) is not unpacked: it would become"


class _Counted(io.BufferedIOBase):
    """Counts what tarfile reads of an archive: headers, long names and skipped members cost time and memory, too."""

    def __init__(self, stream: IO[bytes], budget: _Budget) -> None:
        self._stream, self._budget = stream, budget

    def read(self, size: int | None = -1, /) -> bytes:
        assert size is not None and size >= 0, "tarfile says how much it wants"
        self._budget.take(size)
        return self._stream.read(size)

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        if whence == io.SEEK_SET:
            self._budget.take(max(0, offset - self._stream.tell()))
        return self._stream.seek(offset, whence)

    def tell(self) -> int:
        return self._stream.tell()

    def seekable(self) -> bool:
        return True


@contextmanager
def _tar(raw: IO[bytes], budget: _Budget) -> Iterator[tarfile.TarFile]:
    """The tar archive, plain or gzip, in `raw`."""
    if not hasattr(tarfile, "data_filter"):
        raise MmrlError("this Python cannot unpack a tar archive safely. Update to 3.10.12, 3.11.4, or later.")
    zipped = raw.read(2) == b"\x1f\x8b"
    raw.seek(0)
    stream: IO[bytes] = gzip.GzipFile(fileobj=raw) if zipped else raw  # type: ignore[assignment]
    with tarfile.open(fileobj=_Counted(stream, budget), mode="r:") as tar:
        yield tar


def _extract_all(tar: tarfile.TarFile, into: Path, budget: _Budget) -> None:
    """Check and write each member in one pass; `extractall` would decompress the archive twice."""
    for member in tar:
        budget.member(member.size)
        tar.extract(member, into, filter=_safe)


def _validation_wnids(kit: tarfile.TarFile) -> list[str]:
    """The class of each validation image, in the order of their numbers."""
    inside = {PurePosixPath(name).name: name for name in kit.getnames()}
    try:
        table, truth = (kit.extractfile(inside[name]) for name in ("meta.mat", "ILSVRC2012_validation_ground_truth.txt"))
        assert table is not None and truth is not None
        with tempfile.NamedTemporaryFile(suffix=".mat") as copy:
            copy.write(table.read())
            copy.flush()
            rows = read_variable(Path(copy.name), "synsets")
        wnid = {int(row["ILSVRC2012_ID"]): row["WNID"] for row in rows}
        wnids = [wnid[int(line)] for line in truth.read().decode().split()]
    except (LookupError, ValueError, TypeError, AssertionError) as error:
        raise tarfile.TarError(f"it is not the development kit of ILSVRC2012, tasks 1 and 2 ({error!r})") from error
    strange = [name for name in wnids if not re.fullmatch(r"n\d{8}", name)]  # they become folder names
    if strange:
        raise tarfile.TarError(f"it has a class '{strange[0]}', which is no WordNet id like n01440764")
    return wnids


@contextmanager
def _explained(archive: Path) -> Iterator[None]:
    try:
        yield
    except _BROKEN as error:
        first = str(error).partition(":\n")[0]  # tarfile appends the error of each format
        why = f"{first}. It is damaged, cut short, no archive, or not as its authors made it: download it again"
        raise MmrlError(f"{archive} cannot be unpacked: {why}.") from error
    except OSError as error:
        advice = _ADVICE.get(error.errno or 0, "Free some space, or check the permissions")
        raise MmrlError(f"{archive} cannot be unpacked: {error}. {advice}.") from error


def _safe(member: tarfile.TarInfo, into: str) -> tarfile.TarInfo | None:
    """Filter for tarfile: the member as it may be written, or None to skip it."""
    path = PurePosixPath(member.name)
    if path.name.startswith("._") or _JUNK in path.parts:
        return None
    if member.issym() or path.is_absolute():
        raise tarfile.TarError(f"it holds '{member.name}', which is a link or leads out of it")
    safe = tarfile.data_filter(member, into)
    if member.islnk() and not Path(into, member.linkname).is_file():  # tarfile would unpack a later member in its place
        raise tarfile.TarError(f"it holds '{member.name}', a link to '{member.linkname}', which is not before it")
    return safe


def _wanted_zip(info: zipfile.ZipInfo) -> bool:
    path = PurePosixPath(info.filename.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or ":" in info.filename.partition("/")[0] or stat.S_ISLNK(info.external_attr >> 16):
        raise zipfile.BadZipFile(f"it holds '{info.filename}', which is a link or leads out of it")
    return not path.name.startswith("._") and _JUNK not in path.parts
