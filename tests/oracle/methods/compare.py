"""A method beside its plain form, in float64, where nothing but a mistake can differ by 1e-9."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from mmrl import methods
from mmrl.clip import Clip, random_clip
from mmrl.methods import Method, Task
from tests.conftest import SMALL

TOLERANCE = 1e-9
NAMES = ("cat", "yellow Boeing 707-320 of_Saint bird", "zig zagged", "x")
TEMPLATE = "{} texture."


class PlainForm(Protocol):
    parameters: dict[str, nn.Parameter]

    def loss(self, images: Tensor, labels: Tensor) -> Tensor: ...

    def logits(self, images: Tensor) -> Tensor: ...


@cache
def small_clip_in_float64() -> Clip:
    """The small CLIP of the tests; biases and norms are no longer zeros and ones, so that leaving one out is seen."""
    clip = random_clip("ViT-B-32", **SMALL)
    clip.model.double()
    generator = torch.Generator().manual_seed(1)
    for parameter in clip.model.parameters():
        if parameter.ndim == 1:
            parameter += 0.2 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return clip


def disturbed(name: str, options: Mapping[str, Any], names: Sequence[str] = NAMES, template: str | tuple[str, ...] = TEMPLATE) -> Method:
    """The method in training mode, with noise in every parameter: nothing is zero, no layers are alike; each gradient counts."""
    method = methods.build(name, small_clip_in_float64(), options, seed=0, task=Task(tuple(names), template)).double().train()
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in method.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return method


def batch(classes: int = len(NAMES), images: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(images, 3, 32, 32, generator=generator, dtype=torch.float64), torch.randint(classes, (images,), generator=generator)


def same(what: str, found: Tensor | None, expected: Tensor | None) -> None:
    assert found is not None and expected is not None, f"{what}: missing on one side"
    assert found.dtype == torch.float64 and found.shape == expected.shape, what
    error = float((found.detach() - expected.detach()).norm() / expected.detach().norm())
    assert error <= TOLERANCE, f"{what}: relative error {error:.1e}"  # NaN, as of two zeros, fails too


def same_step(method: Method, plain: PlainForm, loss: Tensor, expected: Tensor) -> None:
    """The loss of a step and its gradients of all parameters."""
    same("loss", loss, expected)
    parameters = dict(method.named_parameters())
    assert parameters.keys() == plain.parameters.keys()
    found = torch.autograd.grad(loss, list(parameters.values()))
    wanted = torch.autograd.grad(expected, [plain.parameters[name] for name in parameters])
    for name, ours, theirs in zip(parameters, found, wanted):
        same(f"gradient of {name}", ours, theirs)


def same_logits(method: Method, plain: PlainForm, logits: Tensor, images: Tensor) -> None:
    with torch.no_grad():
        same("logits", logits, plain.logits(images))
