"""The rules of `--engine ray`'s driver, with a Ray that is played: what `remote()` gives is a call, made when its result is asked for."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mmrl.engine import Job
from mmrl.engine.grid import ResultsFolder, cluster, remote
from mmrl.engine.grid.remote import Result
from mmrl.errors import MmrlError, UsageError
from tests.unit.ray_sets import BENCH, jobs_of, photos

ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'mmrl[ray]'")


@pytest.fixture(scope="module")
def jobs(tmp_path_factory: pytest.TempPathFactory) -> list[Job]:
    """Zero-shot and two trainings."""
    return jobs_of(photos(tmp_path_factory.mktemp("sets") / "good"))


@dataclass
class Played:
    """Workers whose answers are `answer(job)`, in a cluster of `nodes`."""

    answer: Callable[[Job], Any] = lambda job: Result()
    nodes: list[dict[str, Any]] = field(default_factory=lambda: [{"Alive": True, "Resources": {"CPU": 2.0}}])
    ready: Callable[[], None] = lambda: None
    hired: int = 0
    ended: int = 0

    def remote(self, *_: Any) -> Any:
        self.hired += 1
        compute = SimpleNamespace(remote=lambda job, *_: lambda: self.answer(job))
        return SimpleNamespace(__ray_ready__=SimpleNamespace(remote=lambda: lambda: self.ready()), compute=compute)

    def kill(self, _: Any) -> None:
        self.ended += 1


class Stage:
    """A driver with played workers, and what it said."""

    def __init__(self, store: ResultsFolder, patch: pytest.MonkeyPatch) -> None:
        self.store, self.patch = store, patch
        self.said: list[str] = []
        self.began = datetime.now(timezone.utc)

    def play(self, played: Played, jobs: list[Job], gpu_fraction: float = 0.0) -> None:
        self.patch.setattr(cluster, "WAIT", 0.02)
        self.patch.setattr(ray, "get_runtime_context", lambda: SimpleNamespace(get_node_id=lambda: "here"))
        self.patch.setattr(ray, "nodes", lambda: played.nodes)
        self.patch.setattr(ray, "wait", lambda pending, timeout: (pending[:1], pending[1:]))
        self.patch.setattr(ray, "get", lambda call: call())
        self.patch.setattr(ray, "kill", played.kill)
        self.patch.setattr(ray, "remote", lambda _: SimpleNamespace(options=lambda **_: played))
        cluster._Crew(BENCH, self.store, gpu_fraction, self.began, self.said.append).work_through(jobs)

    def failure(self, job: Job) -> Any:
        return self.store.read("failed", job.key)

    def free(self, jobs: list[Job]) -> bool:
        """Whether nothing is claimed."""
        claims = [self.store.claim(job.key) for job in jobs]
        return None not in claims


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stage:
    return Stage(ResultsFolder(tmp_path / "out"), monkeypatch)


def raises(error: BaseException) -> Callable[..., Any]:
    def call(*_: Any) -> Any:
        raise error

    return call


def test_a_job_that_kills_its_workers_is_given_up(stage: Stage, jobs: list[Job]) -> None:
    deadly = jobs[1]
    played = Played(lambda job: raises(ray.exceptions.WorkerCrashedError())() if job is deadly else Result())
    stage.play(played, jobs)
    assert [bool(stage.failure(job)) for job in jobs] == [job is deadly for job in jobs]
    assert "its worker process died 4 times, as when memory runs out" in stage.failure(deadly).error
    assert sum("once more" in line for line in stage.said) == cluster.RETRIES
    assert played.ended >= played.hired >= 4 and stage.free(jobs)


def test_workers_that_cannot_start_end_it(stage: Stage, jobs: list[Job]) -> None:
    with pytest.raises(MmrlError, match="workers cannot start. Is the same mmrl on every machine.*no module"):
        stage.play(Played(ready=raises(ray.exceptions.RayError("traceback\nno module"))), jobs)
    assert stage.free(jobs)


def test_stopped_by_the_user(stage: Stage, jobs: list[Job]) -> None:
    played = Played(raises(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        stage.play(played, jobs)
    noted = [stage.failure(job) for job in jobs]
    assert {failure.kind for failure in noted if failure} == {"cancelled"} and stage.free(jobs)
    assert played.ended == played.hired


def test_a_job_that_another_process_has_is_waited_for(stage: Stage, jobs: list[Job]) -> None:
    held, asked = stage.store.claim(jobs[0].key), []
    assert held is not None

    def answer(job: Job) -> Result:
        asked.append(job.key)
        if len(asked) == len(jobs) - 1:
            threading.Timer(0.1, stage.store.release, (jobs[0].key, held)).start()
        return Result()

    stage.play(Played(answer), jobs)
    assert sorted(asked) == sorted(job.key for job in jobs) and asked[-1] == jobs[0].key


def test_a_clock_that_is_behind_hides_no_failure(stage: Stage, jobs: list[Job]) -> None:
    failure = cluster.failure_of(jobs[0], MmrlError("no"), cluster.HERE)
    early = failure.environment.model_copy(update={"started": datetime(2020, 1, 1, tzinfo=timezone.utc)})
    stage.play(Played(lambda _: Result(failure=failure.model_copy(update={"environment": early}))), jobs[:1])
    assert cluster.outcome_of(jobs[:1], stage.store, stage.began).failed == [jobs[0].key]


def test_a_full_disk_ends_it(stage: Stage, jobs: list[Job]) -> None:
    stage.patch.setattr(remote, "write_bytes", raises(OSError(28, "No space left on device")))
    for job in jobs:
        stage.store.work(job.key).mkdir(parents=True)
    stage.patch.setattr(ray, "put", lambda value: value)
    with pytest.raises(MmrlError, match="cannot write .*No space left on device"):
        stage.play(Played(lambda _: Result(files={"a": b""})), jobs)
    assert stage.free(jobs)


@pytest.mark.parametrize(
    ("resources", "fraction", "places"),
    [
        ([{"CPU": 4.0}], 0, 4),
        ([{"CPU": 4.0}, {"CPU": 2.0}], 0, 6),
        ([{"CPU": 16.0, "GPU": 2.0}], 0.3, 6),  # three on each: none is divided between GPUs
        ([{"CPU": 16.0, "GPU": 2.0}, {"CPU": 8.0}], 1, 2),
        ([{"CPU": 4.0, "GPU": 1.0}], 0.1, 4),
        ([{"CPU": 16.0, "GPU": 1.0}], 0.1, 10),
    ],
)
def test_places(stage: Stage, jobs: list[Job], resources: list[dict[str, float]], fraction: float, places: int) -> None:
    stage.play(Played(nodes=[{"Alive": True, "Resources": each} for each in resources]), jobs[:1], fraction)
    assert stage.said[0] == f"Ray: up to {places} runs at a time"


def test_what_the_cluster_lacks_is_said_at_once(stage: Stage, jobs: list[Job]) -> None:
    nodes = [{"Alive": True, "Resources": {"CPU": 4.0}}, {"Alive": False, "Resources": {"CPU": 4.0, "GPU": 8.0}}]
    with pytest.raises(UsageError, match="no GPU, and --gpu-fraction is 0.5; give 0 to compute on CPUs"):
        stage.play(Played(nodes=nodes), jobs, 0.5)
    with pytest.raises(UsageError, match="no CPU, or add a machine"):
        stage.play(Played(nodes=nodes[1:]), jobs)
