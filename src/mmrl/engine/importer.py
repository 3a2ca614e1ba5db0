"""Checkpoints of the authors' code (Dassl's `model.pth.tar-N`) to adapters."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmrl.clip import Clip, load_clip
from mmrl.engine.adapter import CARD, TENSORS, AdapterConfig, load_tensors, read_config, save_adapter
from mmrl.engine.checkpoint import TAKEN
from mmrl.engine.untrusted import TensorFile
from mmrl.errors import Notice, UsageError, first_line, unknown
from mmrl.files import user_path
from mmrl.methods import Method, build, registered
from mmrl.methods.authors import from_authors, guess_method
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
    template: Template = DEFAULT_TEMPLATE,
    dataset: str | None = None,
    clip: Clip | str = BACKBONE,
    options: Mapping[str, Any] | None = None,
) -> tuple[Method, AdapterConfig]:
    """Write the adapter in the authors' checkpoint `path` into `out`. Nothing that the file contains is executed.

    The method, J, K, d_r and the ranks follow from the tensors. The file does not say alpha, lambda and beta: they are the
    published defaults unless `options` has them.

    Args:
        classes: names trained on, in the order of the labels; the file does not have them. One that stands again gets a number, as
            ImageNet's "crane" does (`mmrl.names`).
        dataset: name of the data set trained on, which the file does not have either.
        clip: the backbone, or its name.
        options: of the method.

    Raises:
        UsageError: `out` holds a run already; the file holds no method we know, or was made with another backbone; `options`
            contradict the tensors.
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
    cls = guess_method(tensors, {name: method for name, method in registered().items() if method.importable})
    state = _stacked(path, cls, tensors)
    model = load_clip(clip) if isinstance(clip, str) else clip
    model.require_staged(cls.name)
    chosen = _options(cls, cls.options_of(state, model, where=str(path)), options or {})
    _check_backbone(path, tensors, model)
    method = build(cls.name, model, chosen)
    load_tensors(method, state, where=str(path))
    method.eval()
    save_adapter(out, method, classes=names, template=template, dataset=dataset)
    return method, read_config(out)


def _stacked(path: Path, cls: type[Method], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our state dict of `cls` from the authors' tensors. Raises UsageError where its layers do not fit together."""
    try:
        return from_authors(cls, tensors)
    except RuntimeError as error:  # torch cannot stack layers of different shapes
        raise UsageError(f"the layers of {path}, no checkpoint of the authors' code, do not fit together: {first_line(error)}") from error


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
        if theirs_name in tensors and ours_name in own:
            a, b = tensors[theirs_name].float(), own[ours_name].float().cpu()
            if a.shape != b.shape or not torch.allclose(a, b, rtol=_HALF, atol=_HALF * float(b.abs().max())):
                raise UsageError(f"{path} was made with another backbone than '{clip.name}': '{theirs_name}' differs. Give its backbone.")
