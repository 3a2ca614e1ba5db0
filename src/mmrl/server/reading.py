"""The body of a request, in each of the forms that it may have, as a question and images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, TypeVar

from pydantic import BaseModel, ValidationError
from python_multipart.multipart import parse_options_header
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request

from mmrl.server.refusals import Refused
from mmrl.server.schemas import Ask, Parameters, listed_names
from mmrl.server.service import Question
from mmrl.server.settings import Limits

M = TypeVar("M", bound=BaseModel)
JSON, FORM, BYTES = "application/json", "multipart/form-data", "application/octet-stream"
IMAGE_FIELDS = ("image", "images", "file", "inputs")
_LISTS = ("candidate_labels", "hypothesis_template")
_MOST_PROBLEMS = 3
_OTHER_FIELDS = 16
_FREE_COMMAS, _COMMAS_EACH = 10_000, 20
_CHARSETS = (b"utf-8", b"us-ascii", b"iso-8859-1")


def media_type(request: Request) -> str:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


class Asked(NamedTuple):
    """A question about images; `several` is whether they came as a list, whose answer is a list of answers."""

    question: Question
    images: list[bytes | str]
    several: bool


async def asked_in(request: Request, limits: Limits) -> Asked:
    """The question and the images of a request: JSON, a form with files, or the bytes of one image.

    Raises:
        Refused: it is none of these, or is not what it says.
    """
    kind = media_type(request)
    if kind == JSON:
        ask = model_in(Ask, await request.body(), limits)
        several = not isinstance(ask.inputs, str)
        return Asked(ask.parameters.question(), [*ask.inputs] if several else [str(ask.inputs)], several)
    if kind == FORM:
        images, fields = await _form_in(request, limits)
        return Asked(_parameters([*request.query_params.multi_items(), *fields], limits).question(), images, len(images) > 1)
    if kind.startswith("image/") or kind == BYTES:
        return Asked(_parameters(request.query_params.multi_items(), limits).question(), [await request.body()], several=False)
    said = f"the content type is {kind}" if kind else "there is no content type"
    raise Refused(415, f"{said}; send {JSON}, {FORM}, or an image as image/jpeg, image/png, ... or {BYTES}.")


def model_in(kind: type[M], content: bytes, limits: Limits) -> M:
    """Raises Refused: it is no JSON (400), not of this shape (422), or of far more elements than are served (413)."""
    _require_few(content.count(b","), limits)
    try:
        return kind.model_validate_json(content)
    except ValidationError as error:
        raise _problems(error) from error


def _require_few(commas: int, limits: Limits) -> None:
    """Elements cost time and memory before they can be counted; commas between them, and within them, do not."""
    if commas > _FREE_COMMAS + _COMMAS_EACH * (limits.prompts + limits.images):
        said = f"{limits.prompts:,} prompts and {limits.images:,} images are served"
        raise Refused(413, f"the request has {commas:,} commas, and so more elements than can be served: at most {said}.")


async def _form_in(request: Request, limits: Limits) -> tuple[list[bytes | str], list[tuple[str, str]]]:
    """The images of a form and its other fields."""
    _, options = parse_options_header(request.headers["content-type"])
    charset = options.get(b"charset", _CHARSETS[0]).lower()
    if charset not in _CHARSETS:  # of Python's codecs some fail and some take the square of a text's length
        raise Refused(415, f"the charset of the form is '{charset.decode('latin-1')}'; send {_CHARSETS[0].decode()}.")
    try:
        async with request.form(max_files=limits.images, max_fields=limits.prompts + _OTHER_FIELDS, max_part_size=limits.body) as form:
            return await _images_of(form), [(name, value) for name, value in form.multi_items() if isinstance(value, str)]
    except HTTPException as error:  # of starlette, which has 400 for all
        raise Refused(413 if error.detail.startswith("Too many") else 400, error.detail) from error


async def _images_of(form: FormData) -> list[bytes | str]:
    uploads = [value for name, value in form.multi_items() if isinstance(value, UploadFile) and name in IMAGE_FIELDS]
    others = [name for name, value in form.multi_items() if isinstance(value, UploadFile) and name not in IMAGE_FIELDS]
    if others or not uploads:
        wrong = f"the form has a file in the field '{others[0]}'" if others else "the form has no file"
        raise Refused(400, f"{wrong}; send each image as a file in the field 'image'.")
    return [await upload.read() for upload in uploads]


def _parameters(fields: Sequence[tuple[str, str]], limits: Limits) -> Parameters:
    """Of the fields of an address or a form, which are texts."""
    _require_few(sum(value.count(",") for _, value in fields), limits)
    given: dict[str, list[str]] = {}
    for name, value in fields:
        given.setdefault(name, []).append(value)
    plain: dict[str, Any] = {name: values[0] for name, values in given.items() if name not in _LISTS}
    if repeated := [name for name, values in given.items() if name not in _LISTS and len(values) > 1]:
        raise Refused(422, f"the parameter '{repeated[0]}' stands there more than once.")
    if "candidate_labels" in given:
        plain["candidate_labels"] = listed_names(given["candidate_labels"])
    if "hypothesis_template" in given:
        plain["hypothesis_template"] = given["hypothesis_template"]
    try:
        return Parameters.model_validate(plain, strict=False)
    except ValidationError as error:
        raise _problems(error) from error


def _problems(error: ValidationError) -> Refused:
    found = error.errors(include_url=False, include_context=False, include_input=False)
    if found[0]["type"] == "json_invalid":
        return Refused(400, f"the body is no JSON: {found[0]['msg'].removeprefix('Invalid JSON: ')}.")
    texts = [f"{'.'.join(map(str, each['loc'])) or 'the body'}: {each['msg']}" for each in found[:_MOST_PROBLEMS]]
    more = f" and {len(found) - _MOST_PROBLEMS} more" if len(found) > _MOST_PROBLEMS else ""
    return Refused(422, f"{'; '.join(texts)}{more}.")
