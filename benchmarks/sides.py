"""The two sides of the training benchmark: the package's fast path and the method written plainly, doing the same step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.common import TEMPLATE, class_names, make_clip
from mmrl import methods
from mmrl.clip import Clip
from mmrl.methods.representation import RepresentationMethod
from tests.oracle.pair import disturb, oracle_of


@dataclass(frozen=True)
class Work:
    """One training step to measure.

    Attributes:
        classes: how many; their names come from `class_names`.
        text_memory: GiB for the activations of the fast path's prompts; None for no limit.
    """

    backbone: str
    layers: int | None
    method: str
    classes: int
    batch: int
    template: str = TEMPLATE
    text_memory: float | None = None


class Step:
    """A method, or its plain form, with its optimiser; calling it takes one step: forward, backward, AdamW.

    `chunk`: prompts at a time, None for all at once.
    """

    def __init__(self, module: torch.nn.Module, loss: Callable[[], Tensor], chunk: int | None = None) -> None:
        self.module, self.loss, self.chunk = module, loss, chunk
        self.optimizer = torch.optim.AdamW(module.parameters(), lr=1e-3, weight_decay=5e-4)

    def backward(self) -> None:
        self.optimizer.zero_grad()
        self.loss().backward()

    def __call__(self) -> None:
        self.backward()
        self.optimizer.step()


def make_batch(work: Work, clip: Clip) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(work.batch, 3, clip.image_size, clip.image_size, generator=generator)
    return images, torch.randint(work.classes, (work.batch,), generator=generator)


def make_method(work: Work, clip: Clip) -> RepresentationMethod:
    """With noise on the initial values, so that no gradient is zero by construction (MMRL++ starts with B = 0)."""
    method = methods.build(work.method, clip, seed=0)
    if not isinstance(method, RepresentationMethod):
        raise SystemExit(f"--method {work.method}: the plain side knows mmrl and mmrlpp")
    disturb(method, 0.02)
    return method


def fast_step(work: Work, clip: Clip) -> Step:
    """As the package does it; the class list, with w_0 and the prompts' states that enter layer J, is made before the first step."""
    method = make_method(work, clip)
    classes = method.class_list(class_names(work.classes), work.template, memory_gib=work.text_memory)
    images, labels = make_batch(work, clip)
    return Step(method, lambda: method.loss(images, labels, classes).total, classes.chunk)


def plain_step(work: Work, clip: Clip, classes: int | None = None) -> Step:
    """As the authors do it: all classes at once, 77 positions, w_0 before the first step, f_0 in every step.

    `classes`: another number of them than the work has.
    """
    count = classes or work.classes
    method = make_method(work, clip)
    plain = oracle_of(method, method.class_list(class_names(count), work.template))
    images, labels = make_batch(work, clip)
    return Step(plain, lambda: plain(images, labels % count)["loss"])


SIDES = {"fast": fast_step, "plain": plain_step}


def longest_prompt(work: Work, clip: Clip) -> int:
    """Positions of the longest prompt, BOT and EOT included."""
    _, end = clip.tokenize([work.template.replace("{}", name) for name in class_names(work.classes)])
    return int(end.max()) + 1


def make(work: Work, side: str) -> Step:
    return SIDES[side](work, make_clip(work.backbone, work.layers))
