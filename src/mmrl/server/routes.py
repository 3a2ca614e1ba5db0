"""Classification in the shape of Hugging Face's zero-shot image classification, and what is served."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request

from mmrl.classifier.judging import Judged
from mmrl.server import schemas
from mmrl.server.adapters import Served
from mmrl.server.guard import TICKET
from mmrl.server.reading import BYTES, FORM, JSON, asked_in
from mmrl.server.refusals import JsonAnswer, plain_name
from mmrl.server.service import Judgement, Question, Service
from mmrl.templates import template_list

STATUSES = {
    400: "It cannot be read: no JSON, no image, bad base64.",
    401: "The token is missing or wrong.",
    404: "No such adapter.",
    408: "The body did not arrive in time.",
    413: "Too many bytes, pixels, images or class names.",
    415: "A content type or an image format that is not served.",
    422: "It can be read and not be meant: class names, prompts, parameters, a broken image.",
    429: "The queue is full; the header Retry-After says when to come back.",
    500: "A fault of the server; its log has more.",
    504: "It took too long.",
}
PROBLEMS: dict[int | str, dict[str, Any]] = {status: {"model": schemas.Problem, "description": said} for status, said in STATUSES.items()}
_FILE = {"type": "string", "format": "binary"}


def request_body() -> dict[str, Any]:
    """The bodies that a question may have, for the OpenAPI document."""
    fields = {name: {"description": each.description or ""} for name, each in schemas.Parameters.model_fields.items()}
    form = {"type": "object", "required": ["image"], "properties": {"image": {"type": "array", "items": _FILE}, **fields}}
    content = {
        JSON: {"schema": {"$ref": "#/components/schemas/Ask"}},
        FORM: {"schema": form},
        **{kind: {"schema": _FILE} for kind in ("image/jpeg", "image/png", "image/webp", BYTES)},
    }
    return {"requestBody": {"required": True, "content": content}}


def make_router(service: Service) -> APIRouter:
    router = APIRouter()
    asking: dict[str, Any] = {"response_model": schemas.Answers, "responses": PROBLEMS, "openapi_extra": request_body()}

    async def classify(request: Request, name: str | None) -> JsonAnswer:
        asked = await asked_in(request, service.limits)
        found = await service.answer(name, asked.question, asked.images, request.scope[TICKET])
        answers = [answer_of(each, found, asked.question) for each in found.judged]
        return JsonAnswer(answers if asked.several else answers[0])

    @router.post("/", summary="Classify with the first adapter", operation_id="classify_with_first", **asking)
    async def classify_first(request: Request) -> JsonAnswer:
        return await classify(request, None)

    @router.post("/models/{name}", summary="Classify with an adapter", operation_id="classify", **asking)
    async def classify_named(request: Request, name: str) -> JsonAnswer:
        return await classify(request, name)

    @router.get("/models", summary="What is served", response_model=schemas.Models, responses=some_of(401))
    async def models() -> JsonAnswer:
        return JsonAnswer({"models": [about(each) for each in service.adapters.all]})

    @router.get("/models/{name}", summary="About an adapter", response_model=schemas.About, responses=some_of(401, 404))
    async def model(name: str) -> JsonAnswer:
        return JsonAnswer(about(service.adapters.get(name)))

    return router


def some_of(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return {status: PROBLEMS[status] for status in statuses}


def about(served: Served) -> dict[str, Any]:
    """What an adapter is, without a place on this machine."""
    classifier = served.classifier
    method = classifier.method
    return {
        "name": served.name,
        "version": served.version,
        "method": method.name,
        "backbone": plain_name(method.clip.name),
        "classes": list(classifier.trained),
        "open_vocabulary": method.open_vocabulary(method.options),
        "template": list(template_list(classifier.template)) if not isinstance(classifier.template, str) else classifier.template,
        "calibrated": classifier.trust is not None,
    }


def answer_of(judged: Judged, found: Judgement, question: Question) -> Any:
    """A list of names and scores as Hugging Face has it; an object where more is asked."""
    if not (question.details or question.rejects or question.coverage is not None):
        return [{"label": each.name, "score": each.probability} for each in judged.ranked]
    return {
        "labels": [{"label": each.name, "score": each.probability, "trained": each.trained} for each in judged.ranked],
        "known_score": judged.score,
        "unknown": judged.unknown if question.rejects else None,
        "recall_known": found.recall_known,
        "set": list(judged.within) if question.coverage is not None else None,
    }
