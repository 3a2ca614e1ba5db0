"""Visitors of the app and their photos, for its tests."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from mmrl.app.session import Backbones, Session
from mmrl.app.sessions import Sessions
from mmrl.app.uploads import UploadLimits
from mmrl.clip import Clip
from tests.unit.colours import clip_on_one_thread, read

clip = pytest.fixture(scope="module")(clip_on_one_thread)


def photos(folder: Path, name: str, count: int, first: int = 0) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    out = [folder / f"{name} {number}.png" for number in range(first, first + count)]
    for number, path in enumerate(out, first):
        read(f"{name}/{number}").save(path)
    return out


def zipped(path: Path, content: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, each in content.items():
            file.writestr(name, each)
    return path


def png(name: str = "red", number: int = 0) -> bytes:
    content = io.BytesIO()
    read(f"{name}/{number}").save(content, "PNG")
    return content.getvalue()


@pytest.fixture
def backbones(clip: Clip) -> Backbones:
    return Backbones(("smallest",), "cpu", {"smallest": clip})


@pytest.fixture
def all_sessions(backbones: Backbones, tmp_path: Path) -> Iterator[Sessions]:
    place = tmp_path / "system"
    place.mkdir()
    found = Sessions(backbones, UploadLimits(photos=90, classes=5, upload_bytes=2**20), parent=place)
    yield found
    found.close()
    assert list(place.iterdir()) == []


@pytest.fixture
def session(all_sessions: Sessions) -> Session:
    return all_sessions.of("someone")
