"""Opening archives that came from elsewhere: nothing is written outside the folder asked for."""

from __future__ import annotations

import re
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from lzma import LZMAError
from pathlib import Path, PurePosixPath

from mmrl.errors import MmrlError

ENDINGS = (".tar.gz", ".tgz", ".tar", ".zip")
_BROKEN = (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError, LZMAError, RuntimeError, NotImplementedError)
_JUNK = "__MACOSX"  # what one system's archiver adds for itself, like names that start with "._"


def is_archive(name: str) -> bool:
    return name.lower().endswith(ENDINGS)


def unpack(archive: Path, into: Path) -> None:
    """Write the files of a tar or zip archive below `into`.

    Raises:
        MmrlError: it is damaged, or no archive; it holds a symbolic link, a device or a path that leads out of it; no
            space is left; this Python is too old to unpack safely.
    """
    with _explained(archive):
        if archive.name.lower().endswith(".zip"):
            with zipfile.ZipFile(archive) as file:
                for info in file.infolist():
                    if _wanted_zip(info):
                        file.extract(info, into)
        else:
            with _tar(archive) as tar:
                tar.extractall(into, filter=_safe)


def unpack_train(archive: Path, into: Path, _: list[Path]) -> None:
    """ImageNet's training images: one archive a class inside the large one, each to a folder of its own."""
    with _explained(archive), _tar(archive) as tar:
        for member in tar:
            if re.fullmatch(r"n\d{8}\.tar", member.name) and member.isreg():
                with tarfile.open(fileobj=tar.extractfile(member)) as inner:
                    inner.extractall(into / "train" / member.name.removesuffix(".tar"), filter=_safe)


def unpack_val(archive: Path, into: Path, beside: list[Path]) -> None:
    """ImageNet's validation images, from one flat archive to a folder a class; `beside` holds the development kit, which knows them."""
    with _explained(beside[0]), _tar(beside[0]) as kit:
        wnids = _validation_wnids(kit)
    with _explained(archive), _tar(archive) as tar:
        for member in tar:
            number = re.fullmatch(r"(?:.*/)?ILSVRC2012_val_(\d{8})\.JPEG", member.name)
            if number:
                if not 1 <= int(number[1]) <= len(wnids):
                    raise MmrlError(f"{beside[0]} knows the classes of {len(wnids)} images, but {archive} has '{member.name}'.")
                member.name = PurePosixPath(member.name).name
                tar.extract(member, into / "val" / wnids[int(number[1]) - 1], filter=_safe)


def _validation_wnids(kit: tarfile.TarFile) -> list[str]:
    """The class of each validation image, in the order of their numbers."""
    from scipy.io import loadmat

    inside = {PurePosixPath(name).name: name for name in kit.getnames()}
    try:
        table, truth = (kit.extractfile(inside[name]) for name in ("meta.mat", "ILSVRC2012_validation_ground_truth.txt"))
        assert table is not None and truth is not None
        wnid = {int(row["ILSVRC2012_ID"]): str(row["WNID"]) for row in loadmat(table, squeeze_me=True)["synsets"].flat}
        wnids = [wnid[int(line)] for line in truth.read().decode().split()]
    except Exception as error:  # scipy raises whatever a damaged file makes it stumble on
        raise tarfile.TarError(f"it is not the development kit of ILSVRC2012, tasks 1 and 2 ({error!r})") from error
    strange = [name for name in wnids if not re.fullmatch(r"n\d{8}", name)]  # they become names of folders
    if strange:
        raise tarfile.TarError(f"it has a class '{strange[0]}', which is no WordNet id like n01440764")
    return wnids


@contextmanager
def _explained(archive: Path) -> Iterator[None]:
    try:
        yield
    except _BROKEN as error:
        first = str(error).partition(":\n")[0]  # tarfile adds what each format said
        why = f"{first}. It is damaged, cut short, no archive, or not as its authors made it: download it again"
        raise MmrlError(f"{archive} cannot be unpacked: {why}.") from error
    except OSError as error:
        raise MmrlError(f"{archive} cannot be unpacked: {error}. Free some space, or check the permissions.") from error


def _tar(archive: Path) -> tarfile.TarFile:
    if not hasattr(tarfile, "data_filter"):
        raise MmrlError("this Python cannot unpack a tar archive safely. Update to 3.10.12, 3.11.4, or later.")
    return tarfile.open(archive)


def _safe(member: tarfile.TarInfo, into: str) -> tarfile.TarInfo | None:
    """For tarfile: the member as it may be written, or None to pass it over."""
    path = PurePosixPath(member.name)
    if path.name.startswith("._") or _JUNK in path.parts:
        return None
    if member.issym() or path.is_absolute():
        raise tarfile.TarError(f"it holds '{member.name}', which is a link or leads out of it")
    return tarfile.data_filter(member, into)


def _wanted_zip(info: zipfile.ZipInfo) -> bool:
    path = PurePosixPath(info.filename.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or ":" in info.filename.partition("/")[0] or stat.S_ISLNK(info.external_attr >> 16):
        raise zipfile.BadZipFile(f"it holds '{info.filename}', which is a link or leads out of it")
    return not path.name.startswith("._") and _JUNK not in path.parts
