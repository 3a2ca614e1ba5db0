"""Around every request: the token, the door, the time and size of its body, its line in the log. Nothing of an error's inside goes out."""

from __future__ import annotations

import asyncio
import itertools
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
_OWN = uuid.uuid4().hex[:12].encode()  # of this process: random bytes for each request would wait for other threads
_NUMBERS = itertools.count(1)
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
        self._id = given if _GIVEN_ID.fullmatch(given) else b"%s-%d" % (_OWN, next(_NUMBERS))
        self._ticket: Ticket = Ticket()
        self._status = 0
        self._task = asyncio.current_task()
        self._timer: asyncio.TimerHandle | None = None
        self._late = False
        self._read = 0
        self._whole = False  # whether the body was read to its end
        scope[TICKET] = self._ticket

    async def run(self) -> None:
        began = time.perf_counter()
        try:
            self._let_in()
            self._allow(self._service.limits.body_seconds)
            await self._app(self._scope, self._body, self._answer)
        except Refused as error:  # at the door: the app answers its own
            await self._refuse(error)
        except ClientDisconnect:
            self._status = GONE
        except asyncio.CancelledError:
            if not self._late or self._status:
                self._status = self._status or GONE
                raise
            await self._refuse(self._too_late())
        except Exception:
            say(logging.ERROR, "a request failed", trace=True, request=self._id.decode())
            if not self._status:
                await self._refuse(Refused(500, f"this failed on the server; its log tells more of request {self._id.decode()}."))
        finally:
            if self._timer is not None:
                self._timer.cancel()
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
        message = await self._receive()
        if message["type"] == "http.request":
            count = len(message.get("body", b""))
            self._read += count
            if self._read > self._service.limits.body:
                raise self._too_large()
            self._service.gate.hold(self._ticket, count)
            self._whole = not message.get("more_body", False)
            if self._whole:
                self._allow(self._service.limits.seconds)
        return message

    def _allow(self, seconds: float) -> None:
        """From now on; one timer for a request, which ends its task, costs less than a time-out for each part of the body."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_later(seconds, self._end)

    def _end(self) -> None:
        if self._task is not None and not self._status:
            self._late = True
            self._task.cancel()

    def _too_late(self) -> Refused:
        if not self._whole:
            return Refused(408, f"the body did not arrive within {self._service.limits.body_seconds:g} s.")
        return Refused(504, f"the answer took more than {self._service.limits.seconds:g} s. Ask again, with fewer images or classes.")

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
