"""`--engine ray`: on a Ray of two workers, one of which is killed, and on two nodes, one of which is lost."""

from __future__ import annotations

import os
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mmrl.clip import load_clip
from mmrl.engine import Context, Job
from mmrl.engine.grid import ResultsFolder, cluster, run_here
from mmrl.engine.grid.remote import Worker, pack, unpack
from mmrl.errors import MmrlError, UsageError
from tests.unit.ray_sets import BENCH, WORDS, jobs_of, photos

ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'mmrl[ray]'")

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

    jobs, said = jobs_of(two_sets[0], seeds=(1, 2, 3, 4)), list[str]()
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
    assert sum("its worker process died; once more" in line for line in said) <= 1  # none where it had just finished
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
