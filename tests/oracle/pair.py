"""The oracle beside a method of the package: same frozen weights, same parameters, tensors under the same names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from mmrl.clip import ClassList
from mmrl.methods.mmrl import MMRL, RepresentationMethod
from mmrl.methods.mmrlpp import MMRLPlusPlus
from tests.oracle.plain import Plain, Space

# The authors' code has neither of these spaces, so there are no names of theirs to go by.
FREE = {
    "visual_tokens": "representation_learner.visual_tokens",
    "text_tokens": "representation_learner.text_tokens",
    "projection": "image_encoder.proj_rep",
}
TEXT_TO_VISUAL = {
    "text_tokens": "representation_learner.text_tokens",
    "visual.weight": "representation_learner.text_to_visual.{i}.weight",
    "visual.bias": "representation_learner.text_to_visual.{i}.bias",
    "projection": "image_encoder.proj_rep",
}


def _space(method: RepresentationMethod) -> Space:
    return method.options.space if isinstance(method, MMRL) else "shared"


def oracle_names(method: RepresentationMethod) -> Mapping[str, str]:
    """The method's parameter names -> the oracle's; `{i}` stands for one tensor a layer."""
    return {"shared": type(method).authors_names, "free": FREE, "text-to-visual": TEXT_TO_VISUAL}[_space(method)]


def under_oracle_names(method: RepresentationMethod, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Parameters, or gradients, of `method` by name -> the same as the oracle names and splits them (stacked layers apart)."""
    names = oracle_names(method)

    def pairs() -> Iterator[tuple[str, Tensor]]:
        for ours, tensor in tensors.items():
            if "{i}" not in names[ours]:
                yield names[ours], tensor
            else:
                yield from ((names[ours].replace("{i}", str(i)), layer) for i, layer in enumerate(tensor.unbind(0)))

    return dict(pairs())


def oracle_of(method: RepresentationMethod, classes: ClassList) -> Plain:
    """The oracle of `method` for the prompts of `classes`, in the CLIP's dtype, with a copy of the method's parameters.

    Encodes the zero-shot prompts, as the authors' code does when it is set up.
    """
    o, clip = method.options, method.clip
    extra: dict[str, Any] = {}
    if isinstance(method, MMRLPlusPlus):
        extra = {name: getattr(o, name) for name in ("beta", "layer_rank", "projection_rank")}
    with torch.random.fork_rng(devices=[]):
        plain = Plain(
            clip.model,
            clip.tokenize(classes.fed.texts)[0],
            first_layer=method.j_visual,
            first_text_layer=method.j_text,
            rep_tokens=o.rep_tokens,
            rep_dim=o.rep_dim,
            alpha=o.alpha,
            lam=o.lam,
            regulariser=o.regulariser,
            visual=o.visual,
            textual=o.textual,
            space=_space(method),
            plus_plus=isinstance(method, MMRLPlusPlus),
            **extra,
        )
    plain.load_state_dict(under_oracle_names(method, method.state_dict()))  # strict: every tensor has its counterpart
    return plain


def gradients_of_both(method: RepresentationMethod, plain: Plain) -> dict[str, tuple[Tensor, Tensor]]:
    """Gradients of method and oracle after both ran backward, by the oracle's names; zeros where autograd left none."""
    ours = {name: _gradient(parameter) for name, parameter in method.named_parameters()}
    split = under_oracle_names(method, ours)
    return {name: (split[name], _gradient(parameter)) for name, parameter in plain.named_parameters()}


def _gradient(parameter: torch.nn.Parameter) -> Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad


def relative_error(found: Tensor, expected: Tensor, floor: float = 1e-30) -> float:
    """|found - expected| / |expected| in the Euclidean norm; an `expected` below `floor` counts as that large."""
    if found.shape != expected.shape:
        raise ValueError(f"shape {tuple(found.shape)}, expected {tuple(expected.shape)}")
    return float((found.detach() - expected.detach()).norm() / expected.detach().norm().clamp_min(floor))


def disturb(method: torch.nn.Module, size: float, seed: int = 0) -> None:
    """Add noise to every parameter: layers no longer start equal, nothing is zero, so that each gradient counts."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in method.parameters():
            parameter.add_((size * torch.randn(parameter.shape, generator=generator)).to(parameter))
