"""Kept identities of backbones: equal to computed ones, and never taken for other weights, layers or code."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import pytest
import torch

from mmrl.clip import Clip, identities, load_clip
from mmrl.clip.load import TINY

OLD = time.time_ns() - 10**11


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(identities.PLACE, str(tmp_path / "cache"))
    monkeypatch.setattr(identities, "YOUNG", 0.0)
    return identities.folder()


@pytest.fixture
def backbone(tmp_path: Path) -> Path:
    return Path(shutil.copytree(TINY, tmp_path / "backbone"))


def computed(clip: Clip) -> str:
    clip.__dict__.pop("identity", None)
    return clip.identity


def kept_in(clip: Clip) -> str | None:
    return clip.__dict__.get("identity")


def test_a_second_load_takes_the_kept_one(cache: Path, backbone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = load_clip(f"local-dir:{backbone}")
    assert len(list(cache.iterdir())) == 1 and kept_in(first) == computed(first)
    monkeypatch.setattr(Clip, "identity", property(lambda self: pytest.fail("it was hashed again")))
    again = load_clip(f"local-dir:{backbone}")
    assert kept_in(again) == kept_in(first)


def test_other_weights_in_the_same_file_are_hashed_again(cache: Path, backbone: Path) -> None:
    from safetensors.torch import load_file, save_file

    file = backbone / "open_clip_model.safetensors"
    weights = load_file(file)
    save_file(weights, file)
    before = load_clip(f"local-dir:{backbone}")
    name = max(weights, key=lambda each: weights[each].numel())
    weights[name].view(-1)[1] += 1  # one value that no sample need hold
    size = file.stat().st_size
    save_file(weights, file)
    assert file.stat().st_size == size
    after = load_clip(f"local-dir:{backbone}")
    assert kept_in(after) == computed(after) != kept_in(before)


def test_the_time_alone_may_not_change(cache: Path, backbone: Path) -> None:
    """Also where a file was given its old time again: the system keeps the time of that change."""
    file = backbone / "open_clip_model.safetensors"
    before = identities.stamp_of([backbone])
    os.utime(file, ns=(file.stat().st_atime_ns, OLD))
    assert identities.stamp_of([backbone]) != before


@pytest.mark.parametrize("what", ["weights", "layers", "constants", "code", "releases"])
def test_all_else_that_decides_is_in_the_name(what: str, cache: Path, backbone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clip, stamp = load_clip(f"local-dir:{backbone}"), identities.stamp_of([backbone])
    clip.__dict__.pop("identity")
    if what == "weights":  # as where a loader would read them otherwise
        with torch.no_grad():
            clip.model.visual.proj.mul_(2)
    elif what == "layers":
        clip.model.visual.ln_post.eps *= 2
    elif what == "constants":
        clip.mean = (0.1, 0.2, 0.3)
    else:
        monkeypatch.setattr(identities, what, lambda: ("another",))
    identities.recall(clip, [backbone], stamp)
    assert kept_in(clip) == computed(clip) and len(list(cache.iterdir())) == 2


@pytest.mark.parametrize("content", [b"", b"0123456789abcdef\n", b"\xff" * 82, b"0123456789abcdef " + b"0" * 64 + b"\n", b"x" * 5000])
def test_a_damaged_file_is_written_again(content: bytes, cache: Path, backbone: Path) -> None:
    first = load_clip(f"local-dir:{backbone}")
    (file,) = cache.iterdir()
    whole = file.read_bytes()
    file.write_bytes(content)
    assert kept_in(load_clip(f"local-dir:{backbone}")) == kept_in(first)
    assert file.read_bytes() == whole


def test_the_file_of_another_backbone_is_not_taken(cache: Path, backbone: Path) -> None:
    load_clip(f"local-dir:{backbone}")
    (file,) = cache.iterdir()
    file.rename(file.with_name("0" * 64))
    assert identities._kept(file.with_name("0" * 64)) is None


def test_without_a_folder_it_is_computed_when_asked(tmp_path: Path, backbone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(identities.PLACE, str(tmp_path / "file"))
    clip = load_clip(f"local-dir:{backbone}")
    assert kept_in(clip) is None and clip.identity == computed(clip)


def test_young_changed_and_missing_files_are_not_kept(cache: Path, backbone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clip = load_clip(f"local-dir:{backbone}")
    shutil.rmtree(cache)
    clip.__dict__.pop("identity")
    stamp = identities.stamp_of([backbone])
    assert stamp is not None and identities.stamp_of([]) is None and identities.stamp_of([backbone / "none"]) is None
    identities.recall(clip, [backbone], stamp[1:])
    monkeypatch.setattr(identities, "YOUNG", 1000.0)
    identities.recall(clip, [backbone], stamp)
    assert kept_in(clip) is None and not cache.exists()


def test_the_oldest_are_cleared(cache: Path, backbone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(identities, "KEPT", 3)
    cache.mkdir(parents=True)
    for i in range(5):
        (cache / f"{i:064}").write_text("")
        os.utime(cache / f"{i:064}", ns=(OLD, OLD + i))
    load_clip(f"local-dir:{backbone}")
    assert sorted(file.name for file in cache.iterdir())[:2] == [f"{3:064}", f"{4:064}"] and len(list(cache.iterdir())) == 3
