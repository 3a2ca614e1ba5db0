"""Checkpoints of the authors' code (Dassl's `model.pth.tar-N`, or their own `torch.save`) to adapters."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmrl.clip import Clip, load_clip
from mmrl.engine.adapter import CARD, TENSORS, AdapterConfig, load_tensors, read_config, save_adapter
from mmrl.engine.checkpoint import TAKEN
from mmrl.engine.guess import guess_method, whole_names
from mmrl.engine.untrusted import TensorFile
from mmrl.errors import Notice, UsageError, first_line, unknown
from mmrl.files import user_path
from mmrl.methods import Method, Task, build, registered
from mmrl.methods.authors import AuthorsFile, Renamed
from mmrl.names import distinct_names
from mmrl.templates import DEFAULT_TEMPLATE, Template

BACKBONE = "ViT-B-16-quickgelu/openai"  # of all published runs
_FROZEN = {  # of the whole CLIP in the file, what tells backbones of one shape apart: theirs -> open_clip's
    "image_encoder.class_embedding": "visual.class_embedding",
    "image_encoder.ln_post.weight": "visual.ln_post.weight",
    "image_encoder.proj": "visual.proj",
    "text_encoder.ln_final.weight": "ln_final.weight",
    "text_encoder.text_projection": "text_projection",
}
_HALF = 2e-3  # relative error that rounding to half precision may make, and more


def import_authors(
    path: Path | str,
    out: Path | str,
    *,
    classes: Sequence[str],
    method: str | None = None,
    template: Template = DEFAULT_TEMPLATE,
    dataset: str | None = None,
    clip: Clip | str = BACKBONE,
    options: Mapping[str, Any] | None = None,
) -> tuple[Method, AdapterConfig]:
    """Write the adapter in the authors' checkpoint `path` into `out`. Nothing that the file contains is executed.

    Options that decide a size, such as the number of tokens, layers or ranks, follow from the tensors. What the file does not say, such
    as MMRL's alpha, is the published default unless `options` has it.

    Args:
        classes: names trained on, in the order of the labels; the file does not have them. One that stands again gets a number, as
            ImageNet's "crane" does (`mmrl.names`). Where the file has embedded prompts, the names must be those.
        method: whose checkpoint it is. Default: the one with such tensors; some, as CoOp and its successors, have the same.
        dataset: name of the data set trained on, which the file does not have either.
        clip: the backbone, or its name.
        options: of the method.

    Raises:
        UsageError: `out` holds a run already; the file holds no method we know, or one of several, or was made with another backbone
            or other classes; `options` contradict the tensors.
        MmrlError: the file is missing or damaged.

    Warns:
        Notice: names that stand twice were given a number.
    """
    path, out = user_path(path), user_path(out)
    taken = [name for name in TAKEN if (out / name).exists()]
    if taken and not set(taken) <= {TENSORS, CARD}:  # those alone are what a killed import leaves; a card alone is refused below
        raise UsageError(f"{out} holds another run already ({taken[0]}); choose another folder.")
    names = distinct_names(classes)
    again = [name for name, given in zip(names, classes) if name != given]
    if again:
        warnings.warn(f"{len(again)} names stand again, and are told apart by a number that is not spoken: {', '.join(again)}", Notice, 2)
    tensors = TensorFile(path)
    known = {name: one for name, one in registered().items() if one.saved_as is not None}
    if method is not None and method not in known:
        raise unknown("method with checkpoints that can be imported", method, known)

    @cache
    def model_of() -> Clip:  # not loaded for a file that is none of ours
        return load_clip(clip) if isinstance(clip, str) else clip

    def read_as(one: type[Method]) -> tuple[AuthorsFile, dict[str, Tensor], dict[str, Any]]:
        model_of().require_staged(one.name)
        file = AuthorsFile(str(path), Renamed(tensors, whole_names(one, tensors)), tensors.notes)
        return file, *_read(one, file, model_of())

    def fits(one: type[Method]) -> bool:
        try:
            read_as(one)
        except UsageError:
            return False
        return True

    cls = guess_method(tensors, known if method is None else {method: known[method]}, fits)
    (file, state, found), model = read_as(cls), model_of()
    chosen = _options(cls, found, options or {})
    _check_backbone(path, file.tensors, model)
    _check_count(file, state, len(names))
    made = build(cls.name, model, chosen, task=Task(tuple(names), template))
    load_tensors(made, state, where=str(path))
    _check_prompts(file, made, names, template)
    made.eval()
    save_adapter(out, made, classes=names, template=template, dataset=dataset)
    return made, read_config(out)


def _read(cls: type[Method], file: AuthorsFile, clip: Clip) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Our state dict and options of `cls` from the authors' tensors. Raises UsageError where its layers do not fit together."""
    try:
        return cls.from_checkpoint(file, clip)
    except RuntimeError as error:  # torch cannot stack layers of different shapes
        what = f"the layers of {file.where}, no checkpoint of the authors' code, do not fit together"
        raise UsageError(f"{what}: {first_line(error)}") from error


def _options(cls: type[Method], found: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Options that the sizes decide, joined with the `given` ones."""
    for key, value in given.items():
        if key not in cls.Options.model_fields:
            raise unknown(f"option of {cls.name}", key, cls.Options.model_fields)
        if key in found and value is not None and value != found[key]:
            raise UsageError(f"{key} is {value}, but the tensors of the checkpoint give {found[key]}; leave it out.")
    return {**given, **found}


def _check_backbone(path: Path, tensors: Mapping[str, Tensor], clip: Clip) -> None:
    """Raises UsageError if the checkpoint was made with another CLIP, as far as the frozen tensors in it tell."""
    own = clip.model.state_dict()
    for theirs_name, ours_name in _FROZEN.items():
        if theirs_name in tensors and ours_name in own and not _alike(tensors[theirs_name], own[ours_name]):
            raise UsageError(f"{path} was made with another backbone than '{clip.name}': '{theirs_name}' differs. Give its backbone.")


def _check_count(file: AuthorsFile, state: Mapping[str, Tensor], names: int) -> None:
    """Raises UsageError if the file's prompts, or its context of each class, are of another number of classes."""
    counts = [len(prompts) for prompts in (file.constant("token_prefix"), file.constant("tokenized_prompts")) if prompts is not None]
    counts += [len(ctx) for ctx in (state.get("ctx"),) if ctx is not None and ctx.dim() == 3]
    other = next((count for count in counts if count != names), None)
    if other is not None:
        raise UsageError(f"{file.where} was trained on {other} classes, and {names} names are given; give all, in the order of the labels.")


def _check_prompts(file: AuthorsFile, method: Method, names: Sequence[str], template: Template) -> None:
    """Raises UsageError if the file has embedded prompts, and they are not those of the classes, the options and the backbone."""
    clip, texts = method.clip, method.texts(names, template)
    whole = file.constant("token_embedding")  # (C, context, d), or in two parts, without the context
    begin, end = (file.constant(name) if whole is None else whole for name in ("token_prefix", "token_suffix"))
    if len(texts) != len(names) or begin is None or end is None:
        return
    ids, _ = clip.tokenize(texts)  # (C, context)
    if not _alike(begin[0, 0], clip.text.words(ids[0, 0])):
        raise UsageError(f"{file.where} was made with another backbone than '{clip.name}': its words differ. Give its backbone.")
    for i, prompt in enumerate(end):
        if not _alike(prompt, clip.text.words(ids[i, -len(prompt) :])):
            raise UsageError(
                f"the prompts in {file.where} are others: class {i + 1} of {len(names)} is '{names[i]}' here, and its prompt "
                f"'{texts[i]}'. Give the names in the order of the labels, and with --set what the prompts say around them "
                f"({', '.join(key for key in type(method.options).model_fields if key in ('ctx_init', 'template')) or 'no option does'})."
            )


def _alike(theirs: Tensor, ours: Tensor) -> bool:
    """Whether two tensors are equal up to rounding to half precision."""
    a, b = theirs.float(), ours.float().cpu()
    return a.shape == b.shape and torch.allclose(a, b, rtol=_HALF, atol=_HALF * float(b.abs().max()))
