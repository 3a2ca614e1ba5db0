"""`--engine ray`: on a Ray of two workers, one of which is killed; and the driver's rules, on a Ray that is played."""

from __future__ import annotations

import os
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mmrl.clip import load_clip
from mmrl.engine import Bench, Context, Job, bind
from mmrl.engine.grid import ResultsFolder, cluster, remote, run_here
from mmrl.engine.grid.remote import Result, Worker, pack, unpack
from mmrl.errors import MmrlError, UsageError
from mmrl.protocols import base_to_novel

ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'mmrl[ray]'")

BENCH = Bench("tiny")
OPTIONS = {"epochs": 4, "rep_tokens": 2, "rep_dim": 8, "first_layer": 3}
WORDS = [word for key, value in OPTIONS.items() for word in ("--set", f"{key}={value}")]


def photos(root: Path) -> Path:
    random = np.random.default_rng(0)
    for label in range(4):
        folder = root / f"thing {label}"
        folder.mkdir(parents=True)
        for number in range(10):
            pixels = random.integers(0, 90, (32, 32, 3), dtype=np.uint8)
            pixels[..., label % 3] += 40 * (label + 1)
            Image.fromarray(pixels).save(folder / f"{number}.png")
    return root


def jobs_of(*roots: Path, methods: tuple[str, ...] = ("zero-shot", "mmrl"), seeds: tuple[int, ...] = (1, 2)) -> list[Job]:
    cells = base_to_novel(methods, [str(root) for root in roots], seeds, shots=(4,), overrides=OPTIONS)
    return bind(cells, Context(BENCH, load_clip("tiny")))[0]


def scores(jobs: list[Job], store: ResultsFolder) -> dict[str, Any]:
    records = [store.run(job.key) for job in jobs]
    found = {test.key: test.scores for record in records if record for test in record.tests}
    return {key: found.get(key) for job in jobs for _, key in job.tests}


@pytest.fixture(scope="module")
def two_sets(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A good data set, and one with a test image of a novel class that is cut short."""
    root = tmp_path_factory.mktemp("sets")
    good, bad = photos(root / "good"), photos(root / "bad")
    from mmrl.data import load_dataset

    broken = bad / load_dataset(str(bad), test_share=0.5).test[-1].key  # as a grid divides it
    broken.write_bytes(broken.read_bytes()[:60])
    return good, bad


@pytest.fixture(scope="module")
def jobs(two_sets: tuple[Path, Path]) -> list[Job]:
    """Of the good set: zero-shot and two trainings."""
    return jobs_of(two_sets[0])


@dataclass
class Ended:
    code: int
    printed: str
    jobs: list[Job]
    store: ResultsFolder
    killed: list[int] = field(default_factory=list)


def kill_the_first_that_trains(work: Path, killed: list[int], stop: threading.Event) -> None:
    """SIGKILL the process that holds a training's folder, after its first checkpoint."""
    while not killed and not stop.wait(0.01):
        for state in work.glob("*/training_state.bin"):
            lock = str(state.with_name(".lock"))
            for descriptor in Path("/proc").glob("[0-9]*/fd/*"):
                try:
                    if os.readlink(descriptor) == lock:
                        killed.append(int(descriptor.parts[2]))
                        os.kill(killed[-1], signal.SIGKILL)
                        return
                except OSError:  # it ended meanwhile
                    continue


@pytest.fixture(scope="module")
def ended(two_sets: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ended]:
    """`mmrl bench --engine ray`, while one worker is killed."""
    from mmrl.cli.main import run

    if not Path("/proc/self/fd").is_dir():
        pytest.skip("the worker to kill is found through /proc")
    out, stop, killed = tmp_path_factory.mktemp("ray") / "out", threading.Event(), []
    names = ("--datasets", ",".join(map(str, two_sets)), "--methods", "zero-shot,mmrl", "--seeds", "1", "--shots", "4")
    words = ["mmrl", "bench", "base-to-novel", *names, *WORDS, "--backbone", "tiny", "--workers", "0", "--out", str(out), "--engine", "ray"]
    watcher = threading.Thread(target=kill_the_first_that_trains, args=(out / "work", killed, stop))
    with pytest.MonkeyPatch.context() as patch:
        lines: list[str] = []
        patch.setattr(sys, "argv", words)
        patch.setattr(cluster, "cores", lambda: 2)
        patch.setattr("typer.echo", lambda line="", **_: lines.append(str(line)))
        watcher.start()
        try:
            with pytest.raises(SystemExit) as left:
                run()
        finally:
            stop.set()
            watcher.join()
    yield Ended(int(left.value.code or 0), "\n".join(lines), jobs_of(*two_sets, seeds=(1,)), ResultsFolder(out), killed)


@pytest.mark.slow
def test_a_killed_worker_and_a_failing_job_cost_nothing_else(ended: Ended, tmp_path: Path) -> None:
    alone = ResultsFolder(tmp_path / "alone")
    run_here(ended.jobs, Context(BENCH, load_clip("tiny")), alone, say=lambda _: None)
    expected = scores(ended.jobs, alone)
    assert sum(found is not None for found in expected.values()) == 6  # of 8
    assert scores(ended.jobs, ended.store) == expected
    assert len(ended.killed) == 1
    assert ended.printed.count("its worker process died; once more") == 1
    assert not ray.is_initialized()


@pytest.mark.slow
def test_a_failure_is_noted_beside_the_others(ended: Ended) -> None:
    assert ended.code == 1
    failed = {path.stem for path in (ended.store.folder / "failed").glob("*.json")}
    assert failed == {job.key for job in ended.jobs if Path(job.tests[0][0].dataset).name == "bad"}
    for key in failed:
        assert "thing 3" in getattr(ended.store.read("failed", key), "error", "")
    assert not list((ended.store.folder / "locks").iterdir())
    for job in ended.jobs:
        if job.training:
            assert {"adapter_model.safetensors", "draw.json"} <= {path.name for path in ended.store.work(job.key).iterdir()}


def lose_the_node_that_trains(keys: set[str], lose: Callable[[], None], lost: list[str], stop: threading.Event) -> None:
    """After the first checkpoint of a training that does not write into the driver's folder: so it is on the other node."""
    while not stop.wait(0.01):
        for state in Path(tempfile.gettempdir()).glob("mmrl-*/*/training_state.bin"):
            if state.parent.name in keys:
                lost.append(state.parent.name)
                lose()
                return


@pytest.mark.slow
@pytest.mark.timeout(900)  # two Rays start, on a machine that may have other work
def test_a_node_that_is_lost_costs_nothing_and_nothing_comes_twice(
    two_sets: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cluster of two nodes of one worker each; the one that is not the driver's is killed while it trains."""
    from ray.cluster_utils import Cluster

    jobs, said = jobs_of(two_sets[0], seeds=(1, 2, 3)), list[str]()
    store, alone = ResultsFolder(tmp_path / "out"), ResultsFolder(tmp_path / "alone")
    run_here(jobs, Context(BENCH, load_clip("tiny")), alone, say=lambda _: None)
    monkeypatch.setattr(cluster, "PATIENCE", 240.0)
    lost, stop = list[str](), threading.Event()
    two = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        node = two.add_node(num_cpus=1)
        keys = {job.key for job in jobs if job.training}
        watcher = threading.Thread(
            target=lose_the_node_that_trains, args=(keys, lambda: two.remove_node(node, allow_graceful=False), lost, stop)
        )
        watcher.start()
        outcome = cluster.run_on_ray(jobs, BENCH, store, address=two.address, say=said.append)
        stop.set()
        watcher.join()
    finally:
        stop.set()
        ray.shutdown()
        two.shutdown()
    assert said[0] == "Ray: up to 2 runs at a time" and len(lost) == 1
    assert sum("its worker process died; once more" in line for line in said) == 1
    assert sorted(outcome.done) == sorted(job.key for job in jobs) and not outcome.failed
    finished = [line.split(":")[0] for line in said if line.endswith(" s)")]
    assert sorted(finished) == sorted({job.label for job in jobs}), "each is finished once"
    assert scores(jobs, store) == scores(jobs, alone) and None not in scores(jobs, store).values()


def test_an_address_where_nothing_answers(jobs: list[Job], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def go(address: str) -> None:
        cluster.run_on_ray(jobs, BENCH, ResultsFolder(tmp_path / "out"), address=address, say=print)

    monkeypatch.setattr(cluster, "PATIENCE", 1.0)
    with socket.create_server(("127.0.0.1", 0)) as server:  # it listens, and says nothing
        port = server.getsockname()[1]
        with pytest.raises(MmrlError, match=f"no Ray cluster answers at 127.0.0.1:{port}.*ray start --head"):
            go(f"127.0.0.1:{port}")
    for refused in (f"127.0.0.1:{port}", "127.0.0.1:99999"):
        with pytest.raises(MmrlError, match=f"no Ray cluster answers at {refused}"):
            go(refused)
    for bad in ("head", "head:", ":6379", "ray://head:10001"):
        with pytest.raises(UsageError, match=f"--address '{bad}': give 'auto', or HOST:PORT"):
            go(bad)


def test_without_ray(jobs: list[Job], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UsageError, match=r"pip install 'mmrl\[ray\]'"):
        cluster.run_on_ray(jobs, BENCH, ResultsFolder(tmp_path / "out"), say=print)


@pytest.mark.parametrize("fraction", [-1, 0.001, 1.5, 2, float("nan")])
def test_a_run_takes_one_gpu_at_most(fraction: float, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--gpu-fraction .*Give 0.01 to 1, or 0 for the CPU"):
        cluster.run_on_ray([], BENCH, ResultsFolder(tmp_path / "out"), gpu_fraction=fraction, say=print)


# The worker, in this process.


@pytest.fixture
def far(monkeypatch: pytest.MonkeyPatch) -> Worker:
    """A worker on another machine than the driver's."""
    monkeypatch.setattr(ray, "get_runtime_context", lambda: SimpleNamespace(get_node_id=lambda: "there"))
    monkeypatch.setattr(ray, "get", lambda value: value)
    return Worker(BENCH, "cpu", "here", os.getcwd())


def test_a_far_worker_sends_its_files_and_goes_on_from_those_it_gets(far: Worker, two_sets: tuple[Path, Path], tmp_path: Path) -> None:
    (job,) = jobs_of(two_sets[0], methods=("mmrl",), seeds=(1,))
    home = tmp_path / "work" / job.key
    first = far.compute(job, None, home, [])
    assert first.failure is None and not home.exists() and first.record is not None
    assert [test.key for test in first.record.tests] == [key for _, key in job.tests]
    assert {"adapter_config.json", "adapter_model.safetensors", "draw.json", "training_state.bin"} <= set(first.files)
    unpack(first.files, home)
    assert pack(home) == first.files
    half = first.record.model_copy(update={"tests": first.record.tests[:1]})
    again = far.compute(job, half, home, [first.files]).record
    assert again is not None and again.training == first.record.training  # it was not trained anew
    assert again.tests[0] == first.record.tests[0] and again.tests[1].environment != first.record.tests[1].environment
    assert again.tests[1].scores == first.record.tests[1].scores
    anew = far.compute(job, None, home, [first.files]).record  # its record was lost
    assert (
        anew is not None and anew.trained.seconds == first.record.trained.seconds and anew.trained.history == first.record.trained.history
    )
    assert [test.scores for test in anew.tests] == [test.scores for test in first.record.tests]


def test_other_data_than_the_drivers_are_refused(far: Worker, tmp_path: Path) -> None:
    root = photos(tmp_path / "set")
    jobs = jobs_of(root, seeds=(1,))
    (root / "thing 3" / "0.png").unlink()
    for job in jobs:
        result = far.compute(job, None, tmp_path / "home", [])
        assert result.failure is not None and result.record is None
        assert f"{socket.gethostname()} has another mmrl, another backbone 'tiny' or other files of {root}" in result.failure.error


def test_unpacking_replaces_all_and_forgets_what_a_kill_left(tmp_path: Path) -> None:
    folder = tmp_path / "work" / "key"
    unpack({"a": b"1", "below/b": b"2"}, folder)
    (folder.parent / ".key.partial").mkdir()
    (folder.parent / ".key.partial" / "half").write_bytes(b"")
    (folder / ".lock").write_bytes(b"")
    assert pack(folder) == {"a": b"1", "below/b": b"2"}
    unpack({"c": b"3"}, folder)
    assert [path.name for path in folder.parent.rglob("*")] == ["key", "c"]


# The driver, with a Ray that is played: what `remote()` gives is a call, made when its result is asked for.


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
