"""What the engine and a method hand to each other: the task, losses and gradients, passes over images, steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

from torch import Tensor

from mmrl.templates import Template


class Loss(NamedTuple):
    """`total` to minimise, its named `terms` (scalars, before weighting), the training `logits` (B, C), and what `Method.stepped` is given
    of this batch, without gradient."""

    total: Tensor
    terms: dict[str, Tensor]
    logits: Tensor
    kept: Any = None


Gradients = list[Tensor | None]  # one for each trained parameter, in their order; None where the loss does not depend on it


class Differentiate(Protocol):
    """Gradients of a scalar in the trained parameters."""

    def __call__(self, total: Tensor, /, *, retain_graph: bool = False) -> Gradients:
        """Gradients of `total`.

        Args:
            retain_graph: whether another scalar of the same forward pass is differentiated afterwards.
        """
        ...


class MoreSteps(Protocol):
    """Steps that follow the one on a batch, with the same optimiser."""

    @property
    def rate(self) -> float:
        """Learning rate of the present step."""
        ...

    def gradients(self, total: Tensor, /) -> Gradients:
        """Gradients of a scalar in the trained parameters, averaged over the processes. In fp16, all None where one is not finite."""
        ...

    def update(self, gradients: Gradients, /) -> None:
        """One more step of the optimiser; a parameter whose gradient is None stays as it is."""
        ...


class FeatureSource(Protocol):
    """Passes of the frozen image tower over the images of a task."""

    def __call__(self, part: Literal["train", "val", "test"], views: int = 0) -> tuple[Tensor, Tensor]:
        """Features (V, N, embed_dim), not normalised, and labels (N,), of every image of a part, none dropped.

        Args:
            part: "val" is what a method selects on: the validation images of the draw, or, with selection=authors, the whole validation
                part of the data set, and where it has none its test images. "test" is there with selection=authors alone.
            views: number of augmented views of each image; 0 for one pass with the test transform.
        """
        ...


class Rates(Protocol):
    """What an optimiser needs to know of the training options."""

    @property
    def lr(self) -> float: ...
    @property
    def momentum(self) -> float: ...
    @property
    def eps(self) -> float: ...
    @property
    def weight_decay(self) -> float: ...


@dataclass(frozen=True)
class Task:
    """What a method is trained for, known before training. An adapter that is loaded has the same task, without features.

    Attributes:
        names: of the classes, C.
        template: prompt, or several.
        images: number of training images.
        validation: number of images to select on.
        test: number of test images, with selection=authors; else 0, and a method sees none.
        seed: of the run.
        features: passes over the images; None where an adapter is loaded.
    """

    names: tuple[str, ...]
    template: Template
    images: int = 0
    validation: int = 0
    test: int = 0
    seed: int = 0
    features: FeatureSource | None = None
