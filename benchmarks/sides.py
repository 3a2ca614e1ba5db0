"""The two sides of the training benchmark: the package's fast path and the method written plainly, doing the same step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from benchmarks.common import TEMPLATE, class_names, make_clip
from mmrl import methods
from mmrl.clip import Clip
from mmrl.engine.precision import autocast
from mmrl.methods import Gradients, Method, Task
from tests.oracle.methods import plain_of
from tests.oracle.pair import disturb, oracle_of

SHOTS = 16  # training images of a class, for a method that holds them all
# The teacher is constant: both sides encode it before the first step, so that 60 prompts a class would cost minutes and show nothing.
OPTIONS: dict[str, dict[str, Any]] = {"promptsrc": {"teacher_templates": (TEMPLATE,)}}


class Form(Protocol):
    """A method written plainly, with a copy of its parameters under our names or under the authors'. One that does more than a backward
    pass of its loss has `gradients(images, labels)` too, by name."""

    parameters: dict[str, nn.Parameter]

    def loss(self, images: Tensor, labels: Tensor) -> Tensor: ...


class _Representation:
    """MMRL or MMRL++, whose plain form is a module."""

    def __init__(self, method: Any, names: Sequence[str], template: str) -> None:
        plain = oracle_of(method, method.class_list(names, template))
        self.parameters: dict[str, nn.Parameter] = dict(plain.named_parameters())
        self.loss: Callable[[Tensor, Tensor], Tensor] = lambda images, labels: plain(images, labels)["loss"]


METHODS = (  # that are trained by steps
    "mmrl",
    "mmrlpp",
    "coop",
    "cocoop",
    "maple",
    "promptsrc",
    "prograd",
    "provp",
    "metaprompt",
    "kgcoop",
    "tcp",
    "plot",
    "plotpp",
    "proda",
    "rpo",
    "mma",
    "clip-lora",
    "clip-adapter",
    "tip-adapter-f",
    "ape-t",
)


def _plain(method: str) -> Callable[[Any, Sequence[str], str], Form]:
    found: Callable[[Any, Sequence[str], str], Form] | None = _Representation if method.startswith("mmrl") else plain_of(method)
    assert found is not None, method
    return found


PLAIN = {method: _plain(method) for method in METHODS}


@dataclass(frozen=True)
class Work:
    """One training step to measure.

    Attributes:
        classes: how many; their names come from `class_names`.
        text_memory: GiB for the activations of the fast path's prompts; None for no limit.
        options: of the method, where they are not its own for the backbone.
        device, precision: where and in which arithmetic both sides compute.
    """

    backbone: str
    layers: int | None
    method: str
    classes: int
    batch: int
    template: str = TEMPLATE
    text_memory: float | None = None
    options: dict[str, Any] = field(default_factory=dict)
    device: str = "cpu"
    precision: str = "fp32"


class Step:
    """A method, or its plain form, with its optimiser; calling it takes one step: forward, backward, AdamW.

    Attributes:
        parameters: what is trained, by name.
        loss: forward pass.
        gradients: forward and backward pass, in the order of the parameters; None where the loss does not depend on one.
        chunk: prompts at a time, None for all at once.
        longest_prompt: positions of the longest prompt that is fed to the text tower, BOT and EOT included; None where none is.
    """

    def __init__(
        self,
        work: Work,
        parameters: Mapping[str, nn.Parameter],
        loss: Callable[[], Tensor],
        gradients: Callable[[], Gradients],
        *,
        chunk: int | None = None,
        longest_prompt: int | None = None,
    ) -> None:
        self.work, self.parameters, self.loss, self.gradients = work, dict(parameters), loss, gradients
        self.chunk, self.longest_prompt = chunk, longest_prompt
        self.optimizer = torch.optim.AdamW(self.parameters.values(), lr=1e-3, weight_decay=5e-4)

    def backward(self) -> None:
        self.optimizer.zero_grad()
        with autocast(self.work.precision, torch.device(self.work.device)):
            found = self.gradients()
        for parameter, gradient in zip(self.parameters.values(), found):
            parameter.grad = gradient

    def __call__(self) -> None:
        self.backward()
        self.optimizer.step()


def make_batch(work: Work, clip: Clip) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(work.batch, 3, clip.image_size, clip.image_size, generator=generator)
    return images.to(work.device), torch.randint(work.classes, (work.batch,), generator=generator).to(work.device)


def make_method(work: Work, clip: Clip, classes: int | None = None) -> Method:
    """With noise on the initial values, so that no gradient is zero by construction (MMRL++ starts with B = 0). Cached features are random.

    `classes`: another number of them than the work has.
    """
    if work.method not in PLAIN:
        raise SystemExit(f"--method {work.method}: the plain side knows {', '.join(PLAIN)}")
    names = class_names(classes or work.classes)

    def features(part: Literal["train", "val"], views: int = 0) -> tuple[Tensor, Tensor]:
        labels = torch.arange(len(names)).repeat_interleave(SHOTS)
        return torch.randn(views or 1, len(labels), clip.embed_dim, generator=torch.Generator().manual_seed(1)), labels

    task = Task(tuple(names), work.template, images=SHOTS * len(names), features=features)
    method = methods.build(work.method, clip, OPTIONS.get(work.method, {}) | work.options, seed=0, task=task).train()
    disturb(method, 0.02)
    return method.to(work.device)


def _differentiation(parameters: Mapping[str, nn.Parameter]) -> Callable[..., Gradients]:
    """As `torch.autograd.grad`, which torch's counter of FLOP does not allow where a module's input is a parameter."""

    def differentiate(total: Tensor, *, retain_graph: bool = False) -> Gradients:
        with torch.autocast(total.device.type, enabled=False):
            total.backward(retain_graph=retain_graph)
        found: Gradients = [parameter.grad for parameter in parameters.values()]
        for parameter in parameters.values():
            parameter.grad = None
        return found

    return differentiate


def fast_step(work: Work, clip: Clip) -> Step:
    """As the package does it; what is constant for the class list is made before the first step."""
    method = make_method(work, clip)
    classes = method.class_list(class_names(work.classes), work.template, memory_gib=work.text_memory)
    images, labels = make_batch(work, clip)
    with torch.no_grad():
        method.loss(images[:1], labels[:1], classes)  # what is only made when it is first asked for
    parameters = dict(method.named_parameters())
    differentiate = _differentiation(parameters)
    return Step(
        work,
        parameters,
        lambda: method.loss(images, labels, classes).total,
        lambda: method.gradients(images, labels, classes, differentiate)[1],
        chunk=classes.fed.chunk,
        longest_prompt=int(clip.tokenize(classes.fed.texts)[1].max()) + 1 if "L" in method.modality else None,
    )


def plain_step(work: Work, clip: Clip, classes: int | None = None) -> Step:
    """As the authors do it: all classes at once, 77 positions; zero-shot class features before the first step, image features in every one.

    `classes`: another number of them than the work has.
    """
    count = classes or work.classes
    form = PLAIN[work.method](make_method(work, clip, count), class_names(count), work.template)
    images, labels = make_batch(work, clip)
    labels = labels % count
    own: Callable[..., dict[str, Tensor]] | None = getattr(form, "gradients", None)
    differentiate = _differentiation(form.parameters)

    def gradients() -> Gradients:
        if own is None:
            return differentiate(form.loss(images, labels))
        found = own(images, labels)
        return [found[name] for name in form.parameters]

    return Step(work, form.parameters, lambda: form.loss(images, labels), gradients)


SIDES = {"fast": fast_step, "plain": plain_step}


def make(work: Work, side: str) -> Step:
    return SIDES[side](work, make_clip(work.backbone, work.layers))


def without_dropout(work: Work) -> dict[str, Any]:
    """Options that make a step the same whenever it is taken, {} if it is already: dropout draws anew each time, on each side."""
    fields = methods.get(work.method).Options.model_fields
    given = work.options.get("dropout", fields["dropout"].default) if "dropout" in fields else 0
    return {"dropout": 0.0} if given else {}


def gradients_of(step: Step, method: str) -> dict[str, Tensor]:
    """Gradients after a backward pass, under the authors' names, layers apart where ours are stacked; zeros where autograd left none."""
    names = methods.get(method).authors_names
    found: dict[str, Tensor] = {}
    for name, parameter in step.parameters.items():
        gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        theirs = names.get(name, name)
        layers = enumerate(gradient.unbind(0)) if "{i}" in theirs else [(0, gradient)]
        found |= {theirs.replace("{i}", str(i)): layer for i, layer in layers}
    return found


def longest_prompt(work: Work, clip: Clip) -> int:
    """Positions of the longest prompt of the work's template, BOT and EOT included."""
    _, end = clip.tokenize([work.template.replace("{}", name) for name in class_names(work.classes)])
    return int(end.max()) + 1
