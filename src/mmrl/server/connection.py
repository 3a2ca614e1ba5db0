"""uvicorn's connection, with what it leaves open: a time and a size for the head of a request, a time for whoever reads an answer, and an
end that loses nothing on its way."""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from mmrl.server.refusals import refusal

if TYPE_CHECKING:
    from uvicorn.protocols.http.h11_impl import H11Protocol as Protocol

    from mmrl.server.gate import Gate
else:
    try:
        from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol as Protocol
    except ImportError:
        from uvicorn.protocols.http.h11_impl import H11Protocol as Protocol

GATE = "gate"
HEAD_SECONDS = 10.0
LONGEST_HEAD = 2**16  # bytes, beyond the piece that it begins in
WRITE_SECONDS = 30.0  # that a client which does not read may hold up an answer
LINGER = 1.0  # seconds that an idle connection stays open when the server shuts down: a request may be on its way


class Connection(Protocol):
    """One connection of one client."""

    _head_timer: asyncio.TimerHandle | None = None
    _write_timer: asyncio.TimerHandle | None = None
    _head: int | None = None  # bytes since anything of a body came; None without httptools, as h11 has a limit of its own
    _lingering = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        for timer in (self._head_timer, self._write_timer):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._head is not None:
            self._head += len(data)
        super().data_received(data)
        if self._head is not None and self._head > LONGEST_HEAD and not self.transport.is_closing():
            self._refuse(431, f"the head of the request is longer than {LONGEST_HEAD:,} bytes.")

    def on_message_begin(self) -> None:
        super().on_message_begin()  # type: ignore[misc]
        self._head = 0

    def on_headers_complete(self) -> None:
        super().on_headers_complete()  # type: ignore[misc]
        self._head = 0

    def on_body(self, body: bytes) -> None:
        super().on_body(body)  # type: ignore[misc]
        self._head = 0  # what comes behind the last of it has to be as short: trailers

    def pause_writing(self) -> None:
        super().pause_writing()
        self._write_timer = self.loop.call_later(WRITE_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._write_timer is not None:
            self._write_timer.cancel()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if not self.transport.is_closing():
            self._expect_head()

    def shutdown(self) -> None:
        """The server shuts down: what is on its way on this connection is answered, and then it is closed."""
        gate: Gate | None = self.app_state.get(GATE)
        if gate is not None:
            gate.draining = True
        if self._busy or self._lingering:
            super().shutdown()
        else:
            self._lingering = True
            self.loop.call_later(LINGER, self._end)

    def send_400_response(self, msg: str) -> None:
        self._refuse(400, "this is no HTTP request.")

    def _refuse(self, status: int, message: str) -> None:
        body = refusal(status, message).body
        first = f"HTTP/1.1 {status} {HTTPStatus(status).phrase}"
        head = f"{first}\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n"
        self.transport.write(head.encode() + bytes(body))
        self.transport.close()

    @property
    def _busy(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _expect_head(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
        self._head_timer = self.loop.call_later(HEAD_SECONDS, self._late)

    def _late(self) -> None:
        if not self._busy and not self.transport.is_closing():
            self.transport.close()

    def _end(self) -> None:
        if not self.transport.is_closing():
            super().shutdown()


def config_of(app: Any, **options: Any) -> Any:
    """uvicorn's configuration for an application, or for the name of a function that makes one."""
    from uvicorn import Config

    return Config(app, http=Connection, ws="none", log_config=None, access_log=False, server_header=False, lifespan="on", **options)
