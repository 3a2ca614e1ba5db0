"""A client of `mmrl serve`. Needs httpx, of the extra `serve`."""

from __future__ import annotations

import base64
import json
import os
import random
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from mmrl.errors import MmrlError, UsageError
from mmrl.version import __version__

if TYPE_CHECKING:
    import httpx
    from typing_extensions import Self

TOKEN = "MMRL_TOKEN"
LONGEST_PAUSE = 60.0  # seconds between two attempts, whatever a server asks for
_AGAIN = frozenset({429, 502, 503})  # not 504: what took too long once, would again
_FIRST_PAUSE = 0.25


class Client:
    """Asks a server. A request that a full server sends away, or that a server which ended did not answer, is sent again.

    Several threads may use one client. It is a context manager, which closes its connections.

    Args:
        url: of the server, as `mmrl serve` prints it.
        token: that the server wants; default: that of the environment variable MMRL_TOKEN, if it is set.
        timeout: seconds for an answer.
        retries: how often a request is sent again, at most.
        transport: of httpx, to reach a server in another way.

    Raises:
        UsageError: httpx is not installed, or the URL is none.
    """

    def __init__(
        self, url: str = "http://127.0.0.1:8000", *, token: str | None = None, timeout: float = 60.0, retries: int = 6,
        transport: httpx.BaseTransport | None = None,
    ) -> None:  # fmt: skip
        try:
            import httpx
        except ImportError as error:
            raise UsageError("mmrl.Client needs httpx, which is not installed: pip install \"mmrl[serve]\"") from error
        if not url.startswith(("http://", "https://")):
            raise UsageError(f"'{url}' is no URL of a server; it begins with http:// or https://, as 'http://127.0.0.1:8000'.")
        if retries < 0:
            raise UsageError(f"retries is {retries}; it must be at least 0.")
        token = os.environ.get(TOKEN) if token is None else token
        headers = {"User-Agent": f"mmrl/{__version__}", **({"Authorization": f"Bearer {token.strip()}"} if token else {})}
        if not headers.get("Authorization", "").isascii():
            raise UsageError("the token has letters that are not ASCII, which no header holds: give the one of the server.")
        self.url, self._retries = url.rstrip("/"), retries
        try:
            self._http = httpx.Client(base_url=self.url, headers=headers, timeout=timeout, transport=transport)
        except (ValueError, httpx.InvalidURL) as error:
            raise UsageError(f"{url!a} is no URL of a server: {error}. Give one as 'http://127.0.0.1:8000'.") from error
        self._lost = (httpx.ConnectError, httpx.ReadError, httpx.WriteError, httpx.RemoteProtocolError, httpx.CloseError)
        self._failed = httpx.HTTPError

    def classify(
        self,
        images: Any,
        classes: Sequence[str] | None = None,
        *,
        adapter: str | None = None,
        template: str | Sequence[str] | None = None,
        top: int | None = None,
        **parameters: Any,
    ) -> Any:
        """Classes of each image, likeliest first: `[{"label": ..., "score": ...}, ...]` for one image, a list of such for several.

        Args:
            images: a path, the bytes of an image file, an open file or a PIL image; or a list of these. They are sent, not their places.
            classes: names to choose from, trained or not; default: those that the adapter was trained on.
            adapter: its name on the server; default: the first.
            template: prompt with one {} for the name, or several.
            top: how many classes to name; default: all.
            parameters: others of `docs/serve.md`: reject, recall, threshold, score, coverage, calibrated, details. With a rejection, a
                coverage or details, the answer for an image is a dictionary with "labels", "unknown", "set" and more.

        Raises:
            UsageError: what was asked cannot be; the server's message says why.
            MmrlError: the server cannot be reached, is full for too long, or failed.
        """
        several = isinstance(images, (list, tuple))
        contents = [base64.b64encode(_content(each)).decode("ascii") for each in (images if several else [images])]
        given: dict[str, Any] = {"candidate_labels": _texts("classes", classes), "hypothesis_template": _texts("template", template)}
        asked = {name: value for name, value in {**given, "top_k": top, **parameters}.items() if value is not None}
        for name, value in {"adapter": adapter, **asked}.items():
            _require_json(name, value)
        where = "/" if adapter is None else f"/models/{quote(str(adapter), safe='')}"
        return self._json("POST", where, {"inputs": contents if several else contents[0], "parameters": asked})

    def models(self) -> list[dict[str, Any]]:
        """What is served: name, method, classes, prompt, whether it is calibrated. The first is the default. Raises as `classify`."""
        found = self._json("GET", "/models")
        models = found.get("models") if isinstance(found, dict) else None
        if not isinstance(models, list):
            raise MmrlError(f"{self.url} answered without a list of models: is it a server of mmrl?")
        return models

    def ready(self) -> bool:
        """Whether the server takes requests now."""
        try:
            return bool(self._http.get("/readyz").status_code == 200)
        except self._failed:
            return False

    def close(self) -> None:
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _json(self, method: str, path: str, content: Mapping[str, Any] | None = None) -> Any:
        answer = self._answered(method, path, content)
        if 300 <= answer.status_code < 400:
            goal = answer.headers.get("Location", "elsewhere")
            raise MmrlError(f"{self.url} answered {answer.status_code} and sends to {goal}: is it a server of mmrl?")
        try:
            found = answer.json()
        except ValueError as error:
            raise MmrlError(f"{self.url} answered {answer.status_code} and no JSON: is it a server of mmrl?") from error
        if answer.status_code < 400:
            return found
        said = found.get("error") if isinstance(found, dict) else None
        text = f"{self.url} answered {answer.status_code}: {said or answer.reason_phrase}"
        raise (MmrlError if answer.status_code >= 500 or answer.status_code in _AGAIN else UsageError)(text)

    def _answered(self, method: str, path: str, content: Mapping[str, Any] | None) -> httpx.Response:
        """The answer, of the last attempt where all failed."""
        for attempt in range(self._retries + 1):
            last = attempt == self._retries
            try:
                answer = self._http.request(method, path, json=content)
            except self._lost as error:  # it was not answered: asking again does no harm, as nothing is changed by it
                if last:
                    raise MmrlError(f"{self.url} cannot be reached: {error}. Is the server running?") from error
                time.sleep(_pause(attempt, None))
                continue
            except self._failed as error:
                raise MmrlError(f"{self.url} did not answer: {error or type(error).__name__}.") from error
            if last or answer.status_code not in _AGAIN:
                return answer
            time.sleep(_pause(attempt, answer.headers.get("Retry-After")))
        raise AssertionError("the last attempt returns or raises")


def _pause(attempt: int, asked: str | None) -> float:
    """Seconds: what the server asked for, or twice as long each time; a little more, so that not all come back together."""
    least = float(asked) if asked and asked.isdigit() else _FIRST_PAUSE * 2**attempt
    return min(LONGEST_PAUSE, least * random.uniform(1.0, 1.25))


def _texts(name: str, given: str | Sequence[str] | None) -> str | list[str] | None:
    try:
        return given if given is None or isinstance(given, str) else list(given)
    except TypeError as error:
        raise UsageError(f"{name} is {given!r}; give a text or a list of texts.") from error


def _require_json(name: str, value: Any) -> None:
    """Raises UsageError for what cannot be sent."""
    try:
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except (TypeError, ValueError) as error:
        raise UsageError(f"{name} is {value!a}, which JSON cannot hold: {error}. Give plain texts and finite numbers.") from error


def _content(image: Any) -> bytes:
    """The bytes of an image file."""
    if isinstance(image, (bytes, bytearray, memoryview)):
        return bytes(image)
    if isinstance(image, (str, os.PathLike)):
        try:
            return Path(image).expanduser().read_bytes()
        except (OSError, ValueError) as error:
            raise UsageError(f"the image {os.fspath(image)} cannot be read: {getattr(error, 'strerror', None) or error}.") from error
    if hasattr(image, "read"):
        found = image.read()
        if not isinstance(found, bytes):
            raise UsageError("the open file is read as text; open it with mode 'rb'.")
        return found
    if hasattr(image, "save") and hasattr(image, "mode"):  # of Pillow, which need not be here
        import io

        out = io.BytesIO()
        image.save(out, "PNG")
        return out.getvalue()
    raise UsageError(f"an image must be a path, bytes, an open file or a PIL image, not {type(image).__name__}.")
