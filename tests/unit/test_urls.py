"""Images from the web: only where asked for, only within limits, and never from addresses that only this machine can reach."""

from __future__ import annotations

import io
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from PIL import Image

import mmrl
from mmrl.classifier import web
from mmrl.classifier.web import Urls, fetched
from mmrl.clip import Clip
from mmrl.data import BrokenImageWarning
from mmrl.errors import UsageError

HERE = Urls(private=True)


def picture() -> bytes:
    content = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 50, 3), dtype=np.uint8)).save(content, "PNG")
    return content.getvalue()


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[str] = []
        self.ended = threading.Event()


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *words: object) -> None:
        pass

    def do_GET(self) -> None:
        server = self.server
        assert isinstance(server, Server)
        server.asked.append(self.path)
        if self.path.startswith("/to/"):
            self.send_response(302)
            self.send_header("Location", self.path.removeprefix("/to/"))
            self.end_headers()
            return
        if self.path == "/gone.png":
            self.send_error(404)
            return
        self.send_response(200)
        content = picture()
        if self.path in ("/picture.png", "/cut.png"):
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.path == "/drip.png":
            while not server.ended.wait(0.05):
                try:
                    self.wfile.write(b"x")
                except OSError:
                    return
            return
        self.wfile.write(content[:100] if self.path == "/cut.png" else content)


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield server
        server.ended.set()
        server.shutdown()
        thread.join()


@pytest.fixture
def at(server: Server) -> str:
    return f"http://127.0.0.1:{server.server_port}"


def test_urls_are_fetched_only_where_asked_for(small_clip: Clip, at: str, server: Server) -> None:
    classifier = mmrl.zero_shot(small_clip)
    url, names = f"{at}/picture.png", ["cat", "dog"]
    with pytest.raises(UsageError, match=r"picture.png' is a URL, and fetching is off: pass allow_urls=True"):
        classifier.predict(url, names)
    with pytest.raises(UsageError, match="'127.0.0.1' is not known, or is at an address of this machine or of a private network"):
        classifier.predict(url, names, allow_urls=True)
    assert not server.asked
    found = classifier.predict_proba([url, picture()], names, allow_urls=HERE)
    assert np.array_equal(found[0], found[1]) and server.asked == ["/picture.png"]
    assert classifier.predict(url, names, allow_urls=HERE) in names
    with pytest.warns(BrokenImageWarning, match="the server answered 404 Not Found"):
        ranked = classifier.rank([f"{at}/gone.png", picture(), "ftp://x/y.png"], names, allow_urls=HERE, skip_broken=True)
    assert [len(each) for each in ranked] == [0, 2, 0]


def test_limits(at: str, server: Server) -> None:
    size = len(picture())
    assert fetched(f"{at}/picture.png", HERE) == fetched(f"{at}/unsized.png", Urls(most_bytes=size, private=True)) == picture()
    for name in ("picture.png", "unsized.png"):  # with and without a size told before
        with pytest.raises(UsageError, match=rf"{name} is larger than {size - 1:,} bytes; allow more with"):
            fetched(f"{at}/{name}", Urls(most_bytes=size - 1, private=True))
    with pytest.raises(UsageError, match=r"drip.png cannot be fetched: it took more than 0.3 s\."):
        fetched(f"{at}/drip.png", Urls(seconds=0.3, private=True))
    with pytest.raises(UsageError, match=rf"cut.png cannot be fetched: it ended after 100 of {size:,} bytes"):
        fetched(f"{at}/cut.png", HERE)
    with pytest.raises(UsageError, match="cannot be fetched: .*refused"):
        fetched("http://127.0.0.1:1/x.png", HERE)


def test_redirects(at: str, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    assert fetched(f"{at}/to//to//picture.png", HERE) == picture()
    with pytest.raises(UsageError, match="infinite loop|too many|cannot be fetched"):
        fetched(f"{at}/to//to//to//to//to//picture.png", HERE)
    for target in ("file:///etc/passwd", "ftp://127.0.0.1/x", "data:image/png,x", "//"):
        with pytest.raises(UsageError, match="cannot be fetched"):
            fetched(f"{at}/to/{target}", HERE)
    check = web._require_public
    monkeypatch.setattr(web, "_require_public", lambda address, host: None if address == "127.0.0.1" else check(address, host))
    assert fetched(f"{at}/to//picture.png", Urls()) == picture()
    with pytest.raises(UsageError, match="'169.254.169.254' is not known, or is at an address of this machine or of a private network"):
        fetched(f"{at}/to/http://169.254.169.254/latest", Urls())


def test_a_name_that_leads_elsewhere_later_is_noticed(at: str, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web, "_require_allowed", lambda url, limits: None)
    with pytest.raises(UsageError, match="an address of this machine"):
        fetched(f"{at}/picture.png", Urls())
    assert not server.asked


@pytest.mark.parametrize(
    "url",
    ["http://10.0.0.1/x", "http://192.168.1.1/x", "http://[::1]/x", "http://[::ffff:127.0.0.1]/x", "http://0.0.0.0/x", "https://2130706433/x",
     "http://[fe80::1]/x", "http://100.64.0.1/x", "http://224.0.0.1/x", "http://[2002:7f00:1::]/x"],
)  # fmt: skip
def test_private_addresses_are_refused(url: str) -> None:
    with pytest.raises(UsageError, match="an address of this machine or of a private network, which is not asked"):
        fetched(url, Urls())


def test_names_inside_are_not_told_from_unknown_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: object, **__: object) -> None:
        raise OSError("Name or service not known")

    said = set[str]()
    for resolve in (unknown, lambda *_, **__: [(2, 1, 6, "", ("10.1.2.3", 80))]):
        monkeypatch.setattr(web.socket, "getaddrinfo", resolve)
        with pytest.raises(UsageError) as error:
            fetched("http://db.internal/x.png", Urls())
        said.add(str(error.value))
    assert len(said) == 1


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://example.org/a.png", "http://", "http://a:b/x", "gopher://x/"])
def test_what_is_no_web_address_is_refused(url: str) -> None:
    with pytest.raises(UsageError, match="cannot be fetched: a URL begins with http|is not a valid URL"):
        fetched(url, HERE)
