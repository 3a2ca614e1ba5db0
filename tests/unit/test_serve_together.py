"""Requests beside each other: a full queue, a slow class list, a batch that fails, an adapter that changes, and the end."""

from __future__ import annotations

import asyncio
import json
import logging
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from mmrl.classifier.predictor import Classifier
from mmrl.engine.adapter import CONFIG, TENSORS
from mmrl.errors import MmrlError, UsageError
from mmrl.server import connection
from mmrl.server.adapters import Served
from mmrl.server.app import make_app
from mmrl.server.connection import config_of
from mmrl.server.heads import size_of
from mmrl.server.refusals import Refused
from mmrl.server.service import Service
from mmrl.server.settings import Limits, Settings, named_adapters
from tests.unit.serving import ANIMALS, adapter, photo, scores, serving, text

SLOW = "slow"


def ask(client: Any, *names: str, seed: int = 0, path: str = "/") -> Any:
    return client.post(path, json={"inputs": text(photo(seed)), "parameters": {"candidate_labels": list(names)} if names else {}})


def until(true: Callable[[], bool]) -> None:
    while not true():  # pytest's own time-out ends it
        time.sleep(0.005)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two adapters."""
    root = tmp_path_factory.mktemp("adapters")
    return [adapter(root / f"seed{seed}", seed=seed) for seed in (1, 2)]


@pytest.fixture
def folder(made: list[Path], tmp_path: Path) -> Path:
    return write(made[0], tmp_path / "animals")


def write(adapter: Path, folder: Path) -> Path:
    """As `save_pretrained` does: each file is replaced, the configuration last."""
    folder.mkdir(exist_ok=True)
    for name in (TENSORS, CONFIG):
        shutil.copy(adapter / name, folder / f"{name}.new")
        (folder / f"{name}.new").replace(folder / name)
    return folder


@contextmanager
def held(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Batches wait for this event."""
    go, plain = threading.Event(), Classifier.score_pixels

    def waiting(self: Classifier, *given: Any) -> Any:
        go.wait()
        return plain(self, *given)

    monkeypatch.setattr(Classifier, "score_pixels", waiting)
    try:
        yield go
    finally:
        go.set()


def test_a_full_queue_says_when_to_come_back(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limits = Limits(queue=2, images=2)
    with serving(("animals", str(folder)), limits=limits) as client, ThreadPoolExecutor(3) as pool:
        gate = client.app.state.service.gate
        with held(monkeypatch) as go:
            first = pool.submit(ask, client)
            until(lambda: gate.slots == 1)
            two = client.post("/", json={"inputs": [text(photo(1))] * 2})  # one more fits, two do not
            assert two.status_code == 429
            second = pool.submit(ask, client)
            until(lambda: gate.slots == 2)
            third = ask(client)
            assert third.status_code == 429 and 1 <= int(third.headers["retry-after"]) <= 30 and "queue is full" in third.json()["error"]
            assert client.get("/readyz").status_code == 200 and "mmrl_queue_images 2.0" in client.get("/metrics").text
            go.set()
        assert first.result().status_code == second.result().status_code == 200
        assert gate.slots == gate.held == 0 and ask(client).status_code == 200


def test_too_many_bytes_at_once(folder: Path) -> None:
    with serving(("animals", str(folder)), limits=Limits(body=10_000, held=1000)) as client:
        answer = client.post("/", content=bytes(2000), headers={"content-type": "image/png"})
        assert answer.status_code == 429 and client.app.state.service.gate.held == 0


def test_an_answer_that_takes_too_long(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(("animals", str(folder)), limits=Limits(seconds=0.05)) as client, held(monkeypatch) as go:
        answer = ask(client)
        go.set()
        assert answer.status_code == 504 and client.app.state.service.gate.slots == 0


def test_a_slow_class_list_holds_up_nobody_else(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    go, plain, made = threading.Event(), Served.head_of, []

    def slow(self: Served, names: Any, template: Any) -> Any:
        made.append(names)
        if SLOW in names:
            go.wait()
        return plain(self, names, template)

    monkeypatch.setattr(Served, "head_of", slow)
    with serving(("animals", str(folder))) as client, ThreadPoolExecutor(2) as pool:
        waiting = [pool.submit(ask, client, SLOW, "b") for _ in range(2)]
        until(lambda: bool(made))
        assert ask(client).status_code == 200 and not any(each.done() for each in waiting)
        go.set()
        assert all(each.result().status_code == 200 for each in waiting)
        assert made == [(SLOW, "b")]  # for both


def test_a_class_list_that_nobody_waits_for_is_not_made(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    go, plain, made = threading.Event(), Served.head_of, []

    def slow(self: Served, names: Any, template: Any) -> Any:
        made.append(names)
        go.wait()
        return plain(self, names, template)

    monkeypatch.setattr(Served, "head_of", slow)
    with serving(("animals", str(folder)), limits=Limits(heads=2)) as client:
        heads, served = client.app.state.service.heads, client.app.state.service.adapters.default

        async def leave() -> None:
            asked = [asyncio.create_task(heads.made(served, names, None)) for names in ((SLOW,), ("b",))]
            while not made:
                await asyncio.sleep(0.005)
            with pytest.raises(Refused, match="2 class lists are being made"):
                await heads.made(served, ("c",), None)
            for each in asked:
                each.cancel()
            await asyncio.gather(*asked, return_exceptions=True)

        try:
            client.portal.call(leave)
            broken = {"inputs": text(photo()[:500]), "parameters": {"candidate_labels": ["d"]}}
            assert client.post("/", json=broken).status_code == 422
        finally:
            go.set()
        assert ask(client, "e").status_code == 200 and made == [(SLOW,), ("e",)]
        assert {key[1] for key in heads._kept} == {(SLOW,), ("e",)}  # one that was being made may be asked for again


def test_no_batch_is_larger_than_it_may_be(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, sizes = Classifier.score_pixels, list[int]()

    def counted(self: Classifier, pixels: Any, asked: Any) -> Any:
        sizes.append(len(pixels))
        return plain(self, pixels, asked)

    with serving(("animals", str(folder)), limits=Limits(batch=2)) as client:
        monkeypatch.setattr(Classifier, "score_pixels", counted)
        answers = client.post("/", json={"inputs": [text(photo(at)) for at in range(5)]}).json()
        assert sizes == [2, 2, 1]
        own = client.app.state.service.adapters.default.classifier
        for answer, ranked in zip(answers, own.rank([photo(at) for at in range(5)]), strict=True):
            assert scores(answer) == pytest.approx({each.name: each.probability for each in ranked}, abs=1e-5)


def test_class_lists_are_kept_within_bounds(folder: Path) -> None:
    with serving(("animals", str(folder)), limits=Limits(heads=2)) as client:
        heads = client.app.state.service.heads
        for names in (("a", "b"), ("c",), ("a", "b"), ("d", "e")):
            assert ask(client, *names).status_code == 200
        assert {key[1] for key in heads._kept} == {("a", "b"), ("d", "e")}
        assert heads.bytes == sum(each.bytes for each in heads._kept.values())
        own = client.app.state.service.adapters.default.own
        assert size_of(own) >= own.head.nbytes
        heads._limits = Limits(head_bytes=1)
        assert ask(client, "f").status_code == 200 and len(heads) == 2  # too large to be kept, and answered


def test_one_that_fails_takes_no_other_of_its_batch(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    go, plain, sizes = threading.Event(), Classifier.score_pixels, list[int]()

    def failing(self: Classifier, pixels: Any, asked: Any) -> Any:
        sizes.append(len(pixels))
        go.wait()
        if any("bad" in head.names for head, _ in asked):
            raise MmrlError("the scores are not finite")
        return plain(self, pixels, asked)

    with serving(("animals", str(folder))) as client, ThreadPoolExecutor(7) as pool:
        own, batcher = client.app.state.service.adapters.default.classifier, client.app.state.service.batcher
        ask(client, "bad", "b")
        monkeypatch.setattr(Classifier, "score_pixels", failing)
        before = pool.submit(ask, client)
        until(lambda: sizes == [1])
        asked = [pool.submit(ask, client, *(("bad", "b") if at == 2 else ANIMALS), seed=at) for at in range(6)]
        until(lambda: batcher.images == 6)
        go.set()
        answers = [each.result() for each in asked]
        assert before.result().status_code == 200 and sizes == [1, 6, 1, 1, 1, 1, 1, 1]
        assert [each.status_code for each in answers] == [200, 200, 500, 200, 200, 200] and "not finite" in answers[2].json()["error"]
        monkeypatch.undo()
        for at in (0, 1, 3, 4, 5):
            expected = {each.name: each.probability for each in own.rank(photo(at))[0]}
            assert scores(answers[at].json()) == pytest.approx(expected, abs=1e-5)


def test_an_adapter_that_changes_is_loaded_again(folder: Path, made: list[Path], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "mmrl.server")
    other = scores_of(made[1])
    with serving(("animals", str(folder))) as client:
        look = client.app.state.service.adapters.look
        before = scores(ask(client).json())
        ask(client, "a", "b")
        client.portal.call(look)
        assert client.get("/models/animals").json()["version"] == 1
        write(made[1], folder)
        client.portal.call(look)  # it is still being written, perhaps
        assert scores(ask(client).json()) == before
        client.portal.call(look)
        after = scores(ask(client).json())
        assert client.get("/models/animals").json()["version"] == 2 and after == pytest.approx(other, abs=1e-5) and after != before
        assert len(client.app.state.service.heads) == 0  # those of the old one are forgotten
        (folder / TENSORS).write_bytes(b"cut")
        for _ in range(3):
            client.portal.call(look)
        assert scores(ask(client).json()) == after
        kept = [each for each in caplog.records if "the old one is kept" in each.getMessage()]
        assert len(kept) == 1 and 'mmrl_reloads_total{adapter="animals",result="failed"} 1.0' in client.get("/metrics").text
        write(made[0], folder)
        for _ in range(2):
            client.portal.call(look)
        assert scores(ask(client).json()) == pytest.approx(before, abs=1e-5)


def scores_of(folder: Path) -> dict[str, float]:
    from mmrl.api import from_pretrained

    return {each.name: each.probability for each in from_pretrained(folder, device="cpu").rank(photo())[0]}


def test_the_folders_are_looked_at(folder: Path, made: list[Path]) -> None:
    service = Service(Settings((("animals", str(folder)),), device="cpu", reload=0.01))
    from tests.unit.serving import TestClient

    with TestClient(make_app(service)) as client:
        write(made[1], folder)
        until(lambda: client.get("/models/animals").json()["version"] == 2)


@contextmanager
def listening(folder: Path) -> Iterator[tuple[uvicorn.Server, int, threading.Thread]]:
    """A real server, in a thread."""
    place = socket.create_server(("127.0.0.1", 0))
    app = make_app(Service(Settings((("animals", str(folder)),), device="cpu", reload=0)))
    server = uvicorn.Server(config_of(app, timeout_graceful_shutdown=60))
    thread = threading.Thread(target=server.run, args=([place],))
    thread.start()
    until(lambda: server.started)
    try:
        yield server, place.getsockname()[1], thread
    finally:
        server.should_exit = True
        thread.join()


def request(body: bytes) -> bytes:
    return b"POST / HTTP/1.1\r\nhost: here\r\ncontent-type: image/jpeg\r\ncontent-length: %d\r\n\r\n" % len(body) + body


def all_of(place: socket.socket) -> bytes:
    found = b""
    while piece := place.recv(65536):
        found += piece
    return found


def test_connections(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Heads that do not come or do not end, what is no HTTP, answers that are not read, and an end that loses nothing on its way."""
    monkeypatch.setattr(connection, "HEAD_SECONDS", 0.05)
    monkeypatch.setattr(connection, "LINGER", 60.0)  # the test ends it by a request
    with listening(folder) as (server, port, thread):
        with socket.create_connection(("127.0.0.1", port)) as silent, socket.create_connection(("127.0.0.1", port)) as slow:
            slow.sendall(b"POST / HTTP/1.1\r\nhost:")
            assert all_of(silent) == all_of(slow) == b""
        monkeypatch.setattr(connection, "HEAD_SECONDS", 60.0)
        with socket.create_connection(("127.0.0.1", port)) as garbage:
            garbage.sendall(b"\x16\x03\x01 what\r\n\r\n")
            head, _, body = all_of(garbage).partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 400 ") and b"application/json" in head
            assert json.loads(body) == {"error": "this is no HTTP request."}
        with socket.create_connection(("127.0.0.1", port)) as long:
            long.sendall(b"GET /healthz HTTP/1.1\r\nhost: here\r\nx: ")
            with suppress(OSError):  # it may be closed before all of it is sent
                long.sendall(b"x" * 2**19)
                assert b" 200 " not in all_of(long)
        monkeypatch.setattr(connection, "WRITE_SECONDS", 0.05)
        with socket.socket() as deaf:
            deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            deaf.connect(("127.0.0.1", port))
            before = server.server_state.total_requests
            deaf.sendall(b"GET /openapi.json HTTP/1.1\r\nhost: here\r\n\r\n" * 1000)
            until(lambda: server.server_state.total_requests > before)
            until(lambda: not server.server_state.connections)
        monkeypatch.setattr(connection, "WRITE_SECONDS", 60.0)
        with socket.create_connection(("127.0.0.1", port)) as inside, socket.create_connection(("127.0.0.1", port)) as idle:
            whole = request(photo())
            inside.sendall(whole[:-10])
            until(lambda: server.config.app.state.service.gate.slots == 1)
            until(lambda: len(server.server_state.connections) == 2)
            server.should_exit = True
            until(lambda: server.config.app.state.service.gate.draining)
            idle.sendall(whole)  # as if it had been on its way
            inside.sendall(whole[-10:])
            for each in (inside, idle):
                answer = all_of(each)
                assert answer.startswith(b"HTTP/1.1 200 ") and b"connection: close" in answer.lower() and b"red panda" in answer
        thread.join()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "no adapter is given"),
        (["/x/my adapter"], "cannot be the name of an adapter"),
        (["a=/x", "a=/y"], "two adapters are called 'a'"),
        (["/x/animals", "/y/animals"], "two adapters are called 'animals'"),
        (["~nobody-of-that-name/x"], "a user's home folder that is not known"),
        (["x" * 300], "too long for the name of a file"),
        (["a=" + "x" * 300, "a=/y"], "two adapters are called 'a'"),
    ],
)
def test_names_that_cannot_be(given: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        named_adapters(given)


def test_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x=y").mkdir()
    monkeypatch.chdir(tmp_path)
    given = named_adapters(["a=/x/y", "org/name", "zero-shot", str(tmp_path), "b=zero-shot"])
    assert given == (("a", "/x/y"), ("name", "org/name"), ("zero-shot", "zero-shot"), (tmp_path.name, str(tmp_path)), ("b", "zero-shot"))
    with pytest.raises(UsageError, match="'x=y' cannot be the name"):
        named_adapters(["x=y"])
    settings = Settings(given, limits=Limits(queue=99))
    assert Settings.from_json(settings.to_json()) == settings
    with pytest.raises(UsageError, match="the limit 'pixels' is 0"):
        Limits(pixels=0)


def test_another_backbone_is_refused(folder: Path, tmp_path: Path) -> None:
    from tests.unit.colours import smallest_clip

    other = adapter(tmp_path / "other", "coop", clip=smallest_clip())
    with pytest.raises(UsageError, match="All adapters of a server share one backbone"):
        Service(Settings((("a", str(folder)), ("b", str(other))), device="cpu"))
