"""The files of features and pixels: none that is damaged is believed, none ends a test, several processes share them, and they stay within
their budget."""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Callable, Generator
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mmrl import engine
from mmrl import rows as rows_module
from mmrl.clip import Clip
from mmrl.data import read_folder
from mmrl.engine.features import FeatureStore, shown
from mmrl.errors import Notice, UsageError
from mmrl.rows import SPARE, RowsFolder, table_of
from tests.unit.colours import clip_on_one_thread, fresh, smallest_clip
from tests.unit.grids import photos
from tests.unit.test_feature_cache import BATCH, PER_CLASS, data_of, evaluate, make

clip = pytest.fixture(scope="module")(clip_on_one_thread)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return photos(tmp_path / "photos", per_class=PER_CLASS)


# ---- what happens to files ----


def damages() -> dict[str, Callable[[bytes], bytes]]:
    return {
        "cut": lambda content: content[:-1],
        "longer": lambda content: content + b"\0",
        "empty": lambda content: b"",
        "one bit": lambda content: content[:-9] + bytes([content[-9] ^ 4]) + content[-8:],
        "a page of zeros": lambda content: bytes(len(content) // 2) + content[len(content) // 2 :],
        "zeros": lambda content: bytes(len(content)),
        "something else": lambda content: os.urandom(len(content)),
    }


@pytest.mark.parametrize("damage", damages())
@pytest.mark.parametrize("skip_broken", [False, True])
def test_a_damaged_file_is_computed_again(clip: Clip, folder: Path, tmp_path: Path, damage: str, skip_broken: bool) -> None:
    dataset, kept = data_of(folder), tmp_path / "kept"
    pair = {name: make(clip, name) for name in ("coop", "mmrl")}
    plain = {name: evaluate(method, dataset, FeatureStore(kept, 1)) for name, method in pair.items()}
    whole = {path: path.read_bytes() for path in kept.glob("*.rows")}
    assert sorted(path.name.removeprefix(SPARE).split("-")[0] for path in whole) == ["features", "pixels", "states"]
    for path, content in whole.items():
        path.write_bytes(damages()[damage](content))
    for _ in range(2):  # the first pass after pixels are damaged decodes, and takes them away
        for name, method in pair.items():
            assert evaluate(method, dataset, FeatureStore(kept, 1), skip_broken=skip_broken) == plain[name]
    found = {path: path.read_bytes() for path in kept.glob("*.rows")}
    assert found.items() <= whole.items() and len(found) >= 2, "pixels are kept again when they are needed again: there are states"


def test_features_to_train_on_that_are_damaged(clip: Clip, folder: Path, tmp_path: Path) -> None:
    data = engine.TrainingData.of(clip, read_folder(folder), read_folder(folder).train[:7], store=FeatureStore(tmp_path / "kept", 1))
    assert data.features is not None
    before = data.features("train", 2)[0]
    (path,) = (tmp_path / "kept").glob("*.rows")
    for damage in damages().values():
        path.write_bytes(damage(path.read_bytes()))
        assert torch.equal(data.features("train", 2)[0], before)


@pytest.mark.parametrize("where", ["truncate", "fsync", "mkdir"])
def test_a_full_disk_ends_nothing(clip: Clip, folder: Path, tmp_path: Path, where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset, method, store = data_of(folder), fresh(clip), FeatureStore(tmp_path / "kept", 1)
    plain = evaluate(method, dataset)

    def full(*given: Any, **more: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(*((Path, "mkdir", full) if where == "mkdir" else (os, where, full)))
    with pytest.warns(Notice, match="is not kept, and is computed again next time: .*No space left") as told:
        assert evaluate(method, dataset, store) == plain
        assert evaluate(method, dataset, store) == plain
    assert len([each for each in told if each.category is Notice]) == 1
    monkeypatch.undo()
    assert not list((tmp_path / "kept").glob("**/*"))


def test_a_disk_that_fills_while_pixels_are_written(clip: Clip, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset, method, put = data_of(folder), fresh(clip), rows_module.NewRows.put

    def fills(self: rows_module.NewRows, at: int, table: Any) -> None:
        put(self, at, table)
        if at == 7:
            self.failed = OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(rows_module.NewRows, "put", fills)
    with pytest.warns(Notice, match="No space left"):
        assert evaluate(method, dataset, FeatureStore(tmp_path / "kept", 1), workers=2) == evaluate(method, dataset)
    assert [path.name.split("-")[0] for path in (tmp_path / "kept").glob("*")] == ["features"]


def test_what_goes_wrong_in_a_test_is_said_as_it_is(clip: Clip, folder: Path, tmp_path: Path) -> None:
    """And nothing half is kept."""
    dataset, store = data_of(folder), FeatureStore(tmp_path / "kept", 1)
    for error in (OSError("of a method"), UsageError("of a method"), KeyboardInterrupt()):
        batches: Any = shown(clip, dataset, dataset.test, batch_size=BATCH, images=True, features=True, store=store)
        next(batches)
        with pytest.raises(type(error)) as raised:
            batches.throw(error)
        assert raised.value is error
    batches = shown(clip, dataset, dataset.test, batch_size=BATCH, images=True, features=True, store=store)
    next(batches)
    batches.close()
    assert not list((tmp_path / "kept").glob("*"))


# ---- several processes ----


def _evaluated(folder: Path, kept: Path, start: Any, told: Any) -> None:
    torch.set_num_threads(1)
    method, dataset = fresh(smallest_clip()), data_of(folder)
    start.wait()
    for _ in range(5):
        told.put(evaluate(method, dataset, FeatureStore(kept, 1)).adapted.model_dump())
        for path in kept.glob("*.rows"):
            path.unlink(missing_ok=True)  # as another process that makes room


def test_two_processes_at_once(clip: Clip, folder: Path, tmp_path: Path) -> None:
    context = get_context("spawn")
    start, told = context.Barrier(2), context.Queue()
    other = context.Process(target=_evaluated, args=(folder, tmp_path / "kept", start, told))
    other.start()
    _evaluated(folder, tmp_path / "kept", start, told)
    found = [told.get(timeout=120) for _ in range(10)]
    other.join()
    assert other.exitcode == 0
    assert found == [evaluate(fresh(clip), data_of(folder)).adapted.model_dump()] * 10
    assert not list((tmp_path / "kept").glob("*.partial"))


# ---- the budget ----


TABLE = table_of(np.arange(256, dtype=np.float32).reshape(4, 64))  # 1,040 bytes
ROOM = 2.5 * TABLE.nbytes / 2**30  # for two


def filled(folder: Path, *names: str, gib: float = ROOM) -> Generator[set[str], str, None]:
    for age, name in enumerate(reversed(names)):
        RowsFolder(folder, 1).write(name, TABLE)
        os.utime(folder / f"{name}.rows", (0, time.time() - 1000 + age))
    store = RowsFolder(folder, gib)
    while True:
        name = yield {path.stem for path in folder.glob("*.rows")}
        store.write(name, TABLE)


def test_what_was_used_longest_ago_makes_room(tmp_path: Path) -> None:
    store = filled(tmp_path, "young", "old")
    next(store)
    assert store.send("new") == {"young", "new"}
    assert store.send("newer") == {"newer", "new"}
    assert store.send("newest") == {"newer", "new"}  # what this command uses does not drive itself out


def test_spare_files_make_room_first(tmp_path: Path) -> None:
    store = filled(tmp_path, f"{SPARE}young", "old")
    next(store)
    assert store.send("new") == {"old", "new"}
    assert store.send(f"{SPARE}new") == {f"{SPARE}new", "new"}
    assert store.send(f"{SPARE}newer") == {f"{SPARE}new", "new"}
    assert store.send("newer") == {"newer", "new"}


def test_what_is_being_read_stays(tmp_path: Path) -> None:
    store = filled(tmp_path, "young", "old")
    next(store)
    held = RowsFolder(tmp_path, ROOM).read("old", 4, TABLE.dtype)
    os.utime(tmp_path / "old.rows", (0, 0))
    assert store.send("new") == {"old", "new"}
    assert held is not None and np.array_equal(held, TABLE)
    os.utime(tmp_path / "old.rows", (0, 0))
    del held
    assert store.send("newer") == {"newer", "new"}


def test_the_budget_holds_while_files_are_written(tmp_path: Path) -> None:
    """A file counts from its beginning, and what is too large alone drives nothing out."""
    store = RowsFolder(tmp_path, ROOM)
    store.write("old", TABLE)
    os.utime(tmp_path / "old.rows", (0, 0))
    with store.writing("large", 100, TABLE.dtype) as rows:
        assert rows is None
    with store.writing("one", 4, TABLE.dtype) as one, RowsFolder(tmp_path, ROOM).writing("two", 4, TABLE.dtype) as two:
        assert one is not None and two is not None and not (tmp_path / "old.rows").exists()
        with store.writing("three", 4, TABLE.dtype) as three:
            assert three is None
        assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= ROOM * 2**30
    assert {path.name for path in tmp_path.iterdir()} == {"one.rows", "two.rows"}


def test_another_process_that_makes_room_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows_module, "PATIENCE", 0.05)
    store = RowsFolder(tmp_path, 1)
    with (tmp_path / ".room.lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        store.write("one", TABLE)
        assert not (tmp_path / "one.rows").exists()
    store.write("one", TABLE)
    assert (tmp_path / "one.rows").exists()
