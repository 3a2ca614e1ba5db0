"""`mmrl predict --engine ray`: the same file as here, also where a worker is killed; and the driver's rules, with a Ray that is played."""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mmrl.bulk import cluster
from mmrl.bulk.answers import Answer
from mmrl.bulk.listed import ListedImage, WantedImages
from mmrl.bulk.predict import Engine, Predicted, Target, write
from mmrl.engine.grid import cluster as grids
from mmrl.errors import MmrlError, UsageError
from tests.unit import bulk_sets

ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'mmrl[ray]'")


@pytest.mark.slow
def test_a_killed_worker_costs_nothing_and_the_file_is_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photos, mark = bulk_sets.photos(tmp_path / "photos"), tmp_path / "killed"
    monkeypatch.setattr(grids, "cores", lambda: 2)
    monkeypatch.setattr(cluster, "PART", 1)

    class KilledOnce(cluster.PartWorker):
        def answers(self, images: Sequence[ListedImage], start: int) -> tuple[str, list[Answer]]:
            if start == 64 and not mark.exists():
                mark.write_text(str(os.getpid()))
                os.kill(os.getpid(), signal.SIGKILL)
            return super().answers(images, start)

    monkeypatch.setattr(cluster, "PartWorker", KilledOnce)

    def written(name: str, engine: str, **more: Any) -> Predicted:
        wanted = WantedImages((photos,) * 5, recursive=True)
        return write(
            bulk_sets.judge(threshold=0.0), wanted, Target(tmp_path / name, **more), Engine(engine), problem=lambda _: None, progress=False
        )

    assert written("here.jsonl", "local").images == 155
    found = written("there.jsonl", "ray")
    assert (found.images, found.unreadable) == (155, 15) and mark.exists() and not ray.is_initialized()
    whole = (tmp_path / "here.jsonl").read_bytes()
    assert (tmp_path / "there.jsonl").read_bytes() == whole
    (tmp_path / "there.jsonl").write_bytes(whole[: len(whole) // 2])
    assert written("there.jsonl", "local", resume=True).before > 60  # what one began, the other ends
    assert (tmp_path / "there.jsonl").read_bytes() == whole


# ---- played ----


@dataclass
class Played:
    """Workers that answer `answer(images, start)`, in a cluster of so many cores."""

    answer: Callable[[Sequence[ListedImage], int], Any]
    cores: int = 2
    ready: Callable[[], None] = lambda: None
    hired: int = 0
    ended: int = 0
    asked: list[int] = field(default_factory=list)

    def remote(self, classifier: Any, *_: Any) -> Any:
        self.hired += 1
        worker: Any = SimpleNamespace(__ray_ready__=SimpleNamespace(remote=lambda: lambda: self.ready()))

        def ask(images: Sequence[ListedImage], start: int) -> Callable[[], Any]:
            self.asked.append(start)
            return lambda: self.answer(images, start)

        worker.answers = SimpleNamespace(remote=ask)
        return Hashable(worker)

    def kill(self, _: Any) -> None:
        self.ended += 1


class Hashable:
    def __init__(self, inner: Any) -> None:
        self.__dict__.update(vars(inner))


@pytest.fixture
def play(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Answer]]:
    def run(played: Played, count: int = 700, start: int = 0, last: bool = False) -> list[Answer]:
        monkeypatch.setattr(ray, "is_initialized", lambda: True)
        monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True, "Resources": {"CPU": float(played.cores)}}])
        monkeypatch.setattr(ray, "put", lambda value: value)
        monkeypatch.setattr(ray, "get", lambda call: call())
        monkeypatch.setattr(ray, "kill", played.kill)
        monkeypatch.setattr(ray, "wait", lambda pending, num_returns: (pending[-1:], pending[:-1]) if last else (pending[:1], pending[1:]))
        monkeypatch.setattr(ray, "remote", lambda _: SimpleNamespace(options=lambda **_: played))
        names = [ListedImage(f"{at}.png") for at in range(start, count)]
        judge = bulk_sets.judge()
        return [each for part in cluster.ray_blocks(judge, names, None, 0.0, start=start) for each in part]

    return run


def answered(images: Sequence[ListedImage], start: int) -> tuple[str, list[Answer]]:
    assert [each.name for each in images] == [f"{start + at}.png" for at in range(len(images))]
    return "there", [Answer(each.name, []) for each in images]


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("start", [0, 1, 255, 300])
def test_parts_come_in_order_and_begin_where_blocks_do(play: Callable[..., list[Answer]], start: int, last: bool) -> None:
    played = Played(answered)
    found = play(played, start=start, last=last)
    assert [each.image for each in found] == [f"{at}.png" for at in range(start, 700)]
    assert all(place % 64 == 0 for place in played.asked[1:] if place != start) and len(played.asked) == len(set(played.asked))
    assert played.hired == played.ended == 2


def test_no_more_workers_are_hired_than_there_are_parts(play: Callable[..., list[Answer]]) -> None:
    played = Played(answered, cores=64)
    assert len(play(played, count=300)) == 300 and played.hired == 2


def test_a_part_whose_worker_dies_is_judged_by_another(play: Callable[..., list[Answer]]) -> None:
    deaths = Counter[int]()

    def dies(images: Sequence[ListedImage], start: int) -> Any:
        deaths[start] += 1
        if start == 256 and deaths[start] <= cluster.RETRIES:
            raise ray.exceptions.RayActorError()
        return answered(images, start)

    played = Played(dies)
    assert [each.image for each in play(played)] == [f"{at}.png" for at in range(700)]
    assert deaths[256] == cluster.RETRIES + 1 and played.hired > 2


def test_what_a_worker_answered_before_it_died_counts(play: Callable[..., list[Answer]]) -> None:
    died = list[int]()

    def dies(images: Sequence[ListedImage], start: int) -> Any:
        if start == 0 and not died:  # its second part has been judged, and comes after
            died.append(start)
            raise ray.exceptions.RayActorError()
        return answered(images, start)

    assert [each.image for each in play(Played(dies, cores=1))] == [f"{at}.png" for at in range(700)] and died == [0]


def test_images_that_end_every_worker_are_named(play: Callable[..., list[Answer]]) -> None:
    def dies(images: Sequence[ListedImage], start: int) -> Any:
        if start == 256:
            raise ray.exceptions.RayActorError()
        return answered(images, start)

    with pytest.raises(MmrlError, match="the worker that judged images 257 to 512 died 4 times.*--resume goes on"):
        play(Played(dies))


def test_no_more_parts_are_open_than_workers_need(play: Callable[..., list[Answer]]) -> None:
    """The first part comes last."""
    taken: list[int] = []

    def counts(images: Sequence[ListedImage], start: int) -> Any:
        taken.append(start)
        return answered(images, start)

    played = Played(counts)
    found = play(played, count=256 * 40, last=True)
    assert len(found) == 256 * 40 and max(taken[: taken.index(0)], default=0) <= 256 * cluster.OPEN * 2


def test_what_fails_in_a_worker_is_told(play: Callable[..., list[Answer]]) -> None:
    def fails(images: Sequence[ListedImage], start: int) -> Any:
        raise ray.exceptions.RayTaskError("answers", "", MmrlError("the scores are not finite"))

    with pytest.raises(MmrlError, match="^the scores are not finite$"):
        play(Played(fails))

    def ready() -> None:
        raise ray.exceptions.RayActorError()

    with pytest.raises(MmrlError, match="workers cannot start. Is the same mmrl on every machine"):
        play(Played(answered, ready=ready))
    with pytest.raises(UsageError, match="no machine of the Ray cluster has what a run needs"):
        play(Played(answered, cores=0))


def test_a_machine_without_the_images_is_refused(
    play: Callable[..., list[Answer]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    bulk_sets.photo(tmp_path / "3.png", 3)

    def lacks(images: Sequence[ListedImage], start: int) -> Any:
        return "far", [Answer(each.name, [], f"no such image: {each.name}. Check the path.") for each in images]

    with pytest.raises(UsageError, match="far has no file 3.png, and this machine has"):
        play(Played(lacks))


def test_a_worker_in_this_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photos = bulk_sets.photos(tmp_path / "photos")
    monkeypatch.chdir(tmp_path)
    own, names = bulk_sets.judge(), list(WantedImages((photos,), recursive=True))
    worker = cluster.PartWorker(own.classifier, own.asked, "cpu", str(tmp_path / "not here"), 1)
    _, found = worker.answers(names[5:], 5)
    _, whole = worker.answers(names, 0)
    assert found == whole[5:] and Path.cwd() == tmp_path


def test_a_fraction_of_a_gpu(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--gpu-fraction 2.*Give 0.01 to 1"):
        list(cluster.ray_blocks(bulk_sets.judge(), [], None, 2.0))
