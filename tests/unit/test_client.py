"""`mmrl.Client`: what it sends, what it makes of answers, and when it asks again."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

import mmrl
from mmrl import client as module
from tests.unit.serving import photo, text


class Played:
    """A server that gives these answers, one after the other."""

    def __init__(self, *answers: Any) -> None:
        self.answers, self.asked = list(answers), list[httpx.Request]()

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.asked.append(request)
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer if isinstance(answer, httpx.Response) else httpx.Response(200, json=answer)


@pytest.fixture
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    found: list[float] = []
    monkeypatch.setattr(module.time, "sleep", found.append)
    return found


def client(played: Played, **options: Any) -> mmrl.Client:
    return mmrl.Client("http://there:1", transport=httpx.MockTransport(played), **options)


def test_what_is_sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MMRL_TOKEN", "a-long-secret\n")
    (tmp_path / "a.jpg").write_bytes(photo())
    picture = Image.open(io.BytesIO(photo()))
    played = Played([{"label": "a", "score": 1.0}], [[], [], [], []], {"models": [{"name": "x"}]}, {})
    with client(played) as asking:
        assert asking.classify(tmp_path / "a.jpg") == [{"label": "a", "score": 1.0}]
        several = [str(tmp_path / "a.jpg"), photo(), io.BytesIO(photo()), picture]
        asking.classify(several, ("a", "b"), adapter="x/../y", template=["a {}", "{}"], top=2, recall=0.9, coverage=None)
        assert asking.models() == [{"name": "x"}] and asking.ready()
    first, second = (json.loads(each.content) for each in played.asked[:2])
    assert first == {"inputs": text(photo()), "parameters": {}} and played.asked[0].url.path == "/"
    assert second["inputs"][:3] == [text(photo())] * 3 and second["inputs"][3].startswith("iVBOR")
    assert second["parameters"] == {"candidate_labels": ["a", "b"], "hypothesis_template": ["a {}", "{}"], "top_k": 2, "recall": 0.9}
    assert played.asked[1].url.raw_path == b"/models/x%2F..%2Fy"
    assert played.asked[0].headers["authorization"] == "Bearer a-long-secret"


def test_it_comes_back_when_it_is_told_to(slept: list[float]) -> None:
    full = httpx.Response(429, headers={"Retry-After": "3"}, json={"error": "full"})
    played = Played(full, httpx.ConnectError("no"), httpx.Response(503), httpx.RemoteProtocolError("gone"), {"models": []})
    assert client(played).models() == [] and len(played.asked) == 5
    assert 3 <= slept[0] <= 3.75 and len(slept) == 4 and slept[3] > slept[1]


def test_it_gives_up(slept: list[float]) -> None:
    with pytest.raises(mmrl.MmrlError, match="answered 429: full") as error:
        client(Played(*[httpx.Response(429, headers={"Retry-After": "9999"}, json={"error": "full"})] * 3), retries=2).models()
    assert not isinstance(error.value, mmrl.UsageError) and slept == [module.LONGEST_PAUSE] * 2
    with pytest.raises(mmrl.MmrlError, match="cannot be reached"):
        client(Played(httpx.ConnectError("refused")), retries=0).models()
    with pytest.raises(mmrl.MmrlError, match="did not answer"):
        client(Played(httpx.ReadTimeout("late")), retries=0).models()
    played = Played(httpx.Response(422, json={"error": "bad names"}))
    with pytest.raises(mmrl.UsageError, match="answered 422: bad names"):
        client(played).models()
    with pytest.raises(mmrl.MmrlError, match="no JSON"):
        client(Played(httpx.Response(200, text="<html>"))).models()
    for foreign in ([], {}, {"models": 3}):
        with pytest.raises(mmrl.MmrlError, match="without a list of models: is it a server of mmrl"):
            client(Played(foreign)).models()
    with pytest.raises(mmrl.MmrlError, match="answered 302 and sends to https://there/: is it a server of mmrl"):
        client(Played(httpx.Response(302, json=[], headers={"Location": "https://there/"}))).classify(photo())
    with pytest.raises(mmrl.MmrlError, match="answered 504: late"):
        client(Played(httpx.Response(504, json={"error": "late"}))).models()
    with pytest.raises(mmrl.MmrlError, match="answered 500: it failed"):
        client(Played(httpx.Response(500, json={"error": "it failed"}))).models()
    assert not client(Played(httpx.ConnectError("no"))).ready()


@pytest.mark.parametrize(
    ("image", "message"),
    [("/nowhere/a.jpg", "cannot be read"), (7, "not int"), (io.StringIO("text"), "mode 'rb'"), ("a\0b", "cannot be read")],
)
def test_what_is_no_image(image: Any, message: str) -> None:
    with pytest.raises(mmrl.UsageError, match=message):
        client(Played()).classify(image)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"threshold": float("nan")}, "threshold is nan, which JSON cannot hold"),
        ({"recall": np.float32(0.5)}, r"recall is .*0\.5\)?, which JSON cannot hold"),
        ({"classes": ["\ud800"]}, r"candidate_labels is \['\\ud800'\], which"),
        ({"adapter": "\ud800"}, r"adapter is '\\ud800', which"),
        ({"classes": 5}, "classes is 5; give a text or a list"),
        ({"template": 5}, "template is 5; give a text or a list"),
    ],
)
def test_what_cannot_be_sent(asked: dict[str, Any], message: str) -> None:
    with pytest.raises(mmrl.UsageError, match=message):
        client(Played()).classify(photo(), **asked)


def test_what_is_no_server() -> None:
    with pytest.raises(mmrl.UsageError, match="'http://here:port' is no URL of a server: .*port"):
        mmrl.Client("http://here:port")
    with pytest.raises(mmrl.UsageError, match="the token has letters that are not ASCII"):
        mmrl.Client(token="gehe\xedm")
    with pytest.raises(mmrl.UsageError, match="is no URL of a server"):
        mmrl.Client("localhost:8000")
    with pytest.raises(mmrl.UsageError, match="retries is -1"):
        mmrl.Client(retries=-1)
