"""The Open Inference Protocol, version 2, as KServe and Triton speak it: `image`, of BYTES in base64, in; `label` and `score` out."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field

from mmrl.server import schemas
from mmrl.server.adapters import Served
from mmrl.server.guard import TICKET
from mmrl.server.reading import JSON, media_type, model_in
from mmrl.server.refusals import JsonAnswer, Refused
from mmrl.server.routes import PROBLEMS, some_of
from mmrl.server.service import Judgement, Question, Service
from mmrl.server.settings import PACKAGE
from mmrl.version import __version__

BYTES = "BYTES"
IMAGE, LABELS, TEMPLATE = "image", "candidate_labels", "hypothesis_template"
_BINARY = "inference-header-content-length"


class Tensor(BaseModel):
    """A tensor of texts, row by row."""

    model_config = ConfigDict(extra="forbid", strict=True)

    name: Literal["image", "candidate_labels", "hypothesis_template"]
    shape: list[Annotated[int, Field(ge=0, le=10**6)]] = Field(min_length=1, max_length=2, fail_fast=True)
    datatype: Literal["BYTES"]
    data: list[str] = Field(fail_fast=True)
    parameters: dict[str, Any] = Field(default_factory=dict)


class Wish(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    name: Literal["label", "score", "trained", "unknown"]
    parameters: dict[str, Any] = Field(default_factory=dict)


class InferParameters(schemas.Parameters):
    """Those of a question but the class names, the prompt and sets of classes, which have no fixed length."""

    candidate_labels: None = None  # type: ignore[assignment]
    hypothesis_template: None = None  # type: ignore[assignment]
    coverage: None = None
    details: Literal[False] = False  # type: ignore[assignment]


class Infer(BaseModel):
    """`image` (n), and optionally `candidate_labels` (C) and `hypothesis_template` (1 or more)."""

    model_config = ConfigDict(extra="forbid", strict=True)

    id: str | None = Field(default=None, max_length=200)
    inputs: list[Tensor] = Field(min_length=1, max_length=3)
    outputs: list[Wish] | None = Field(default=None, description="Default: label and score.")
    parameters: InferParameters = Field(default_factory=InferParameters)


class Output(BaseModel):
    name: str
    datatype: str
    shape: list[int]
    data: list[Any]


class Inferred(BaseModel):
    model_name: str
    model_version: str
    id: str | None = None
    outputs: list[Output]


class Live(BaseModel):
    live: bool


class Ready(BaseModel):
    ready: bool


class ModelReady(BaseModel):
    name: str
    ready: bool


class ServerAbout(BaseModel):
    name: str
    version: str
    extensions: list[str]


class TensorAbout(BaseModel):
    name: str
    datatype: str
    shape: list[int]


class ModelAbout(BaseModel):
    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorAbout]
    outputs: list[TensorAbout]


def make_router(service: Service) -> APIRouter:
    router = APIRouter(prefix="/v2")

    def ready() -> bool:
        return service.ready and not service.gate.draining

    @router.get("", summary="About the server", response_model=ServerAbout, responses=some_of(401))
    async def server() -> JsonAnswer:
        return JsonAnswer({"name": PACKAGE, "version": __version__, "extensions": []})

    @router.get("/health/live", summary="Whether the process answers", response_model=Live)
    async def health_live() -> JsonAnswer:
        return JsonAnswer({"live": True})

    @router.get("/health/ready", summary="Whether all adapters are loaded", response_model=Ready, responses={503: {"model": Ready}})
    async def health_ready() -> JsonAnswer:
        return JsonAnswer({"ready": ready()}, 200 if ready() else 503)

    @router.get("/models/{name}", summary="Inputs and outputs of an adapter", response_model=ModelAbout, responses=some_of(401, 404))
    async def metadata(name: str) -> JsonAnswer:
        return JsonAnswer(_metadata(service.adapters.get(name)))

    @router.get(
        "/models/{name}/ready", summary="Whether an adapter is loaded", response_model=ModelReady,
        responses={**some_of(401, 404), 503: {"model": ModelReady}},
    )  # fmt: skip
    async def model_ready(name: str) -> JsonAnswer:
        return JsonAnswer({"name": service.adapters.get(name).name, "ready": ready()}, 200 if ready() else 503)

    body = {"requestBody": {"required": True, "content": {JSON: {"schema": {"$ref": "#/components/schemas/Infer"}}}}}

    @router.post("/models/{name}/infer", summary="Classify", response_model=Inferred, responses=PROBLEMS, openapi_extra=body)
    async def infer(request: Request, name: str) -> JsonAnswer:
        if _BINARY in request.headers:
            raise Refused(415, "binary tensors are not served; send the images in base64, in JSON.")
        if media_type(request) != JSON:
            raise Refused(415, f"the content type must be {JSON}.")
        asked = model_in(Infer, await request.body(), service.limits)
        question, images = _question(asked)
        found = await service.answer(name, question, list[bytes | str](images), request.scope[TICKET])
        return JsonAnswer(_inferred(asked, question, found))

    return router


def _question(asked: Infer) -> tuple[Question, list[str]]:
    tensors: dict[str, Tensor] = {each.name: each for each in asked.inputs}
    if len(tensors) < len(asked.inputs):
        raise Refused(422, "two inputs have one name.")
    for each in asked.inputs:
        count = 1
        for side in each.shape:
            count *= side
        if count != len(each.data):
            raise Refused(422, f"the input '{each.name}' has {len(each.data)} elements, and its shape {each.shape} says {count}.")
    if IMAGE not in tensors:
        raise Refused(422, f"there is no input '{IMAGE}'.")
    labels, template = tensors.get(LABELS), tensors.get(TEMPLATE)
    own = schemas.Parameters.model_construct(
        **{
            **asked.parameters.model_dump(),
            LABELS: labels.data if labels else None,
            TEMPLATE: (template.data if len(template.data) > 1 else "".join(template.data)) if template else None,
        }
    )
    return own.question(), tensors[IMAGE].data


def _inferred(asked: Infer, question: Question, found: Judgement) -> dict[str, Any]:
    """Row by row: an image a row, likeliest class first."""
    rows = [each.ranked for each in found.judged]
    shape = [len(rows), len(rows[0])]
    made: dict[str, tuple[str, list[int], list[Any]]] = {
        "label": (BYTES, shape, [each.name for row in rows for each in row]),
        "score": ("FP32", shape, [each.probability for row in rows for each in row]),
        "trained": ("BOOL", shape, [each.trained for row in rows for each in row]),
    }
    if question.rejects:
        made["unknown"] = ("BOOL", [len(rows)], [each.unknown for each in found.judged])
    wanted = ["label", "score", *(["unknown"] if question.rejects else [])]
    if asked.outputs is not None:
        wanted = list(dict.fromkeys(each.name for each in asked.outputs))
        if missing := [name for name in wanted if name not in made]:
            raise Refused(422, f"the output '{missing[0]}' needs a rejection: parameters.reject, recall or threshold.")
    outputs = [{"name": name, "datatype": made[name][0], "shape": made[name][1], "data": made[name][2]} for name in wanted]
    about = {"model_name": found.served.name, "model_version": str(found.served.version), "outputs": outputs}
    return about if asked.id is None else {**about, "id": asked.id}


def _metadata(served: Served) -> dict[str, Any]:
    def tensor(name: str, kind: str, *shape: int) -> dict[str, Any]:
        return {"name": name, "datatype": kind, "shape": list(shape)}

    return {
        "name": served.name,
        "versions": [str(served.version)],
        "platform": "mmrl_clip",
        "inputs": [tensor(IMAGE, BYTES, -1), tensor(LABELS, BYTES, -1), tensor(TEMPLATE, BYTES, -1)],
        "outputs": [
            tensor("label", BYTES, -1, -1), tensor("score", "FP32", -1, -1), tensor("trained", "BOOL", -1, -1),
            tensor("unknown", "BOOL", -1),
        ],
    }
