"""LP++: a linear probe that blends image and text knowledge (Huang et al., CVPR 2024)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from mmrl.clip import ClassList
from mmrl.methods.base import Method
from mmrl.methods.exchange import Task
from mmrl.methods.frozen import FrozenOptions
from mmrl.methods.linear import Rows, exact, require_images, say_unselected
from mmrl.methods.options import MethodOptions
from mmrl.methods.registry import register


class LPPlusPlusOptions(FrozenOptions):
    """Defaults are the authors' values, the same for all data sets."""

    probe_steps: int = Field(300, ge=1, le=1_000_000, description="steps of gradient descent, each on all training images")
    probe_momentum: float = Field(0.9, ge=0, lt=1, description="momentum of weights and biases; the multipliers have none")
    alpha_every: int = Field(10, ge=1, le=1_000_000, description="steps from one update of the multipliers of the text to the next")
    alpha_scale: float = Field(250.0, ge=0, le=1e6, description="a multiplier starts as this times the mean cosine of image and own class")
    selection: Literal["validation", "fixed"] = Field(
        "validation",
        description="which step is kept: the one most accurate on the validation images, of equal ones the latest, or the last of all "
        "(fixed, and where there are no validation images); never test images",
    )


class Blend(NamedTuple):
    """Visual prototypes (C, embed_dim), biases (C,) and multipliers of the text (C,)."""

    weight: Tensor
    bias: Tensor
    alpha: Tensor

    def logits(self, features: Tensor, zero_shot: Tensor) -> Tensor:
        """(N, C) of features (N, embed_dim), normalised, and their cosines with the class features (N, C)."""
        return features @ self.weight.T + self.bias + self.alpha * zero_shot


def first(features: Tensor, labels: Tensor, zero_shot: Tensor, bias: Tensor, scale: float) -> Blend:
    """Where descent starts: prototypes are the sums of their class's features (N, embed_dim), multipliers all the same.

    Args:
        labels: (N,), of every class at least one.
        zero_shot: cosines (N, C) of features and class features.
        scale: what the mean over the classes of the mean cosine with the own class is multiplied with.
    """
    members = F.one_hot(labels, zero_shot.shape[1]).to(features)  # (N, C)
    own = (members * zero_shot).sum(0) / members.sum(0)
    return Blend(members.T @ features, bias, (scale * own.mean()).expand_as(bias).clone())


def descend(
    features: Tensor, labels: Tensor, zero_shot: Tensor, start: Blend, *, steps: int, momentum: float, every: int
) -> Iterator[tuple[Blend, Tensor]]:
    """After each step the blend and the mean cross-entropy before it: block coordinate descent with step sizes from Lipschitz constants.

    Prototypes and biases move in every step, with momentum (Proposition 2); the multipliers move in every `every`-th, along the sum of
    their gradients in all steps so far, as in the authors' code, which never sets these to zero.
    """
    count = len(features)
    rate = 4 * count / torch.linalg.eigvalsh(features.T @ features)[-1]
    alpha_rate = count / (4 * zero_shot.square().sum(0).max())
    members, now = F.one_hot(labels, zero_shot.shape[1]).to(features), start
    pace, bias_pace, summed = torch.zeros_like(now.weight), torch.zeros_like(now.bias), torch.zeros_like(now.alpha)
    for step in range(1, steps + 1):
        log = now.logits(features, zero_shot).log_softmax(-1)
        loss, slope = -(log * members).sum() / count, (log.exp() - members) / count  # the gradient in the logits
        pace, bias_pace = momentum * pace + slope.T @ features, momentum * bias_pace + slope.sum(0)
        summed = summed + (slope * zero_shot).sum(0)
        alpha = now.alpha if step % every else now.alpha - alpha_rate * summed
        now = Blend(now.weight - rate * pace, now.bias - rate * bias_pace, alpha)
        yield now, loss


@register("lpp")
class LPPlusPlus(Method):
    """Logits x w_c + b_c + alpha_c x t_c of image feature x and class feature t_c, both normalised, without a temperature.

    Trained on one augmented view of each image, all at once. The authors' validation set is as large as the training set; here it has
    at most 4 images a class.
    """

    title = "LP++"
    summary = "a linear probe whose weights blend image and text, with step sizes from the data"
    source = "Huang et al., CVPR 2024"
    Options = LPPlusPlusOptions
    options: LPPlusPlusOptions
    weight: Tensor  # (C, embed_dim), w
    bias: Tensor  # (C,), b
    alpha: Tensor  # (C,)
    text: Tensor  # (C, embed_dim), t
    step: Tensor  # the one kept, from 1

    @classmethod
    def open_vocabulary(cls, options: MethodOptions) -> bool:
        return False

    @torch.no_grad()
    def setup(self, task: Task) -> None:
        """Raises UsageError for fewer than two classes, or a class without a training image."""
        super().setup(task)
        count, steps = len(task.names), self.options.probe_steps
        if task.features is None:
            weight, text = (torch.zeros(count, self.clip.embed_dim) for _ in range(2))
            self._hold(Blend(weight, torch.zeros(count), torch.zeros(count)), text, steps)
            return
        views, labels = task.features("train", 1)
        require_images(self.name, task, labels)
        features = F.normalize(exact(views[0]), dim=-1)
        text = self.clip.class_list(task.names, self.options.templates or task.template).zero_shot.to(features)
        zero_shot = features @ text.T
        start = first(features, labels, zero_shot, self.first_bias(count).to(features), self.options.alpha_scale)
        path = descend(
            features, labels, zero_shot, start, steps=steps, momentum=self.options.probe_momentum, every=self.options.alpha_every
        )
        self._hold(*self._kept(path, task, text))

    def first_bias(self, classes: int) -> Tensor:
        """Random biases (C,), as a layer of torch has them."""
        return nn.Linear(self.clip.embed_dim, classes).bias.detach()

    def _kept(self, path: Iterator[tuple[Blend, Tensor]], task: Task, text: Tensor) -> tuple[Blend, Tensor, int]:
        """The blend that is kept, class features, and its step."""
        assert task.features is not None
        choose = self.options.selection == "validation" and task.validation > 0
        if self.options.selection == "validation" and not choose:
            say_unselected(self.name, "a step", f"keeps the last of {self.options.probe_steps}")
        if choose:
            views, labels = task.features("val")
            features = F.normalize(exact(views[0]), dim=-1)
            zero_shot = features @ text.T
        kept: tuple[Blend, Tensor, int] | None = None
        most = 0
        for step, (blend, _) in enumerate(path, start=1):
            correct = int((blend.logits(features, zero_shot).argmax(-1) == labels).sum()) if choose else 0
            if kept is None or correct >= most:
                kept, most = (blend, text, step), correct
        assert kept is not None
        return kept

    def _hold(self, blend: Blend, text: Tensor, step: int) -> None:
        for name, value in (*zip(Blend._fields, blend), ("text", text), ("step", torch.tensor(step, device=text.device))):
            self.register_buffer(name, value)

    def head(self, classes: ClassList) -> Rows:
        """Raises UsageError if a class is not among those trained on."""
        columns = self.trained_columns(classes)
        weight = self.weight + self.alpha.unsqueeze(1) * self.text
        return Rows(weight[columns], self.bias[columns])

    def logits_of_features(self, features: Tensor, head: Rows, seen: Tensor | bool) -> Tensor:
        return head.logits(F.normalize(exact(features), dim=-1))
