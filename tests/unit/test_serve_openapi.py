"""The OpenAPI document: what it says of every address holds for what Schemathesis makes up."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings

from tests.unit.serving import adapter, serving

schemathesis = pytest.importorskip("schemathesis")


def running(app: Any) -> Any:
    """An application that is started and ended by others."""

    async def asked(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "lifespan":
            return await app(scope, receive, send)
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await send({"type": "lifespan.shutdown.complete"})

    return asked


def test_what_it_says_holds(tmp_path: Path) -> None:
    from schemathesis.specs.openapi import checks

    holds = [
        schemathesis.checks.not_a_server_error, checks.status_code_conformance, checks.content_type_conformance,
        checks.response_schema_conformance,
    ]  # fmt: skip
    asked = set()
    with serving(("animals", str(adapter(tmp_path / "animals")))) as client:
        document = client.get("/openapi.json").json()
        assert document["openapi"].startswith("3.1")
        for found in schemathesis.openapi.from_asgi("/openapi.json", running(client.app)).get_all_operations():
            operation = found.ok()
            asked.add(operation.path)

            @settings(max_examples=6, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
            @given(case=operation.as_strategy())
            def holding(case: Any) -> None:
                case.call_and_validate(checks=holds)

            holding()
    assert asked == set(document["paths"]) and {"/", "/models/{name}", "/v2/models/{name}/infer", "/metrics"} <= asked
