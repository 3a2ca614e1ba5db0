"""CLAP: a linear probe from zero-shot prototypes, each held to where it starts (Silva-Rodriguez et al., CVPR 2024)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from mmrl.clip import ClassList
from mmrl.methods.base import Method
from mmrl.methods.exchange import Task
from mmrl.methods.frozen import FrozenOptions
from mmrl.methods.linear import exact, require_images
from mmrl.methods.options import MethodOptions
from mmrl.methods.registry import register
from mmrl.methods.two_tower import cosine_logits
from mmrl.templates import fill

WARMUP_LR = 1e-5  # in the first epoch


class CLAPOptions(FrozenOptions):
    """Defaults are the authors' values, the same for all data sets."""

    penalty: Literal["l2", "none"] = Field(
        "l2", description="what holds a prototype to its class feature: the squared distance, weighted by class; none is ZS-LP"
    )
    augment_epoch: int = Field(20, ge=0, le=1000, description="augmented views of a training image, each a sample; 0: the image as at test")
    probe_epochs: int = Field(300, ge=1, le=1_000_000, description="epochs, each of as many samples as there are images")
    probe_batch: int = Field(256, ge=1, le=1_000_000, description="samples a step")
    probe_lr: float = Field(0.1, gt=0, le=1000, description="learning rate of SGD after the first epoch; it falls along a cosine")
    probe_momentum: float = Field(0.9, ge=0, lt=1, description="momentum of SGD")


def class_weights(features: Tensor, labels: Tensor, text: Tensor, scale: float) -> Tensor:
    """(C,): how well zero-shot CLIP knows a class, the mean probability of the true class over its samples.

    Args:
        features: (N, embed_dim), normalised.
        labels: (N,), of every class at least one.
        text: (C, embed_dim).
        scale: what cosines are multiplied with.
    """
    probability = cosine_logits(features, F.normalize(text, dim=-1), scale).softmax(-1)
    members = F.one_hot(labels, len(text)).to(features)
    return (members * probability).sum(0) / members.sum(0)


def learning_rate(epoch: int, epochs: int, lr: float) -> float:
    """Of an epoch, from 0: a constant one, then a cosine that starts one epoch late, and so does not reach its end."""
    return WARMUP_LR if epoch == 0 else lr / 2 * (1 + math.cos(math.pi * (epoch - 1) / epochs))


def descend(
    features: Tensor, labels: Tensor, text: Tensor, weights: Tensor | None, order: Iterable[Tensor], *,
    epochs: int, batch: int, lr: float, momentum: float, scale: float,
) -> Iterator[tuple[Tensor, list[Tensor]]]:  # fmt: skip
    """After each epoch the prototypes (C, embed_dim) and the losses of its steps.

    Args:
        features: samples (N, embed_dim), normalised.
        text: class features (C, embed_dim), not normalised: where prototypes start. Only cosines count, so a step goes with the inverse
            square of their length, and the penalty with its square.
        weights: of the classes' penalties (C,); None for none.
        order: for each epoch the samples of its steps, one behind the other.
    """
    prototypes = text.clone().requires_grad_()
    sgd = torch.optim.SGD([prototypes], lr=lr, momentum=momentum)
    for epoch, rows in enumerate(order):
        losses = []
        for group in sgd.param_groups:
            group["lr"] = learning_rate(epoch, epochs, lr)
        for some in rows.split(batch):
            with torch.enable_grad():
                loss = F.cross_entropy(cosine_logits(features[some], F.normalize(prototypes, dim=-1), scale), labels[some])
                if weights is not None:
                    loss = loss + (weights * (prototypes - text).square().sum(-1)).mean()
            (prototypes.grad,) = torch.autograd.grad(loss, [prototypes])
            sgd.step()
            losses.append(loss.detach())
        yield prototypes.detach().clone(), losses


@register("clap")
class CLAP(Method):
    """Cosines with prototypes, trained by cross-entropy + mean over the classes of a_c ||w_c - t_c||^2, with a_c from `class_weights`.

    Nothing is selected: the last epoch is kept, and one setting serves all data sets. With `penalty` none it is the authors' baseline
    ZS-LP. The multipliers a_c stay as they are: the outer step of the paper's augmented Lagrangian is not in the published runs.
    """

    title = "CLAP"
    summary = "a linear probe from zero-shot prototypes, each held to where it starts"
    source = "Silva-Rodriguez et al., CVPR 2024"
    Options = CLAPOptions
    options: CLAPOptions
    prototypes: Tensor  # (C, embed_dim)

    @classmethod
    def open_vocabulary(cls, options: MethodOptions) -> bool:
        return False

    def setup(self, task: Task) -> None:
        """Raises UsageError for fewer than two classes, or a class without a training image."""
        super().setup(task)
        o = self.options
        if task.features is None:
            self.register_buffer("prototypes", torch.zeros(len(task.names), self.clip.embed_dim))
            return
        views, labels = task.features("train", o.augment_epoch)
        require_images(self.name, task, labels)
        features, samples = F.normalize(exact(views).flatten(0, 1), dim=-1), labels.repeat(len(views))
        prompts = fill(o.templates or task.template, task.names)
        text = self.clip.encode_text(prompts, normalise=False).unflatten(0, (-1, len(task.names))).mean(0).to(features)
        weights = class_weights(features, samples, text, self.logit_scale) if o.penalty == "l2" else None
        used = min(max(1, task.images // o.probe_batch) * o.probe_batch, len(features))
        order = (self.shuffled(len(features), epoch)[:used].to(features.device) for epoch in range(o.probe_epochs))
        for prototypes, _ in descend(
            features, samples, text, weights, order, epochs=o.probe_epochs, batch=o.probe_batch, lr=o.probe_lr,
            momentum=o.probe_momentum, scale=self.logit_scale,
        ):  # fmt: skip
            self.register_buffer("prototypes", prototypes)

    def shuffled(self, samples: int, epoch: int) -> Tensor:
        """A random order of all samples; an epoch trains on its beginning."""
        return torch.randperm(samples)

    def head(self, classes: ClassList) -> Tensor:
        """Prototypes (C, embed_dim), normalised. Raises UsageError if a class is not among those trained on."""
        return F.normalize(self.prototypes[self.trained_columns(classes)], dim=-1)

    def logits_of_features(self, features: Tensor, head: Tensor, seen: Tensor | bool) -> Tensor:
        return cosine_logits(F.normalize(exact(features), dim=-1), head, self.logit_scale)
