"""What cannot be served is refused with one line of JSON, says nothing of the machine, and takes nothing from others."""

from __future__ import annotations

import asyncio
import io
import struct
import threading
import time
import zlib
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import httpx
import pytest
from PIL import Image

from mmrl.classifier.predictor import Classifier
from mmrl.errors import UsageError
from mmrl.server.images import Decoding
from mmrl.server.settings import Limits
from tests.unit.serving import adapter, photo, serving, text

SMALL = Limits(body=200_000, pixels=10_000, prompts=50, images=3, queue=4)
JSON = {"content-type": "application/json"}
FORM = "multipart/form-data; boundary=x"


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    folder = adapter(tmp_path_factory.mktemp("hidden-place") / "animals")
    with serving(("animals", str(folder)), limits=SMALL) as found:
        yield found


def bomb(side: int) -> bytes:
    """A PNG of a few hundred bytes that says it has side x side pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


def scanned(times: int) -> bytes:
    """A JPEG of 10,000 pixels whose scan stands there as many times."""
    out = io.BytesIO()
    Image.new("L", (100, 100)).save(out, "JPEG")
    content = out.getvalue()
    return content[:-2] + content[content.rindex(b"\xff\xda") : -2] * (times - 1) + content[-2:]


def cut(content: bytes) -> str:
    return text(content[: len(content) // 2])


def labels(*names: Any, **more: Any) -> dict[str, Any]:
    return {"inputs": text(photo()), "parameters": {"candidate_labels": list(names), **more}}


IMAGE = {"name": "image", "shape": [1], "datatype": "BYTES", "data": [text(photo())]}
REFUSED: list[tuple[int, str, dict[str, Any]]] = [
    (400, "no JSON", {"content": b"{", "headers": JSON}),
    (400, "no JSON", {"content": b"[" * 100_000, "headers": JSON}),
    (400, "no JSON", {"content": b'{"inputs": "\xff"}', "headers": JSON}),
    (400, "no JSON", {"content": b'{"inputs": "\\ud800"}', "headers": JSON}),
    (400, "no JSON", {"content": b"", "headers": JSON}),
    (422, "Field required", {"json": {}}),
    (422, "should be an object", {"json": [1, 2]}),
    (422, "Extra inputs", {"json": {**labels("a"), "path": "/etc/passwd"}}),
    (422, "top_k", {"json": labels("a", top_k=0)}),
    (422, "candidate_labels", {"json": labels("a", 7)}),
    (422, "candidate_labels", {"json": {"inputs": text(photo()), "parameters": {"candidate_labels": {"a": 1}}}}),
    (400, "not fetched from URLs", {"json": {"inputs": "http://127.0.0.1/secret.jpg"}}),
    (400, "not fetched from URLs", {"json": {"inputs": "file:///etc/passwd"}}),
    (400, "base64", {"json": {"inputs": "../../etc/passwd"}}),
    (422, "not an image", {"json": {"inputs": text(b"/etc/passwd")}}),
    (400, "the image is empty", {"json": {"inputs": ""}}),
    (400, "there is no image", {"json": {"inputs": []}}),
    (400, "the image is empty", {"content": b"", "headers": {"content-type": "image/png"}}),
    (415, "there is no content type", {"content": photo()}),
    (415, "text/html", {"content": photo(), "headers": {"content-type": "text/html"}}),
    (415, "format EPS", {"content": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "headers": {"content-type": "image/x-eps"}}),
    (422, "broken or truncated", {"json": {"inputs": cut(photo())}}),
    (422, "image 2 of 2: ", {"json": {"inputs": [text(photo()), cut(photo())]}}),
    (413, "pixels", {"json": {"inputs": text(bomb(20_000))}}),
    (413, "pixels", {"json": {"inputs": text(bomb(200))}}),
    (422, "too many scans", {"json": {"inputs": text(scanned(101))}}),
    (415, "written in digits", {"json": {"inputs": text(b"P3 1 1 255 1 2 3")}}),
    (413, "4 images", {"json": {"inputs": [text(photo())] * 4}}),
    (413, "Too many files", {"files": [("image", photo())] * 4}),
    (413, "10,000 class names", {"json": labels(*map(str, range(10_000)))}),
    (413, "30 class names with 2 prompt templates", {"json": labels(*map(str, range(30)), hypothesis_template=["{}", "a {}"])}),
    (422, "stands twice", {"json": labels("a", "b", "A")}),
    (422, "is blank", {"json": labels("a", " ")}),
    (422, "is empty", {"json": labels()}),
    (422, "tokens", {"json": labels("x " * 100)}),
    (422, "has 5,000 letters", {"json": labels("x" * 5000)}),
    (413, "12,001 commas", {"content": b'{"inputs": [1%s]}' % (b",1" * 12_001), "headers": JSON}),
    (413, "12,001 commas", {"files": {"image": photo()}, "data": {"candidate_labels": "," * 12_001}}),
    (422, "exactly one {}", {"json": labels("a", hypothesis_template="{} and {}")}),
    (422, "exactly one {}", {"json": labels("a", hypothesis_template="{0.__class__}")}),
    (422, "the prompt is empty", {"json": labels("a", hypothesis_template="")}),
    (422, "the prompt is empty", {"json": labels("a", hypothesis_template=[])}),
    (422, "exactly one {}", {"files": {"image": photo()}, "params": {"hypothesis_template": ""}}),
    (422, "not calibrated", {"json": labels("a", reject=True)}),
    (422, "also the answer", {"json": labels("unknown", "a", threshold=1.0)}),
    (422, "give one", {"json": labels("a", threshold=1.0, recall=0.9)}),
    (413, "larger than 200,000 bytes", {"content": bytes(300_000), "headers": {"content-type": "image/png"}}),
    (400, "no file", {"data": {"candidate_labels": "a"}, "files": {"x": (None, "y")}}),
    (400, "field 'secret'", {"files": {"secret": photo()}}),
    (400, "Missing boundary", {"content": b"x", "headers": {"content-type": "multipart/form-data"}}),
    *(
        (415, f"is '{name}'", {"content": b"x", "headers": {"content-type": f"{FORM}; charset={name}"}})
        for name in ("undefined", "punycode")
    ),
    (422, "more than once", {"files": {"image": photo()}, "params": {"top_k": ["1", "2"]}}),
    (400, "is not JSON", {"files": {"image": photo()}, "data": {"candidate_labels": "[1,"}}),
]


@pytest.mark.parametrize(("status", "message", "request_"), REFUSED, ids=[f"{each[0]}-{each[1]}-{at}" for at, each in enumerate(REFUSED)])
def test_refused_in_one_line(client: Any, status: int, message: str, request_: dict[str, Any]) -> None:
    answer = client.post("/models/animals", **request_)
    assert answer.status_code == status and answer.headers["content-type"] == "application/json", answer.text
    assert list(answer.json()) == ["error"] and message in answer.json()["error"]
    assert "\n" not in answer.text and "hidden-place" not in answer.text and "Traceback" not in answer.text and "--" not in answer.text
    assert client.app.state.service.gate.slots == client.app.state.service.gate.held == 0


def test_a_script_stays_text(client: Any) -> None:
    name = "</script><script>alert(1)</script>"
    for answer in (client.post("/", json=labels(name, "b")), client.post("/", json=labels(name, name))):
        assert answer.headers["content-type"] == "application/json" and "<" not in answer.text and "script" in answer.text


def test_spaces_within_a_name_are_one(client: Any) -> None:
    answer = client.post("/", json=labels(f"red{' ' * 1000}\n panda", "b"))
    assert {each["label"] for each in answer.json()} == {"red panda", "b"}


@pytest.mark.parametrize("name", ["..", "%2e%2e%2fetc", "animals/../x", "animals%00", "a" * 5000, "/etc/passwd", "animals\\x", "ANIMALS"])
def test_other_names_are_not_there(client: Any, name: str) -> None:
    for path in (f"/models/{name}", f"/v2/models/{name}/ready"):
        answer = client.get(path)
        assert answer.status_code in (307, 404, 405) and "etc" not in answer.text and "hidden" not in answer.text
    answer = client.post(f"/v2/models/{name}/infer", json={"inputs": [{"name": "image", "shape": [1], "datatype": "BYTES", "data": [""]}]})
    assert answer.status_code in (400, 404, 405)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"inputs": []}, "at least 1"),
        ({"inputs": [{"name": "image", "shape": [2], "datatype": "BYTES", "data": [""]}]}, "has 1 elements"),
        ({"inputs": [{"name": "image", "shape": [-1, -1], "datatype": "BYTES", "data": [""]}]}, "greater than or equal to 0"),
        ({"inputs": [{"name": "image", "shape": [10**4200, 10**4200], "datatype": "BYTES", "data": [""]}]}, "inputs.0.shape.0"),
        ({"inputs": [IMAGE, {"name": "hypothesis_template", "shape": [0], "datatype": "BYTES", "data": []}]}, "the prompt is empty"),
        ({"inputs": [{"name": "image", "shape": [1], "datatype": "FP32", "data": [1.0]}]}, "BYTES"),
        ({"inputs": [{"name": "image", "shape": [1], "datatype": "BYTES", "data": [""]}] * 2}, "one name"),
        ({"inputs": [{"name": "candidate_labels", "shape": [1], "datatype": "BYTES", "data": ["a"]}]}, "no input 'image'"),
        ({"parameters": {"coverage": 0.9}}, "coverage"),
        ({"outputs": [{"name": "unknown"}]}, "needs a rejection"),
    ],
)
def test_kserve_is_refused(client: Any, change: dict[str, Any], message: str) -> None:
    answer = client.post("/v2/models/animals/infer", json={"inputs": [IMAGE], **change})
    assert answer.status_code == 422 and message in answer.json()["error"]
    binary = client.post("/v2/models/animals/infer", content=b"{}", headers={**JSON, "inference-header-content-length": "2"})
    assert binary.status_code == 415


def test_a_fault_is_not_shown(client: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    def broken(*given: Any, **more: Any) -> Any:
        raise KeyError("/secret/place")

    monkeypatch.setattr(Classifier, "judged", broken)
    answer = client.post("/", json=labels("a", "b"), headers={"x-request-id": "mine-1"})
    assert answer.status_code == 500 and "secret" not in answer.text and "mine-1" in answer.json()["error"]
    assert answer.headers["x-request-id"] == "mine-1" and "/secret/place" in caplog.text
    monkeypatch.undo()
    assert client.post("/", json=labels("a", "b"), headers={"x-request-id": "<bad id>"}).status_code == 200


def test_the_token(tmp_path: Path) -> None:
    with serving(("zero-shot", "zero-shot"), token=b"a-long-secret") as client:
        for given in ("", "Bearer no", "Basic a-long-secret", "Bearer a-long-secretx", "Bearer"):
            header = {"authorization": given} if given else {}
            for answer in (client.get("/models", headers=header), client.post("/", json=labels("a", "b"), headers=header)):
                assert answer.status_code == 401 and answer.headers["www-authenticate"] == "Bearer" and "secret" not in answer.text
            assert client.get("/metrics", headers=header).status_code == client.get("/openapi.json", headers=header).status_code == 401
            assert client.get("/readyz", headers=header).status_code == client.get("/v2/health/live", headers=header).status_code == 200
        own = {"authorization": "Bearer a-long-secret"}
        assert client.post("/", json=labels("a", "b"), headers=own).status_code == client.get("/metrics", headers=own).status_code == 200
        assert client.get("/openapi.json", headers=own).json()["security"] == [{"token": []}]


def test_a_body_that_trickles_is_given_up(client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    async def ask() -> httpx.Response:
        async def trickle() -> AsyncIterator[bytes]:
            yield b"{"
            await asyncio.Event().wait()

        transport = httpx.ASGITransport(app=client.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://here") as asking:
            return await asking.post("/", content=trickle(), headers=JSON)

    service = client.app.state.service
    monkeypatch.setattr(service, "limits", replace(SMALL, body_seconds=0.05))
    answer = asyncio.run(ask())
    assert answer.status_code == 408 and answer.headers["connection"] == "close" and service.gate.slots == 0


def test_a_body_without_a_length_is_cut(client: Any) -> None:
    def endless() -> Iterator[bytes]:
        while True:
            yield bytes(10_000)

    answer = client.post("/", content=(each for _, each in zip(range(100), endless())), headers={"content-type": "image/png"})
    assert answer.status_code == 413


def test_urls_where_they_are_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    asked, go = [], threading.Event()

    def fetched(url: str, limits: Any) -> bytes:
        asked.append((url, limits.private, limits.most_bytes))
        go.wait()
        return photo()

    with serving(("zero-shot", "zero-shot"), allow_urls=True, decoders=1) as client, ThreadPoolExecutor(1) as pool:
        inside = client.post("/", json={"inputs": "http://127.0.0.1:1/a.jpg", "parameters": {"candidate_labels": ["a"]}})
        assert inside.status_code == 422 and "private network" in inside.json()["error"]
        monkeypatch.setattr("mmrl.server.images.fetched", fetched)
        slow = {"inputs": "https://photos.example/a.jpg", "parameters": {"candidate_labels": ["a"]}}
        answer = pool.submit(client.post, "/", json=slow)
        while not asked:
            time.sleep(0.005)
        try:
            assert client.post("/", json=labels("a")).status_code == 200  # the only decoder waits for no URL
        finally:
            go.set()
        assert answer.result().status_code == 200 and asked == [("https://photos.example/a.jpg", False, Limits.body)]


def test_more_pixels_than_pillow_opens() -> None:
    with pytest.raises(UsageError, match="Give --max-pixels 178 at most"):
        Decoding(cast(Any, None), Limits(pixels=10**9))


def test_a_gif_and_a_16_bit_png_are_images(client: Any) -> None:
    import numpy as np

    out = io.BytesIO()
    Image.fromarray(np.arange(64 * 64, dtype=np.uint16).reshape(64, 64)).save(out, "PNG")
    for content in (photo(kind="GIF"), out.getvalue()):
        assert client.post("/", content=content, headers={"content-type": "image/x"}).status_code == 200
