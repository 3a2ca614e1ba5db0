"""uvicorn's connection, with what it leaves open: a time for the head of a request, and an end that loses nothing on its way."""

from __future__ import annotations

import asyncio
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
LINGER = 1.0  # seconds that an idle connection stays open when the server shuts down: a request may be on its way


class Connection(Protocol):
    """One connection of one client."""

    _head_timer: asyncio.TimerHandle | None = None
    _lingering = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
        super().connection_lost(exc)

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
        body = refusal(400, "this is no HTTP request.").body
        head = f"HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n"
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
