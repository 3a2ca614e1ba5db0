"""Running the page: on this computer alone unless told otherwise, with nothing sent or fetched elsewhere."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from mmrl.app.session import Backbones
from mmrl.app.sessions import Sessions
from mmrl.app.uploads import UploadLimits
from mmrl.errors import UsageError

HOST = "127.0.0.1"
FIRST_PORT, LAST_PORT = 7860, 7879  # tried in turn where none is named
EXTRA = 'the page needs Gradio: pip install "mmrl[app]"'
WAITING = 64  # clicks that wait to be worked on
OTHER_BYTES = 2**22  # of a request that uploads nothing: names and numbers
SLACK = 2**20  # bytes around the files of an upload
ENVIRONMENT = {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_DISABLE_TELEMETRY": "1", "DO_NOT_TRACK": "1"}


@dataclass(frozen=True)
class PageSettings:
    """Where the page is, and what is offered on it.

    Attributes:
        port: None for the first that is free from 7860.
        open: whether a browser is opened.
        parent: where the folder of the photos is made; default: the system's folder for temporary files.
    """

    host: str = HOST
    port: int | None = None
    backbones: Backbones = field(default_factory=Backbones)
    limits: UploadLimits = field(default_factory=UploadLimits)
    open: bool = False
    parent: Path | None = None


@contextmanager
def running(settings: PageSettings) -> Iterator[tuple[str, Sessions]]:
    """The page's address while it runs, and its visitors; all photos are gone in the end.

    Raises:
        UsageError: the extra `app` is not installed, or the address cannot be had.
    """
    sessions = Sessions(settings.backbones, settings.limits, parent=settings.parent)
    before = os.environ.get("GRADIO_TEMP_DIR")
    os.environ.update(ENVIRONMENT, GRADIO_TEMP_DIR=str(sessions.root))  # read when Gradio is imported
    try:
        _require_gradio()
        from mmrl.app.page import Page

        blocks = Page(sessions).blocks
        try:
            yield _launched(blocks, settings, sessions), sessions
        finally:
            blocks.close(verbose=False)
    finally:
        sessions.close()
        os.environ.pop("GRADIO_TEMP_DIR") if before is None else os.environ.update(GRADIO_TEMP_DIR=before)


def _require_gradio() -> None:
    try:
        import gradio
    except ImportError as error:
        raise UsageError(f"{EXTRA} ({error}).") from error
    if int(gradio.__version__.partition(".")[0]) < 6:
        raise UsageError(f"{EXTRA} (6 or later; this is {gradio.__version__}).")


def _launched(blocks: Any, settings: PageSettings, sessions: Sessions) -> str:
    import gradio as gr
    from starlette.middleware import Middleware

    from mmrl.app.views import CSS

    blocks.queue(max_size=WAITING, default_concurrency_limit=1)
    own = gr.themes.Soft(
        primary_hue="blue", font=["ui-sans-serif", "system-ui", "sans-serif"], font_mono=["ui-monospace", "Consolas", "monospace"]
    )
    limit = settings.limits.upload_bytes
    for port in [settings.port] if settings.port is not None else range(FIRST_PORT, LAST_PORT + 1):
        try:
            app, url, _ = blocks.launch(
                server_name=settings.host, server_port=port, prevent_thread_lock=True, quiet=True, share=False, inbrowser=settings.open,
                show_error=False, max_file_size=limit, footer_links=[], run_history=False, enable_monitoring=False, ssr_mode=False,
                pwa=False, mcp_server=False, theme=own, css=CSS, root_path="",
                app_kwargs={"middleware": [Middleware(Bounds, sessions=sessions, upload=limit)], "docs_url": None, "redoc_url": None},
            )  # fmt: skip
        except OSError:
            continue
        sessions.ended = partial(_forget, app)  # what was shown last goes, too
        return str(url)
    where = f"port {settings.port}" if settings.port is not None else f"none of the ports {FIRST_PORT} to {LAST_PORT}"
    problem = f"{where} of {settings.host} cannot be had" if settings.port is not None else f"{where} of {settings.host} is free"
    raise UsageError(f"{problem}: another program has it, or this computer has no such address. Give another --port, or --host.")


class Bounds:
    """Refuses requests that say no length, are too large, or upload while there is no room."""

    def __init__(self, app: Any, *, sessions: Sessions, upload: int) -> None:
        self._app, self._sessions, self._upload = app, sessions, upload
        self._coming = 0  # bytes of uploads that were let in and are not there yet

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        sends = scope["type"] == "http" and scope["method"] in ("POST", "PUT", "PATCH")
        if sends and (refused := self._refused(scope)):
            from starlette.responses import PlainTextResponse

            status, why = refused
            await PlainTextResponse(why, status, headers={"connection": "close"})(scope, receive, send)
            return
        coming = _length(scope) or 0 if sends and _uploads(scope) else 0
        self._coming += coming
        try:
            await self._app(scope, receive, send)
        finally:
            self._coming -= coming

    def _refused(self, scope: Any) -> tuple[int, str] | None:
        length = _length(scope)
        if length is None:
            return 411, "The request does not say how long it is."
        if length > (self._upload + SLACK if _uploads(scope) else OTHER_BYTES):
            return 413, f"That is too large: at most {self._upload / 2**20:.0f} MB at once."
        if _uploads(scope) and not self._sessions.room(self._coming):
            return 503, "There is no room for more photos at the moment. Try again in ten minutes."
        return None


def _length(scope: Any) -> int | None:
    length = next((value for name, value in scope["headers"] if name == b"content-length"), b"")
    return int(length) if length.isdigit() else None


def _uploads(scope: Any) -> bool:
    return bool(scope["path"].rstrip("/").endswith("/upload"))


def _forget(app: Any, key: str) -> None:
    app.state_holder.session_data.pop(key, None)
