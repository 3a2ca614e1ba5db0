"""An exported page in a browser: the npm files, a served folder, Chromium."""

from __future__ import annotations

import functools
import http.server
import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from mmrl.export import ort_web

QUIET = "--no-sandbox --disable-gpu --disable-background-networking --disable-component-update --disable-sync --no-first-run"
PATIENCE = 60_000.0  # ms
NPM = 90.0  # s


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *words: object) -> None: ...


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """The address of a folder, as `python -m http.server` serves it."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Quiet, directory=str(folder))) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
        thread.join()


def runtime_files() -> dict[str, bytes]:
    """The files of ONNX Runtime for browsers, from npm; the test is skipped where they cannot be had."""
    if shutil.which("npm") is None:
        pytest.skip("npm, which fetches onnxruntime-web, is not here")
    patience, ort_web.PATIENCE = ort_web.PATIENCE, NPM
    try:
        return ort_web.ort_files()
    except ort_web.MmrlError as error:
        pytest.skip(f"onnxruntime-web cannot be fetched: {error}")
    finally:
        ort_web.PATIENCE = patience


@contextmanager
def chromium() -> Iterator[Any]:
    """A browser; the test is skipped where there is none."""
    playwright = pytest.importorskip("playwright.sync_api")
    path = next((found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None)
    if path is None:
        pytest.skip("Chromium is not here")
    with playwright.sync_playwright() as tool:
        environment: dict[str, Any] = {**os.environ, "NO_PROXY": "*"}
        browser = tool.chromium.launch(executable_path=path, args=QUIET.split(), env=environment)
        yield browser
        browser.close()
