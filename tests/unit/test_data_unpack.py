"""Archives from elsewhere: what leads out of the folder, holds links, is damaged or would fill the disk is refused, and nothing stays."""

from __future__ import annotations

import gzip
import io
import os
import stat
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from mmrl.data.benchmark import unpack as unpack_module
from mmrl.data.benchmark.entries import ENTRIES
from mmrl.data.benchmark.prepare import prepare_dataset
from mmrl.data.benchmark.unpack import SMALL, unpack
from mmrl.errors import MmrlError

MANY = 4 * SMALL  # zeros that shrink to a thousandth


def _tar_with(member: tarfile.TarInfo) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        with tarfile.open(path, "w") as tar:
            tar.addfile(tarfile.TarInfo("dtd/images"))
            tar.addfile(member, io.BytesIO(b"x" * member.size))

    return write


def _member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname, member.size = kind, link, 1 if kind == tarfile.REGTYPE else 0
    return member


BAD_TARS = {
    "up": _tar_with(_member("../evil")),
    "up inside": _tar_with(_member("dtd/../../evil")),
    "absolute": _tar_with(_member("/tmp/evil")),
    "link": _tar_with(_member("dtd/images/evil", tarfile.SYMTYPE, "/etc/passwd")),
    "link inside": _tar_with(_member("dtd/images/evil", tarfile.SYMTYPE, "other")),
    "hard link out": _tar_with(_member("dtd/images/evil", tarfile.LNKTYPE, "../../evil")),
    "device": _tar_with(_member("dtd/images/evil", tarfile.CHRTYPE)),
    "no archive": lambda path: path.write_text("<html>not found</html>"),
    "empty": lambda path: path.write_bytes(b""),
}


@pytest.mark.parametrize("kind", BAD_TARS)
def test_bad_tars_are_refused_and_leave_nothing(kind: str, tmp_path: Path):
    archive = tmp_path / "dtd-r1.0.1.tar.gz"
    BAD_TARS[kind](archive)
    root = tmp_path / "data"
    root.mkdir()
    with pytest.raises(MmrlError, match=r"dtd-r1\.0\.1\.tar\.gz cannot be unpacked: .*download it again"):
        prepare_dataset(ENTRIES["dtd"], root, source=tmp_path)
    assert not any(path.is_file() or path.is_symlink() for path in tmp_path.rglob("*") if path != archive)
    assert not list((root / "dtd").iterdir())


def test_notes_of_an_archiver_are_passed_over(tmp_path: Path):
    for name in ("._dtd", "__MACOSX/dtd/x"):
        _tar_with(_member(name))(tmp_path / "x.tar")
        unpack(tmp_path / "x.tar", tmp_path / "out")
        assert [path.name for path in (tmp_path / "out").rglob("*")] == ["dtd", "images"]


@pytest.mark.parametrize("name", ["../evil", "/evil", "a\\..\\..\\evil", "c:/evil", "link"])
def test_bad_zips_are_refused(name: str, tmp_path: Path):
    info = zipfile.ZipInfo(name)
    if name == "link":
        info.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as file:
        file.writestr(info, "/etc/passwd")
    (tmp_path / "out").mkdir()
    with pytest.raises(MmrlError, match="link or leads out of it"):
        unpack(tmp_path / "x.zip", tmp_path / "out")
    assert not list((tmp_path / "out").iterdir()) and not (tmp_path / "evil").exists()


def test_old_pythons_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    _tar_with(_member("dtd/images/x"))(tmp_path / "x.tar")
    monkeypatch.delattr(tarfile, "data_filter")
    with pytest.raises(MmrlError, match="Update to 3.10.12"):
        unpack(tmp_path / "x.tar", tmp_path / "out")


def _zip(path: Path, files: dict[str, bytes]) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as file:
        for name, content in files.items():
            file.writestr(name, content)


def _tar_gz(path: Path, files: dict[str, bytes]) -> None:
    with tarfile.open(path, "w:gz", compresslevel=1) as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


def _long_name(path: Path) -> None:
    """A name of many megabytes, which tarfile would read into memory."""
    member = tarfile.TarInfo("././@LongLink")
    member.type, member.size = tarfile.GNUTYPE_LONGNAME, MANY
    path.write_bytes(gzip.compress(member.tobuf(tarfile.GNU_FORMAT) + bytes(MANY), 1))


def _sparse(path: Path) -> None:
    """A file with holes: no byte of it is in the archive."""
    member = tarfile.TarInfo("dtd/images/holes.jpg")
    member.pax_headers = {"GNU.sparse.map": "0,0", "GNU.sparse.size": str(2**50)}
    with tarfile.open(path, "w:gz", format=tarfile.PAX_FORMAT) as tar:
        tar.addfile(member)


def _skipped(path: Path) -> None:
    """A kind that tarfile does not know, whose content it steps over."""
    member = tarfile.TarInfo("dtd/images/strange")
    member.type, member.size = b"Z", MANY
    path.write_bytes(gzip.compress(member.tobuf() + bytes(MANY) + bytes(1024), 1))


BOMBS: dict[str, tuple[str, str, Callable[[Path], None]]] = {
    "zip": ("eurosat", "EuroSAT.zip", lambda path: _zip(path, {"2750/Forest/Forest_1.jpg": bytes(MANY)})),
    "zip of many": ("eurosat", "EuroSAT.zip", lambda path: _zip(path, {f"2750/Forest/{n}.jpg": bytes(MANY // 8) for n in range(8)})),
    "tar.gz": ("dtd", "dtd-r1.0.1.tar.gz", lambda path: _tar_gz(path, {"dtd/images/banded/1.jpg": bytes(MANY)})),
    "tar.gz of many": ("dtd", "dtd-r1.0.1.tar.gz", lambda path: _tar_gz(path, {f"dtd/images/{n}.jpg": bytes(MANY // 8) for n in range(8)})),
    "long name": ("dtd", "dtd-r1.0.1.tar.gz", _long_name),
    "holes": ("dtd", "dtd-r1.0.1.tar.gz", _sparse),
    "skipped": ("dtd", "dtd-r1.0.1.tar.gz", _skipped),
}


@pytest.mark.parametrize("kind", BOMBS)
def test_archives_that_would_become_too_large_are_refused_and_leave_nothing(kind: str, tmp_path: Path):
    name, file, write = BOMBS[kind]
    archive, root = tmp_path / file, tmp_path / "data"
    write(archive)
    root.mkdir()
    size = archive.stat().st_size
    assert size < SMALL / 32
    with pytest.raises(MmrlError) as caught:
        prepare_dataset(ENTRIES[name], root, source=tmp_path)
    text = str(caught.value)
    assert text.startswith(f"{archive} ({size:,} bytes) is not unpacked: it would become at least ")
    assert f"at most {max(100 * size, SMALL):,} are allowed" in text
    assert not list((root / name).iterdir())


def test_an_archive_inside_another_counts(tmp_path: Path):
    """ImageNet's archive of archives, with one that is compressed."""
    _tar_gz(tmp_path / "n01440764.tar", {"n01440764_1.JPEG": bytes(MANY)})
    archive, root = tmp_path / "ILSVRC2012_img_train.tar", tmp_path / "data"
    with tarfile.open(archive, "w") as tar:
        tar.add(tmp_path / "n01440764.tar", "n01440764.tar")
    root.mkdir()
    with pytest.raises(MmrlError, match=r"img_train\.tar \(.* bytes\) is not unpacked: it would become at least"):
        prepare_dataset(ENTRIES["imagenet"], root, source=tmp_path)
    assert not list((root / "imagenet").iterdir())


@pytest.mark.parametrize("write", [_zip, _tar_gz], ids=["x.zip", "x.tar.gz"])
def test_what_shrinks_as_lists_and_small_archives_do_is_unpacked(write: Callable[[Path, dict[str, bytes]], None], tmp_path: Path):
    archive = tmp_path / ("x.zip" if write is _zip else "x.tar.gz")
    lists = "".join(f"ApplyEyeMakeup/v_ApplyEyeMakeup_g{n:02}_c{n % 7}.avi {n}\n" for n in range(20_000)).encode()
    files = {"lists/trainlist01.txt": lists, "zeros": bytes(SMALL - len(lists) - 2**16)}
    write(archive, files)
    assert archive.stat().st_size * 50 < SMALL
    unpack(archive, tmp_path / "out")
    for name, content in files.items():
        assert (tmp_path / "out" / name).read_bytes() == content


@pytest.mark.parametrize("write", [_zip, _tar_gz], ids=["zip", "tar.gz"])
def test_the_number_of_files_is_bounded(write: Callable[[Path, dict[str, bytes]], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    archive = tmp_path / ("x.zip" if write is _zip else "x.tar.gz")
    write(archive, {f"{n}.jpg": b"x" for n in range(6)})
    monkeypatch.setattr(unpack_module, "MOST_MEMBERS", 6)
    unpack(archive, tmp_path / "out")
    monkeypatch.setattr(unpack_module, "MOST_MEMBERS", 5)
    with pytest.raises(MmrlError, match=r"it would become more than 5 files. None of these data sets has so many"):
        unpack(archive, tmp_path / "again")


@pytest.mark.parametrize("write", [_zip, _tar_gz], ids=["zip", "tar.gz"])
def test_what_the_disk_has_no_room_for_is_refused(
    write: Callable[[Path, dict[str, bytes]], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    archive = tmp_path / ("x.zip" if write is _zip else "x.tar.gz")
    write(archive, {"a.jpg": os.urandom(600), "b.jpg": os.urandom(600)})
    monkeypatch.setattr(unpack_module.shutil, "disk_usage", lambda place: SimpleNamespace(free=unpack_module.RESERVE + 1000))
    with pytest.raises(MmrlError, match=r"it would become at least 1,200 bytes; the disk has room for 1,000. Free some space."):
        unpack(archive, tmp_path / "out")
    assert sum(path.stat().st_size for path in (tmp_path / "out").rglob("*")) <= 1000


def test_a_zip_that_gives_more_than_it_says_is_cut_and_refused(tmp_path: Path):
    archive = tmp_path / "EuroSAT.zip"
    _zip(archive, {"2750/Forest/Forest_1.jpg": bytes(MANY)})
    data = bytearray(archive.read_bytes())
    for head, at in ((b"PK\x03\x04", 22), (b"PK\x01\x02", 24)):  # where the size is written: before the file, and in the list
        struct.pack_into("<I", data, data.index(head) + at, 10)
    archive.write_bytes(data)
    with pytest.raises(MmrlError, match=r"EuroSAT\.zip cannot be unpacked: .*download it again"):
        unpack(archive, tmp_path / "out")
    assert (tmp_path / "out/2750/Forest/Forest_1.jpg").stat().st_size <= 10
    (tmp_path / "data").mkdir()
    with pytest.raises(MmrlError, match="download it again"):
        prepare_dataset(ENTRIES["eurosat"], tmp_path / "data", source=tmp_path)
    assert not list((tmp_path / "data/eurosat").iterdir())


def test_hard_links_lead_back_only(tmp_path: Path):
    link = tarfile.TarInfo("dtd/second.jpg")
    link.type, link.linkname = tarfile.LNKTYPE, "dtd/first.jpg"
    first = tarfile.TarInfo("dtd/first.jpg")
    first.size = 3
    for name, members in (("back.tar", (first, link)), ("ahead.tar", (link, first))):
        with tarfile.open(tmp_path / name, "w") as tar:
            for member in members:
                tar.addfile(member, io.BytesIO(b"abc") if member is first else None)
    unpack(tmp_path / "back.tar", tmp_path / "out")
    assert (tmp_path / "out/dtd/second.jpg").read_bytes() == b"abc"
    with pytest.raises(MmrlError, match="a link to 'dtd/first.jpg', which is not before it"):
        unpack(tmp_path / "ahead.tar", tmp_path / "other")


@pytest.mark.parametrize("write", [_zip, _tar_gz], ids=["zip", "tar.gz"])
def test_names_that_are_too_long_are_told(write: Callable[[Path, dict[str, bytes]], None], tmp_path: Path):
    archive = tmp_path / ("x.zip" if write is _zip else "x.tar.gz")
    write(archive, {f"{'x' * 300}.jpg": b"x"})
    with pytest.raises(MmrlError, match="cannot be unpacked: .*It holds a name that is too long for this disk"):
        unpack(archive, tmp_path / "out")
