"""What visitors of `mmrl app` upload: read within limits, kept apart and private, told in one sentence where it cannot be used."""

from __future__ import annotations

import shutil
import stat
import struct
import zipfile
import zlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from mmrl.app import album as album_module
from mmrl.app.session import Session
from mmrl.app.uploads import Photo, UploadLimits, checked_name, opened, unpacked
from mmrl.errors import UsageError
from tests.unit.app_visitors import all_sessions, backbones, clip, photos, png, session, zipped

__all__ = ["all_sessions", "backbones", "clip", "session"]  # fixtures


def test_photos_are_kept_apart_and_private(session: Session, tmp_path: Path) -> None:
    assert session.add("  red_thing ", photos(tmp_path, "red", 3)) == ["3 photos added."]
    notes = session.add("Red Thing", photos(tmp_path, "red", 2, first=3))
    assert notes == ["2 photos added.", "'Red Thing' and 'red thing' are one name, so their photos are together."]
    assert {name: len(own) for name, own in session.classes.items()} == {"red thing": 5}
    for folder in [session.folder, *filter(Path.is_dir, session.folder.rglob("*"))]:
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE(session.folder.parent.stat().st_mode) == 0o700
    again = session.add("red thing", [*photos(tmp_path, "red", 1), *photos(tmp_path, "red", 1, first=9)])
    assert again == ["1 photo added.", "1 left out: 'red 0.png' is there already."]
    session.remove("red thing")
    assert session.classes == {} and not [path for path in session.folder.rglob("*") if path.is_file()]


def test_a_photo_loses_its_notes_and_what_no_training_sees(tmp_path: Path, session: Session) -> None:
    large = Image.fromarray(np.random.default_rng(0).integers(0, 255, (1300, 2600, 3), dtype=np.uint8))
    notes = Image.Exif()
    notes[0x0112], notes[0x010F] = 6, "the camera of Ann"  # to be turned by a quarter
    large.save(tmp_path / "a.jpg", exif=notes, comment=b"at home")
    session.add("x", [tmp_path / "a.jpg"])
    kept = session.folder / "photos" / session.classes["x"][0].key
    with Image.open(kept) as image:
        assert image.size == (1024, 2048) and not dict(image.getexif())
    assert b"Ann" not in kept.read_bytes() and b"at home" not in kept.read_bytes()
    small = photos(tmp_path, "red", 1)
    session.add("y", small)
    with Image.open(session.folder / "photos" / session.classes["y"][0].key) as image, Image.open(small[0]) as before:
        assert (np.asarray(image) == np.asarray(before)).all()


def test_what_cannot_be_read_is_named_and_left_out(session: Session, tmp_path: Path) -> None:
    (broken := tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 no more")
    (text := tmp_path / "text.png").write_text("no picture")
    notes = session.add("x", [*photos(tmp_path, "red", 1), broken, text])
    assert notes == ["1 photo added.", "2 left out: 'broken.jpg' is broken, or not a photo. 'text.png' is broken, or not a photo."]
    with pytest.raises(UsageError, match=r"^None of the 2 photos was added. 'broken.jpg' is broken"):
        session.add("y", [broken, text])
    assert list(session.classes) == ["x"]


def test_photos_beyond_the_limits_are_refused_before_they_are_decoded(tmp_path: Path) -> None:
    wide = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + (head := b"IHDR" + struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0))
    wide += struct.pack(">II", zlib.crc32(head), 0) + b"IDAT" + struct.pack(">I", zlib.crc32(b"IDAT"))
    (tmp_path / "wide.png").write_bytes(wide)
    with pytest.raises(UsageError, match=r"^'wide.png' has 179 million pixels or more; a photo may have 50 million.$"):
        opened(tmp_path / "wide.png", "wide.png", UploadLimits())
    (tmp_path / "much.png").write_bytes(bytes(2**20 + 1))
    with pytest.raises(UsageError, match="a photo may have 1"):
        opened(tmp_path / "much.png", "much.png", UploadLimits(photo_bytes=2**20))


def test_an_upload_that_went_before_it_was_read_is_named(session: Session, tmp_path: Path) -> None:
    gone = "'gone.png' was uploaded too long ago and is gone: drop it again."
    assert session.add("x", [*photos(tmp_path, "red", 1), tmp_path / "gone.png"])[1] == f"1 left out: {gone}"
    with pytest.raises(UsageError, match=r"^'gone.zip' was uploaded too long ago and is gone: drop it again.$"):
        session.add_zip(tmp_path / "gone.zip")


def test_what_is_refused_or_fails_on_the_way_leaves_nothing(session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    many = zipped(tmp_path / "many.zip", {f"class {n}/{n}.png": png("red", n) for n in range(6)})
    with pytest.raises(UsageError, match="would be 6 classes; at most 5"):
        session.add_zip(many)
    usual = album_module.kept

    def fails(image: Image.Image, folder: Path, key: str, title: str) -> Photo:
        if title == "3.png":
            raise OSError("the disk is full")
        return usual(image, folder, key, title)

    monkeypatch.setattr(album_module, "kept", fails)
    few = zipped(tmp_path / "few.zip", {f"class {n // 2}/{n}.png": png("red", n) for n in range(4)})
    with pytest.raises(OSError, match="disk is full"):
        session.add_zip(few)
    assert session.classes == {} and not [path for path in session.folder.rglob("*") if path.is_file()]
    monkeypatch.undo()
    assert session.add_zip(few) == ["4 photos added."]


def test_names(session: Session, tmp_path: Path) -> None:
    some = photos(tmp_path, "red", 2)
    for blank in ("", "  ", "_", "\u202e\x00"):
        with pytest.raises(UsageError, match="no name"):
            session.add(blank, some)
    with pytest.raises(UsageError, match="at most 100"):
        session.add("a" * 101, some)
    assert checked_name("a\nb\u202e c", UploadLimits()) == "a b c"
    with pytest.raises(UsageError, match="no photos yet"):
        session.add("x", [])
    for at in range(5):
        session.add(f"x{at}", photos(tmp_path / str(at), "blue", 1, first=at))
    with pytest.raises(UsageError, match=r"would be 96 photos; at most 90"):
        session.add("x0", some * 45 + some[:1])


def test_a_zip_with_a_folder_a_class(session: Session, tmp_path: Path) -> None:
    content = {f"my photos/{name}/{n}.png": png(name, n) for name in ("red", "blue") for n in range(3)}
    content |= {"my photos/red/notes.txt": b"x", "__MACOSX/my photos/red/._0.png": b"x", "my photos/empty/readme.md": b"x"}
    notes = session.add_zip(zipped(tmp_path / "a.zip", content))
    assert notes[0] == "6 photos added." and {name: len(own) for name, own in session.classes.items()} == {"blue": 3, "red": 3}
    assert notes[1:] == ["The folder 'empty' has no photos and was left out.", "1 other file in 'red' left out."]
    assert not list(session.folder.glob("scratch-*"))
    session.clear()
    session.add_zip(zipped(tmp_path / "b.zip", {f"{part}/red/{part}.png": png("red", n) for n, part in enumerate(("train", "test"))}))
    assert {name: len(own) for name, own in session.classes.items()} == {"red": 2}


def link(path: Path) -> Path:
    info = zipfile.ZipInfo("red/link.png")
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(path, "w") as file:
        file.writestr(info, "/etc/passwd")
    return path


def with_directory_of(size: int) -> bytes:
    return b"PK\x05\x06" + bytes(8) + struct.pack("<II", size, 0) + bytes(2)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"a.png": png()}, "photos, but no folders"),
        ({"a.txt": b""}, "no folders with photos"),
        ({"red/a.txt": b""}, "no photos in its folders"),
        ({"../red/a.png": png()}, "cannot be unpacked"),
        ({"/red/a.png": png()}, "cannot be unpacked"),
        ({f"red/{n}.png": b"" for n in range(99)}, "more than 95 files"),
        ({"a/" * 33: b"", "red/a.png": png()}, "33 folders inside each other; at most 32"),
        ({f"red/{n}/": b"" for n in range(95)}, "more than 95 folders"),
        ({f"red/{'n/' * n}{n}{m}/a.png": b"" for n in range(20) for m in range(4)}, "more than 95 folders"),
        ({"red/a.png": bytes(2**21)}, "unpacks to 2 MB"),
        ({"red/a": b"", "red/a/b.png": b""}, r"written here \(.*\). Rename it"),
        (b"no zip", "no zip"),
        (png(), "no zip"),
        (b"PK\x05\x06", "no zip"),
        (with_directory_of(2**30), "more than 95 files"),
        (b"PK\x06\x07" + bytes(16) + with_directory_of(0), "more than 95 files"),
        (b"junk" * 9 + with_directory_of(46), "damaged"),
        (bytes(2**20 + 1), "too large"),
    ],
)
def test_zips_that_are_refused(content: dict[str, bytes] | bytes, said: str, session: Session, tmp_path: Path) -> None:
    path = tmp_path / "x.zip"
    path.write_bytes(content) if isinstance(content, bytes) else zipped(path, content)
    with pytest.raises(UsageError, match=said) as refused:
        session.add_zip(path)
    assert str(tmp_path) not in str(refused.value) and "\n" not in str(refused.value)
    assert session.classes == {} and sorted(each.name for each in tmp_path.iterdir()) == ["system", "x.zip"]


def test_a_zip_that_would_fill_the_disk_or_grows_like_no_photo_is_told_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (into := tmp_path / "into").mkdir()
    with pytest.raises(UsageError, match=r"more than 100 times its size, as photos never do"):
        unpacked(zipped(tmp_path / "x.zip", {"red/a.png": bytes(2**24 + 1)}), into, UploadLimits())
    monkeypatch.setattr(shutil, "disk_usage", lambda place: SimpleNamespace(free=0))
    with pytest.raises(UsageError, match=r"unpacked: the disk of the computer that runs this page is full.$"):
        unpacked(zipped(tmp_path / "x.zip", {"red/a.png": png()}), into, UploadLimits())


def test_a_link_in_a_zip_is_refused(tmp_path: Path) -> None:
    (tmp_path / "into").mkdir()
    with pytest.raises(UsageError, match="links"):
        unpacked(link(tmp_path / "x.zip"), tmp_path / "into", UploadLimits())
    assert not list((tmp_path / "into").iterdir())
