"""The mini benchmark: what its sets hold, that they are drawn alike each time, and that a cache cannot spoil them."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mmrl.data.catalogue import load_dataset
from mmrl.data.mini.digits import SCANS_PER_CLASS
from mmrl.data.mini.sets import MINI_SETS, SPLITS, VERSION, MiniSet, seed_of
from mmrl.data.mini.store import Store, mini_dataset
from mmrl.errors import MmrlError, UsageError

NAMES = sorted(MINI_SETS)
DRAWN = [name for name in NAMES if name != "mini:digits"]
PICTURES = Path(__file__).parents[1] / "golden" / "mini_pictures.json"


def thumbnails(name: str) -> list[list[int]]:
    """Mean of each 16 x 16 block of one test picture of every fourth class."""
    mini = MINI_SETS[name]
    out = []
    for label in range(0, len(mini.classes), 4):
        blocks = mini.render("test", label, label).reshape(4, 16, 4, 16, 3).mean((1, 3))
        out.append(np.rint(blocks).astype(int).ravel().tolist())
    return out


def small(mini: MiniSet, n: int = 2) -> MiniSet:
    return replace(mini, sizes={split: (n,) * len(mini.classes) for split in SPLITS})


@pytest.mark.parametrize("name", NAMES)
def test_pictures_are_those_that_were_frozen(name: str) -> None:
    """Results on these sets are compared over time: a picture that changes needs a new VERSION and new golden numbers."""
    frozen = json.loads(PICTURES.read_text())
    assert frozen["version"] == VERSION
    assert np.abs(np.array(thumbnails(name)) - np.array(frozen["pictures"][name])).max() <= 2  # rounding differs between machines


@pytest.mark.parametrize("name", NAMES)
def test_pictures_are_sane_and_differ(name: str) -> None:
    store = Store(MINI_SETS[name])
    seen = {}
    for split in SPLITS:
        for label in range(len(store.mini.classes)):
            key = store.mini.key(split, label, label % store.mini.sizes[split][label])
            pixels = store.pixels(key)
            assert pixels.shape == (64, 64, 3) and pixels.dtype == np.uint8
            assert 8 < pixels.mean() < 247 and pixels.std() > 7, key
            assert np.mean((pixels == 0) | (pixels == 255)) < (1.0 if name == "mini:digits" else 0.4), key
            seen[hashlib.sha256(pixels.tobytes()).hexdigest()] = key
    assert len(seen) == len(SPLITS) * len(store.mini.classes)


@pytest.mark.parametrize("name", NAMES)
def test_a_picture_depends_on_its_key_alone(name: str) -> None:
    mini = MINI_SETS[name]
    keys = [mini.key("test", label, 1) for label in range(0, len(mini.classes), 5)]
    first, second = Store(mini), Store(mini)
    before = [first.pixels(key) for key in keys]
    random.seed(3)
    np.random.default_rng(5).random(100)
    after = [second.pixels(key) for key in reversed(keys)][::-1]
    assert all((a == b).all() for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_sizes_classes_and_keys(name: str) -> None:
    mini, dataset = MINI_SETS[name], load_dataset(name)
    assert len(dataset.classes) >= 10 and len(set(dataset.classes)) == len(dataset.classes)
    assert 500 <= len(dataset.test) <= 1000
    keys = [item.key for part in (dataset.train, dataset.val, dataset.test) for item in part]
    assert len(set(keys)) == len(keys)
    for part, split in ((dataset.train, "train"), (dataset.val, "val"), (dataset.test, "test")):
        counts = np.bincount([item.label for item in part], minlength=len(dataset.classes))
        assert tuple(counts) == mini.sizes[split] and counts.min() >= 4
    if mini.same_classes_as is None:
        assert min(mini.sizes["train"]) >= 16
    else:
        assert dataset.classes == MINI_SETS[mini.same_classes_as].classes


def test_no_two_pictures_share_a_seed() -> None:
    seeds = [seed_of(m.name, s, c, i) for m in MINI_SETS.values() for s in SPLITS for c, n in enumerate(m.sizes[s]) for i in range(n)]
    assert len(set(seeds)) == len(seeds) > 10_000


def test_digits_are_the_real_scans_each_once() -> None:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    assert tuple(np.bincount(bunch.target)) == SCANS_PER_CLASS
    dataset = load_dataset("mini:digits")
    assert len(dataset.train) + len(dataset.val) + len(dataset.test) == len(bunch.target)
    # a picture shrunk by averaging is nearest to its scan, and has that scan's label; no scan is used twice
    scans = bunch.images.reshape(-1, 64)
    used, pictures = [], set()
    for item in (*dataset.train, *dataset.val, *dataset.test):
        pictures.add(dataset.image(item).tobytes())
        shrunk = np.asarray(dataset.image(item).convert("L"), np.float32).reshape(8, 8, 8, 8).mean((1, 3)).ravel() * 16 / 255
        distance = ((scans - shrunk) ** 2).sum(1)
        used.append(int(distance.argmin()))
        assert bunch.target[used[-1]] == item.label
    assert len(pictures) == len(bunch.target)
    assert len(set(used)) >= len(bunch.target) - 5  # some scans are nearly alike


def test_an_unknown_key_is_refused() -> None:
    with pytest.raises(UsageError, match="'mini:objects' has no image 'train/none/000'; keys look like 'train/"):
        Store(MINI_SETS["mini:objects"]).pixels("train/none/000")


# ---- the cache on disk ----


@pytest.fixture
def mini() -> MiniSet:
    return small(MINI_SETS["mini:objects"])


def counting(mini: MiniSet) -> tuple[MiniSet, list[int]]:
    drawn: list[int] = []

    def render(split: str, label: int, index: int) -> np.ndarray:
        drawn.append(label)
        return mini.render(split, label, index)

    return replace(mini, render=render), drawn


def test_a_split_is_drawn_once_and_then_read(mini: MiniSet, tmp_path: Path) -> None:
    first, drawn = counting(mini)
    dataset = mini_dataset(first, tmp_path / "cache")
    before = [np.asarray(dataset.image(item)) for item in dataset.test]
    assert len(drawn) == len(dataset.test)
    again, drawn_again = counting(mini)
    dataset = mini_dataset(again, tmp_path / "cache")
    after = [np.asarray(dataset.image(item)) for item in dataset.test]
    assert not drawn_again and all((a == b).all() for a, b in zip(before, after, strict=True))
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [f"mini-objects-test-v{VERSION}.npz"]


@pytest.mark.parametrize("damage", ["truncated", "empty", "garbage", "edited", "another set"])
def test_a_damaged_cache_is_drawn_anew(mini: MiniSet, tmp_path: Path, damage: str) -> None:
    store = Store(mini, tmp_path)
    key = mini.key("val", 3, 1)
    right = store.pixels(key)
    path = store.file("val")
    whole = path.read_bytes()
    if damage == "truncated":
        path.write_bytes(whole[: len(whole) // 2])
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "garbage":
        path.write_bytes(bytes(range(256)) * 20)
    elif damage == "edited":
        with np.load(path) as file:
            pictures, digest = file["pictures"].copy(), file["sha256"]
        pictures[0, 0, 0, 0] ^= 1
        np.savez(path, pictures=pictures, sha256=digest)
    else:
        with np.load(path) as file:
            np.savez(path, pictures=file["pictures"][:3], sha256=file["sha256"])
    counted, drawn = counting(mini)
    assert (Store(counted, tmp_path).pixels(key) == right).all() and drawn
    counted, drawn = counting(mini)
    assert (Store(counted, tmp_path).pixels(key) == right).all() and not drawn, "it was not repaired"


_KILLED = """
import os, signal, sys
from pathlib import Path
import numpy as np
from mmrl.data.mini.sets import MINI_SETS
from mmrl.data.mini.store import Store
from dataclasses import replace

def half(out, **content):
    out.write(b"PK" + bytes(5000))
    out.flush()
    os.kill(os.getpid(), signal.SIGKILL)

np.savez_compressed = half
mini = MINI_SETS["mini:objects"]
mini = replace(mini, sizes={split: (2,) * len(mini.classes) for split in ("train", "val", "test")})
Store(mini, Path(sys.argv[1])).pixels(mini.key("val", 0, 0))
"""


def test_a_kill_while_the_cache_is_written_leaves_nothing_wrong(mini: MiniSet, tmp_path: Path) -> None:
    ended = subprocess.run([sys.executable, "-c", _KILLED, str(tmp_path)], env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)})
    assert ended.returncode == -signal.SIGKILL
    store = Store(mini, tmp_path)
    assert not store.file("val").exists() and any(path.suffix == ".partial" for path in tmp_path.iterdir())
    key = mini.key("val", 0, 0)
    assert (store.pixels(key) == mini.render("val", 0, 0)).all() and store.file("val").exists()


def test_full_disk_and_unwritable_cache_say_so(mini: MiniSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(MmrlError, match="cannot write"):
        Store(mini, tmp_path / "file" / "cache").pixels(mini.key("val", 0, 0))

    def full(*args: object, **content: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(np, "savez_compressed", full)
    with pytest.raises(MmrlError, match="No space left on device"):
        Store(mini, tmp_path / "cache").pixels(mini.key("val", 0, 0))
    assert not list((tmp_path / "cache").iterdir())


if __name__ == "__main__":  # freeze what is drawn now
    content = {"version": VERSION, "pictures": {name: thumbnails(name) for name in NAMES}}
    PICTURES.write_text(json.dumps(content) + "\n")
