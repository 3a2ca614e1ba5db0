"""`mmrl app` in a browser: from photos to a classifier that Python loads; two visitors at once; hostile names; nothing goes out."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import re
import shutil
import socket
import threading
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Awaitable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

import mmrl
from mmrl.app.session import Backbones, Choice, Session
from mmrl.app.sessions import Sessions
from mmrl.app.uploads import UploadLimits
from mmrl.clip import load_clip
from mmrl.data.mini.sets import MINI_SETS
from mmrl.errors import UsageError

pytest.importorskip("gradio")
QUIET = "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-component-update --disable-sync"
HOSTILE = ('<img src=x onerror="window.ran=1">', "<script>ran=1</script>", "${window.ran=1}{{7*7}}")
MINI = MINI_SETS["mini:objects"]
CLASSES = ("orange house", "green fish")
pytestmark = pytest.mark.filterwarnings("ignore::mmrl.errors.Notice", "ignore::DeprecationWarning", "ignore::UserWarning:gradio.*")


def draw(folder: Path, name: str, numbers: range) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{number}.png" for number in numbers]
    for number, path in zip(numbers, paths):
        Image.fromarray(MINI.render("train", MINI.classes.index(name), number)).save(path)
    return paths


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Path]]:
    folder = tmp_path_factory.mktemp("pictures")
    return {name: draw(folder / name, name, range(8)) for name in CLASSES}


@pytest.fixture(scope="module")
def archive(pictures: dict[str, list[Path]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("zip") / "photos.zip"
    with zipfile.ZipFile(path, "w") as file:
        for name, paths in pictures.items():
            for each in paths[:6]:
                file.write(each, f"{name}/{each.name}")
    return path


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Sessions]]:
    from mmrl.app.serve import PageSettings, running

    place = tmp_path_factory.mktemp("system")
    backbones = Backbones(("tiny",), "cpu", {"tiny": load_clip("tiny", device="cpu")})
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with running(PageSettings(port=port, backbones=backbones, limits=UploadLimits(upload_bytes=2**21), parent=place)) as running_app:
        yield running_app
    assert list(place.iterdir()) == []


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api")
    found = next(filter(None, map(shutil.which, ("chromium", "google-chrome", "chromium-browser"))), None)
    if found is None:
        pytest.skip("no Chromium to open the page with")
    with playwright.sync_playwright() as started:
        running = started.chromium.launch(executable_path=found, args=QUIET.split())
        yield running
        running.close()


@pytest.fixture(scope="module")
def visitor(browser: Any, app: tuple[str, Sessions]) -> Any:
    return opened(browser, app[0])


def opened(browser: Any, url: str) -> Any:
    """A new visitor's page; `page.asked` has every request, `page.failed` every error in it."""
    page = browser.new_context(viewport={"width": 900, "height": 900}, accept_downloads=True).new_page()
    page.set_default_timeout(60_000)
    page.asked, page.failed = [], []
    page.on("request", lambda request: page.asked.append(request.url))
    page.on("pageerror", lambda error: page.failed.append(str(error)))
    page.goto(url)
    page.wait_for_selector("#train")
    return page


def text(page: Any, where: str) -> str:
    return str(page.inner_text(where))


def send_zip(page: Any, archive: Path) -> None:
    page.get_by_role("tab", name="zip").click()
    page.set_input_files("#zip input[type=file]", archive)
    page.wait_for_selector("#photos-said .said")


def choose(page: Any, where: str, option: str) -> None:
    page.click(f"{where} input")
    page.get_by_role("option", name=option).first.click()


def ask(page: Any, files: list[Path], names: str) -> None:
    page.set_input_files("#tried input[type=file]", files)
    page.wait_for_selector("#tried .file-preview")
    page.fill("#names textarea", names)
    page.click("#ask")


def test_from_photos_to_a_classifier_that_python_loads(
    visitor: Any, archive: Path, pictures: dict[str, list[Path]], tmp_path: Path, app: tuple[str, Sessions]
) -> None:
    visitor.click("#train")
    visitor.wait_for_selector("#progress .bad")
    assert "no photos yet" in text(visitor, "#progress") and not visitor.is_enabled("#ask")

    send_zip(visitor, archive)
    assert "12 photos added." in text(visitor, "#photos-said")
    assert re.sub(r"\s+", " ", text(visitor, "#classes")) == "green fish 6 photos orange house 6 photos 2 classes, 12 photos"

    choose(visitor, "#method", "GDA")
    visitor.click("#train")
    visitor.wait_for_selector("#score .big")
    assert re.search(r"\d+%\s+right with GDA\s+\d of 4 photos\s+\d+%\s+right without training \(zero-shot CLIP\)", text(visitor, "#score"))
    assert "Measured on 4 photos that were held out" in text(visitor, "#score")

    ask(visitor, [pictures["green fish"][7]], "green fish, orange house, blue ring")
    visitor.wait_for_selector("#answers .new")
    card = text(visitor, "#answers .card")
    assert card.startswith("green fish") and "blue ring new" in card

    with visitor.expect_download() as coming:
        visitor.click("#download")
    coming.value.save_as(tmp_path / "taken.zip")
    with zipfile.ZipFile(tmp_path / "taken.zip") as file:
        file.extractall(tmp_path)
    classifier = mmrl.from_pretrained(tmp_path / "my-classifier", device="cpu")
    assert classifier.trained == ("green fish", "orange house") and classifier.predict(pictures["green fish"][7]) == "green fish"
    assert f"mmrl predict {'my-classifier'}" in text(visitor, "#usage")


@pytest.fixture(scope="module")
def other(browser: Any, app: tuple[str, Sessions]) -> Any:
    return opened(browser, app[0])


def test_what_two_visitors_have_is_their_own(visitor: Any, other: Any, pictures: dict[str, list[Path]], app: tuple[str, Sessions]) -> None:
    assert "No photos yet" in text(other, "#classes") and not other.is_enabled("#ask") and not other.is_enabled("#download")
    assert "green fish" not in other.content() and "green fish" in text(visitor, "#classes")
    add(other, "mine", pictures["orange house"][:1])
    assert "mine" in text(other, "#classes") and "mine" not in visitor.content() and len(app[1]) == 2


def add(page: Any, name: str, files: list[Path]) -> None:
    page.fill("#name input, #name textarea", name)
    page.set_input_files("#files input[type=file]", files)
    page.wait_for_selector("#files .file-preview")
    page.click("#add")
    page.wait_for_function("name => document.querySelector('#classes').innerText.includes(name)", arg=name)


def test_names_that_visitors_type_are_text(other: Any, pictures: dict[str, list[Path]], tmp_path: Path) -> None:
    first, second, third = HOSTILE
    (broken := tmp_path / "<b>broken.png").write_bytes(b"no photo")
    other.click("#clear")
    add(other, first, [*pictures["green fish"][:3], broken])
    assert "'bbroken.png' is broken, or not a photo." in text(other, "#photos-said")
    add(other, third, pictures["orange house"][:3])
    choose(other, "#method", "GDA")
    other.click("#train")
    other.wait_for_selector("#score .big, #progress .bad")
    assert other.is_visible("#score .big"), text(other, "#progress")
    ask(other, pictures["green fish"][6:7], ", ".join(HOSTILE))
    other.wait_for_selector("#answers .card")
    assert all(name in text(other, "#answers") for name in HOSTILE) and all(name in text(other, "#classes") for name in (first, third))
    other.fill("#names textarea", f"{second}, {second}")
    other.click("#ask")
    other.wait_for_selector("#answers .bad")
    assert text(other, "#answers").startswith(f"class name '{second}' stands twice")
    other.fill("#names textarea", "a " * 40)
    other.click("#ask")
    other.wait_for_function("() => document.querySelector('#answers .bad')?.innerText.includes('too long a prompt')")
    assert other.evaluate("window.ran") is None and other.failed == []


def test_photos_go_when_the_page_is_closed(other: Any, app: tuple[str, Sessions], monkeypatch: pytest.MonkeyPatch) -> None:
    (session,) = (each for each in app[1]._sessions.values() if HOSTILE[0] in each.classes)
    shown = app_state(app[1])
    other.context.close()
    deadline = time.monotonic() + 60
    while session.left is None:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    monkeypatch.setattr("mmrl.app.sessions.GRACE", -1.0)
    app[1].sweep()
    assert not session.folder.exists() and len(app[1]) == 1 and app_state(app[1]) == shown - 1


def app_state(sessions: Sessions) -> int:
    """Pages whose last content Gradio holds."""
    return len(sessions.ended.args[0].state_holder.session_data)  # type: ignore[attr-defined]


def test_a_training_shows_its_curve_and_is_cancelled(visitor: Any) -> None:
    choose(visitor, "#method", "CoOp")
    visitor.get_by_text("More options").click()
    visitor.fill("#epochs input", "900")
    visitor.click("#train")
    visitor.wait_for_selector("#progress svg.chart")
    assert re.search(r"pass \d+ of 900, step \d+ of \d+, loss \d", text(visitor, "#progress"))
    visitor.click("#cancel")
    visitor.wait_for_function("() => document.querySelector('#progress').innerText.includes('Cancelled')")
    visitor.wait_for_selector("#train:enabled")
    assert visitor.is_visible("#score .big")  # the classifier of before is still there


def test_what_cannot_be_used_is_said_in_one_sentence(visitor: Any, tmp_path: Path, app: tuple[str, Sessions]) -> None:
    (flat := tmp_path / "flat.zip").write_bytes(b"")
    with zipfile.ZipFile(flat, "w") as file:
        file.writestr("cat.png", b"x")
    send_zip(visitor, flat)
    visitor.wait_for_selector("#photos-said .bad")
    assert text(visitor, "#photos-said") == (
        "This zip has photos, but no folders. It needs one folder a class, named after the class, such as cat/1.jpg and dog/1.jpg."
    )
    assert str(app[1].root) not in text(visitor, "body")


def test_nothing_was_asked_of_another_machine(visitor: Any, app: tuple[str, Sessions]) -> None:
    assert len(visitor.asked) > 20
    outside = [url for url in visitor.asked if not url.startswith((app[0], "data:", "blob:"))]
    assert outside == [] and visitor.failed == []


def posted(url: str, body: bytes, **headers: str) -> tuple[int, str]:
    request = urllib.request.Request(url, body, {"content-type": "application/json", **headers})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_requests_beyond_the_limits_are_refused(app: tuple[str, Sessions]) -> None:
    host, port = app[0].removeprefix("http://").rstrip("/").split(":")
    long, longer, chunked = f"content-length: {2**22 + 1}", f"content-length: {2**21 + 2**20 + 1}", "transfer-encoding: chunked"
    for path, header, status in (("upload", longer, 413), ("queue/join", long, 413), ("upload", chunked, 411)):
        with socket.create_connection((host, int(port)), timeout=60) as sent:
            sent.sendall(f"POST /gradio_api/{path} HTTP/1.1\r\nhost: {host}\r\n{header}\r\n\r\n".encode())
            assert f" {status} ".encode() in sent.recv(100)


def test_no_file_of_this_machine_and_no_address_is_taken_as_an_upload(app: tuple[str, Sessions]) -> None:
    url, sessions = app
    config = json.loads(urllib.request.urlopen(f"{url}config", timeout=60).read())
    at = next(each["id"] for each in config["dependencies"] if len(each["inputs"]) == 1 and each["targets"][0][1] == "upload")
    with socket.socket() as trap:
        trap.bind(("127.0.0.1", 0))
        trap.listen()
        trap.settimeout(0.2)
        for path in ("/etc/passwd", "http://1.1.1.1/x.zip", f"http://127.0.0.1:{trap.getsockname()[1]}/x.zip"):
            data = {"path": path, "meta": {"_type": "gradio.FileData"}, "orig_name": "x.zip"}
            body = {"data": [data], "fn_index": at, "session_hash": "stranger"}
            assert posted(f"{url}gradio_api/queue/join", json.dumps(body).encode())[0] == 200
            told = urllib.request.urlopen(f"{url}gradio_api/queue/data?session_hash=stranger", timeout=60).read().decode()
            assert '"success":false' in told.replace(" ", ""), told
            assert "root:" not in told
        with pytest.raises(TimeoutError):  # nobody came to fetch
            trap.accept()
    assert not [path for path in sessions.root.rglob("*") if path.name in ("passwd", "x.zip")]


def test_uploads_at_once_are_counted_together(app: tuple[str, Sessions]) -> None:
    from mmrl.app.serve import Bounds

    size = app[1].limits.upload_bytes
    scope = {"type": "http", "method": "POST", "path": "/gradio_api/upload", "headers": [(b"content-length", str(size).encode())]}
    inside, refused = list[int](), list[int]()

    async def inner(scope: Any, receive: Any, send: Any) -> None:
        inside.append(len(inside))
        await bounds(scope, receive, send)  # one more comes while this one is on its way

    async def send(message: Any) -> None:
        refused.extend([message["status"]] if "status" in message else [])

    bounds = Bounds(inner, sessions=app[1], upload=size)
    for times in (1, 2):
        on_a_loop(bounds(scope, None, send))
        assert len(inside) == 4 * times and refused == [503] * times


def test_who_waits_for_photos_to_be_read_does_not_stop_the_page(app: tuple[str, Sessions], monkeypatch: pytest.MonkeyPatch) -> None:
    from mmrl.app.page import Page

    threads = list[str]()

    def waits(session: Session, *choice: Choice) -> None:
        threads.append(threading.current_thread().name)
        raise UsageError("no photos yet")

    monkeypatch.setattr(Session, "train", waits)
    monkeypatch.setattr(Session, "export", waits)
    page, request = Page(app[1]), SimpleNamespace(session_hash="waits")
    for run in (page._run(request, "gda", "tiny", None, 25.0, 1.0), page._run_export(request)):  # type: ignore[arg-type]
        assert "no photos yet" in str(on_a_loop(anext(run)))
    assert len(threads) == 2 and not any(name.startswith("loop") for name in threads)


def on_a_loop(awaited: Awaitable[Any]) -> Any:
    """What comes of it on an event loop in a thread called loop: the browser has one in the main thread."""

    async def waited() -> Any:
        return await awaited

    with ThreadPoolExecutor(1, thread_name_prefix="loop") as thread:
        return thread.submit(asyncio.run, waited()).result()


def test_a_port_that_is_taken_is_said(app: tuple[str, Sessions], tmp_path: Path) -> None:
    from mmrl.app.serve import PageSettings, running

    port = int(app[0].rstrip("/").rpartition(":")[2])
    with pytest.raises(UsageError, match=f"port {port} of 127.0.0.1 cannot be had"), running(PageSettings(port=port, parent=tmp_path)):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_missing_extra_is_one_message(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import sys

    from mmrl.app.serve import PageSettings, running

    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(UsageError, match=r'pip install "mmrl\[app\]"'), running(PageSettings(parent=tmp_path)):
        pass
    assert list(tmp_path.iterdir()) == [] and importlib.util.find_spec("mmrl.app")
