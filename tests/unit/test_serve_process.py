"""`mmrl serve` as a process: it ends without losing what it accepted, and starts again what died."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import mmrl
from mmrl.server import run
from tests.unit.conftest import Cli
from tests.unit.serving import ANIMALS, adapter, photo
from tests.unit.test_serve_together import all_of, request, until

ROOT = Path(__file__).parents[2]


@contextmanager
def served(*words: str, log: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A server and its address."""
    command = [sys.executable, "-m", "mmrl", "serve", *words, "--device", "cpu", "--port", "0", "--threads", "1", "--reload", "0"]
    own = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "MMRL_TOKEN": "a-long-secret", "OMP_NUM_THREADS": "1"}
    with log.open("w") as errors, subprocess.Popen(command, env=own, stdout=subprocess.PIPE, stderr=errors, text=True) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            found = re.fullmatch(r"serving .* at (http://127\.0\.0\.1:\d+)\D.*\(Ctrl-C ends\)\n", line)
            assert found, (line, log.read_text())
            yield process, found[1]
        finally:
            process.kill() if process.poll() is None else None


def connected(url: str) -> socket.socket:
    return socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])))


def with_token(whole: bytes) -> bytes:
    return whole.replace(b"host: here", b"host: here\r\nauthorization: Bearer a-long-secret")


def refuses(url: str) -> bool:
    try:
        connected(url).close()
    except OSError:
        return True
    return False


def test_an_end_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)  # its client of any server asks that, too
    log = tmp_path / "log"
    with served(str(adapter(tmp_path / "animals")), log=log) as (process, url):
        with mmrl.Client(url, token="a-long-secret") as client, connected(url) as place:
            expected = client.classify(photo())
            assert {each["label"] for each in expected} == set(ANIMALS)
            hugging_face = pytest.importorskip("huggingface_hub").InferenceClient(model=f"{url}/models/animals", token="a-long-secret")
            labels = ["red panda", "wolverine"]
            found = [each.label for each in hugging_face.zero_shot_image_classification(photo(), candidate_labels=labels)]
            assert found == [each["label"] for each in client.classify(photo(), labels)]
            whole = with_token(request(photo()))
            place.sendall(whole[:-10])
            queue = re.compile(r"mmrl_queue_images 1\.0")
            until(lambda: bool(queue.search(client._http.get("/metrics").text)))
            process.send_signal(signal.SIGTERM)
            until(lambda: refuses(url))
            place.sendall(whole[-10:])
            answer = all_of(place)
            assert answer.startswith(b"HTTP/1.1 200 ") and json.loads(answer.partition(b"\r\n\r\n")[2]) == expected
        assert process.wait() == 0
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [each["status"] for each in lines if each["message"] == "request" and each["method"] == "POST"] == [200] * 4
    assert "a-long-secret" not in log.read_text()


def children(pid: int) -> set[int]:
    """Processes with the application in them."""
    found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return {int(each) for each in found if "spawn_main" in Path(f"/proc/{each}/cmdline").read_text()}


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_a_process_that_dies_is_started_again(tmp_path: Path) -> None:
    with served("zero-shot", "--workers", "2", log=tmp_path / "log") as (process, url):
        before = children(process.pid)
        assert len(before) == 2
        dead = min(before)
        with mmrl.Client(url, token="a-long-secret") as client:
            expected = client.classify(photo(), ["a", "b"])
            os.kill(dead, signal.SIGKILL)
            assert client.classify(photo(), ["a", "b"]) == expected  # asked again where it was inside the dead one
            until(lambda: len(children(process.pid) - {dead}) == 2)
            assert client.classify(photo(), ["a", "b"]) == expected
            numbers = client._http.get("/metrics").text
            assert re.search(r'mmrl_images_total\{adapter="zero-shot"\} 3\.0', numbers)  # of all processes
        process.send_signal(signal.SIGTERM)
        assert process.wait() == 0
    assert "a process died and was started again" in (tmp_path / "log").read_text()


class Unready:
    """A process that is replaced, or a new one, which does not get ready."""

    pid = 7
    ended = started = 0

    def __init__(self, *_: object) -> None:
        pass

    def terminate(self) -> None:
        self.ended += 1

    def join(self) -> None:
        pass

    def start(self) -> None:
        Unready.started += 1

    def wait_until_ready(self, *_: object) -> bool:
        return False


def test_a_replacement_that_fails_ends_no_more_processes(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(run, "Process", Unready)
    watching = run._Watching.__new__(run._Watching)
    watching.config = watching.sockets = watching.should_exit = None  # type: ignore[assignment]
    for signals, replaced in ([], 1), ([signal.SIGTERM], 0):
        old = [Unready() for _ in range(3)]
        watching.processes, watching.signal_queue, Unready.started = list(old), list(signals), 0  # type: ignore[arg-type]
        watching.restart_all()
        assert [each.ended for each in old] == [1] * replaced + [0] * (3 - replaced) and Unready.started == replaced
    assert [each.message for each in caplog.records] == ["a new process did not get ready; the others are not replaced"]


def test_what_cannot_be_served_is_one_line(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for words, code, message in (
        (["/nowhere/x", "--port", 0], 2, "error: no adapter in '/nowhere/x'"),
        (["zero-shot", "--device", "cpu,cpu", "--workers", 2], 2, "are both given"),
        (["zero-shot", "--device", "cuda", "--workers", 2], 2, "--device cuda:0,cuda:1"),
        (["zero-shot", "--host", "no.such.host.invalid"], 2, "is no address of this machine"),
        (["zero-shot", "--token-file", tmp_path / "none", "--port", 0], 2, "does not exist"),
    ):
        found, out, err = cli("serve", *words)
        assert (found, out) == (code, "") and message in err and err.count("\n") == 1
    (tmp_path / "token").write_text("short\n")
    found, _, err = cli("serve", "zero-shot", "--port", 0, "--token-file", tmp_path / "token")
    assert found == 2 and "must have 8 to 4,096 visible ASCII letters" in err
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        found, _, err = cli("serve", "zero-shot", "--port", port)
        assert found == 1 and err == f"error: port {port} of 127.0.0.1 is in use. Give another with --port.\n"
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "uvicorn" else object())
    found, _, err = cli("serve", "zero-shot")
    assert found == 2 and "serving needs uvicorn" in err and 'pip install "mmrl[serve]"' in err
