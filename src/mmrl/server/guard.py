"""Around every request: the token, the door, the time and size of its body, its line in the log. Nothing of an error's inside goes out."""

from __future__ import annotations

import asyncio
import logging
import re
import time
import uuid
from typing import Any

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mmrl.server.gate import Ticket
from mmrl.server.logs import say
from mmrl.server.refusals import Refused, refusal
from mmrl.server.security import OPEN, bears
from mmrl.server.service import Service

TICKET = "mmrl.ticket"
GONE = 499  # as nginx has it: the client closed the connection before it had its answer
_GIVEN_ID = re.compile(rb"[\w.-]{1,64}", re.ASCII)


class Guarding:
    """ASGI middleware.

    Args:
        token: that a request must bear; None where it need not.
    """

    def __init__(self, app: ASGIApp, service: Service, token: bytes | None) -> None:
        self._app, self._service, self._token = app, service, token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await _Request(self._app, self._service, self._token, scope, receive, send).run()
        elif scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})


class _Request:
    """One request on its way through."""

    def __init__(self, app: ASGIApp, service: Service, token: bytes | None, scope: Scope, receive: Receive, send: Send) -> None:
        self._app, self._service, self._token = app, service, token
        self._scope, self._receive, self._send = scope, receive, send
        self._headers: dict[bytes, bytes] = dict(scope["headers"])
        given = self._headers.get(b"x-request-id", b"")
        self._id = given if _GIVEN_ID.fullmatch(given) else uuid.uuid4().hex.encode()
        self._ticket: Ticket = Ticket()
        self._status = 0
        self._until = time.monotonic() + service.limits.body_seconds
        self._read = 0
        self._whole = False  # whether the body was read to its end
        scope[TICKET] = self._ticket

    async def run(self) -> None:
        began = time.perf_counter()
        try:
            self._let_in()
            await self._app(self._scope, self._body, self._answer)
        except Refused as error:  # at the door: the app answers its own
            await self._refuse(error)
        except ClientDisconnect:
            self._status = GONE
        except asyncio.CancelledError:
            self._status = self._status or GONE
            raise
        except Exception:
            say(logging.ERROR, "a request failed", trace=True, request=self._id.decode())
            if not self._status:
                await self._refuse(Refused(500, f"this failed on the server; its log tells more of request {self._id.decode()}."))
        finally:
            self._service.gate.leave(self._ticket)
            self._note(time.perf_counter() - began)

    def _let_in(self) -> None:
        if self._token is not None and self._scope["path"] not in OPEN and not bears(self._headers.get(b"authorization"), self._token):
            said = "this needs the header 'Authorization: Bearer TOKEN' with the server's token."
            raise Refused(401, said, {"WWW-Authenticate": "Bearer"})
        if self._scope["method"] != "POST":
            return
        length = self._headers.get(b"content-length", b"")
        if length.isdigit() and int(length) > self._service.limits.body:
            raise self._too_large()
        self._service.gate.take(self._ticket, 1)

    def _too_large(self) -> Refused:
        return Refused(413, f"the body is larger than {self._service.limits.body:,} bytes.")

    async def _body(self) -> Message:
        """The next part of the body, in time and within the size."""
        if self._whole:
            return await self._receive()  # what comes now is that the client has gone
        try:
            message = await asyncio.wait_for(self._receive(), max(0.0, self._until - time.monotonic()))
        except asyncio.TimeoutError as error:
            raise Refused(408, f"the body did not arrive within {self._service.limits.body_seconds:g} s.") from error
        if message["type"] == "http.request":
            count = len(message.get("body", b""))
            self._read += count
            if self._read > self._service.limits.body:
                raise self._too_large()
            self._service.gate.hold(self._ticket, count)
            self._whole = not message.get("more_body", False)
        return message

    async def _refuse(self, error: Refused) -> None:
        self._ticket.why = str(error)
        await refusal(error.status, error, error.headers)(self._scope, self._receive, self._answer)

    async def _answer(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._status = message["status"]
            own: list[tuple[bytes, bytes]] = [(b"x-request-id", self._id), (b"x-content-type-options", b"nosniff")]
            own.append((b"cache-control", b"no-store"))
            unread = self._scope["method"] == "POST" and not self._whole and self._status >= 400
            if self._service.gate.draining or unread:  # a body that is not read would stand in the way of the next request
                own.append((b"connection", b"close"))
            message = {**message, "headers": [*message.get("headers", []), *own]}
        await self._send(message)

    def _note(self, seconds: float) -> None:
        route = getattr(self._scope.get("route"), "path", "other")
        metrics, ticket, status = self._service.metrics, self._ticket, str(self._status)
        metrics.requests.labels(route, ticket.adapter, status).inc()
        metrics.seconds.labels(route).observe(seconds)
        if self._status >= 400:
            metrics.errors.labels(status).inc()
        if self._service.settings.quiet and self._status < 400:
            return
        fields: dict[str, Any] = {"request": self._id.decode(), "method": self._scope["method"], "route": route, "status": self._status}
        fields |= {"adapter": ticket.adapter, "images": ticket.images, "bytes": self._read, "ms": round(1000 * seconds, 1)}
        client = self._scope.get("client")
        fields |= {"client": client[0] if client else "", **({"why": ticket.why} if ticket.why else {})}
        say(logging.INFO, "request", **fields)
