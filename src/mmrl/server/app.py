"""The application: every address, and how errors are answered."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from pydantic.json_schema import models_json_schema
from starlette.exceptions import HTTPException
from starlette.responses import Response

from mmrl.server import kserve, metrics, routes, schemas
from mmrl.server.connection import GATE
from mmrl.server.guard import TICKET, Guarding
from mmrl.server.refusals import JsonAnswer, Refused, one_line, refusal
from mmrl.server.service import Service
from mmrl.server.settings import PACKAGE
from mmrl.version import __version__

ABOUT = "Classify images among trained and new class names. How to ask: docs/serve.md of mmrl."


def make_app(service: Service, token: bytes | None = None) -> FastAPI:
    """The ASGI application of a service, which it starts and closes.

    Args:
        token: that requests must bear.
    """

    @asynccontextmanager
    async def life(app: FastAPI) -> AsyncIterator[dict[str, Any]]:
        service.start()
        yield {GATE: service.gate}
        await service.close()

    # no page of documentation: it would load scripts from elsewhere
    app = FastAPI(
        title=PACKAGE, version=__version__, description=ABOUT, docs_url=None, redoc_url=None, lifespan=life, redirect_slashes=False
    )
    app.state.service = service
    app.include_router(routes.make_router(service))
    app.include_router(kserve.make_router(service))
    _add_health(app, service)
    _add_errors(app)
    app.add_middleware(Guarding, service=service, token=token)
    _document(app, secured=token is not None)
    return app


def _add_health(app: FastAPI, service: Service) -> None:
    @app.get("/healthz", summary="Whether the process answers", response_model=kserve.Live)
    async def healthz() -> JsonAnswer:
        return JsonAnswer({"live": True})

    @app.get("/readyz", summary="Whether it takes requests", response_model=kserve.Ready, responses={503: {"model": kserve.Ready}})
    async def readyz() -> JsonAnswer:
        ready = service.ready and not service.gate.draining
        return JsonAnswer({"ready": ready}, 200 if ready else 503)

    @app.get("/metrics", summary="Numbers for Prometheus", response_class=Response, responses=routes.some_of(401))
    def numbers() -> Response:
        return Response(service.metrics.text(), media_type=metrics.CONTENT_TYPE)


def _add_errors(app: FastAPI) -> None:
    def noted(request: Request, status: int, message: str, headers: Any = None) -> JsonAnswer:
        if TICKET in request.scope:
            request.scope[TICKET].why = one_line(message)
        return refusal(status, message, headers)

    @app.exception_handler(Refused)
    async def refused(request: Request, error: Refused) -> JsonAnswer:
        return noted(request, error.status, str(error), error.headers)

    @app.exception_handler(HTTPException)
    async def no_such_address(request: Request, error: HTTPException) -> JsonAnswer:
        said = {404: "there is no such address here; /openapi.json lists all.", 405: "this address does not take that method."}
        return noted(request, error.status_code, said.get(error.status_code, str(error.detail)), error.headers)

    @app.exception_handler(RequestValidationError)
    async def bad_request(request: Request, error: RequestValidationError) -> JsonAnswer:
        return noted(request, 422, "the address or its parameters cannot be read.")


def _document(app: FastAPI, *, secured: bool) -> None:
    """Put the bodies that are read by hand into the OpenAPI document, and the token."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            plain = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
            _, bodies = models_json_schema(
                [(schemas.Ask, "validation"), (kserve.Infer, "validation")], ref_template="#/components/schemas/{model}"
            )
            plain["components"].setdefault("schemas", {}).update(bodies["$defs"])
            if secured:
                plain["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
                plain["security"] = [{"token": []}]
            app.openapi_schema = plain
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]
