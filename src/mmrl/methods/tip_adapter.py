"""Tip-Adapter and Tip-Adapter-F: a cache of the training images beside the zero-shot classifier (Zhang et al., ECCV 2022)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from mmrl.clip import AnyImages, ClassList, Clip
from mmrl.methods.exchange import Loss, Task
from mmrl.methods.frozen import VALUES, FrozenFeatures, FrozenOptions, unit
from mmrl.methods.linear import AS_AUTHORS, Selection, exact, say_unselected
from mmrl.methods.options import MethodOptions
from mmrl.methods.registry import register
from mmrl.methods.two_tower import cosine_logits

LOWEST = 0.1  # where the authors' grids start

Scale = Annotated[float, Field(ge=LOWEST, le=10_000)]
Step = Annotated[int, Field(ge=1, le=10_000)]


class TipAdapterOptions(FrozenOptions):
    """Defaults are the authors' values for ImageNet; every other data set has its own."""

    alpha: float = Field(1.17, ge=0, le=10_000, description="weight of the cache beside the zero-shot logits, until one is selected")
    beta: float = Field(1.0, ge=0, le=10_000, description="sharpness of the cache, until one is selected: higher, fewer keys count")
    augment_epoch: int = Field(
        10, ge=0, le=1000, description="augmented views of a training image, whose mean is its key; 0: the image as at test"
    )
    search_scale: tuple[Scale, Scale] = Field((7.0, 3.0), description="upper ends of the grids of beta and alpha; they start at 0.1")
    search_step: tuple[Step, Step] = Field((200, 20), description="numbers of values in the grids of beta and alpha")
    selection: Selection = Field(
        "validation",
        description="where the final alpha and beta come from: a grid, by accuracy on the validation images, or the options as they are "
        "(fixed, and where there are no validation images); " + AS_AUTHORS,
    )


class TipAdapterFOptions(TipAdapterOptions):
    """Defaults are the authors' values for ImageNet; every other data set has its own."""

    selection: Selection = Field(
        "validation",
        description="where the final alpha and beta come from: a grid, by accuracy on the validation images, or the options as they are "
        f"(fixed, and where there are no validation images), with the last epoch's keys; {AS_AUTHORS}, with the keys of the epoch that is "
        "best on the test images",
    )


class CacheHead(NamedTuple):
    """Class features (C, embed_dim), normalised; keys (N, embed_dim) of the classes' images; and whose each is (N, C), one-hot."""

    text: Tensor
    keys: Tensor
    values: Tensor


def grid(scale: float, steps: int) -> list[float]:
    """The authors' values: from 0.1, evenly, with the upper end left out."""
    return [i * (scale - LOWEST) / steps + LOWEST for i in range(steps)]


def one_hot(labels: Tensor, columns: Tensor, dtype: torch.dtype) -> Tensor:
    """(N, C): 1 where a label (N,) is that of a column (C,)."""
    return (labels.unsqueeze(1) == columns).to(dtype)


@register("tip-adapter")
class TipAdapter(FrozenFeatures):
    """Zero-shot logits + alpha x sum over the training images of a class of exp(-beta (1 - cosine)), without training (equation 6).

    The key of an image is the mean of its features over augmented views, normalised after averaging. Alpha and beta are searched on the
    validation images: beta outside, alpha inside, the first of those most accurate. Where none of the grid is ever right, both are 0, as
    in the authors' code, and only the zero-shot logits are left.

    Asked for some of the classes trained on, it looks at their images alone; the logits are those among all, at their columns.
    """

    title = "Tip-Adapter"
    summary = "a cache of the training images' features beside zero-shot CLIP, nothing trained"
    source = "Zhang et al., ECCV 2022"
    Options: ClassVar[type[MethodOptions]] = TipAdapterOptions
    options: TipAdapterOptions
    keys: Tensor  # (N, embed_dim)
    labels: Tensor  # (N,), among the task's classes
    alpha: Tensor
    beta: Tensor

    def __init__(self, clip: Clip, options: TipAdapterOptions) -> None:
        super().__init__(clip, options)
        self._kept: tuple[ClassList, Tensor, int, Tensor] | None = None  # class list, labels and their version, and the values of these

    @classmethod
    def open_vocabulary(cls, options: MethodOptions) -> bool:
        return False

    # ---- the cache ----

    @torch.no_grad()
    def setup(self, task: Task) -> None:
        super().setup(task)
        if task.features is None:
            keys, labels = torch.zeros(task.images, self.clip.embed_dim), torch.zeros(task.images, dtype=torch.long)
        else:
            views, labels = task.features("train", self.options.augment_epoch)
            keys = unit(exact(views).mean(0))
        self._hold(keys)
        self.register_buffer("labels", labels.long().clone())
        for name, value in (("alpha", self.options.alpha), ("beta", self.options.beta)):
            self.register_buffer(name, torch.tensor(value, dtype=keys.dtype, device=keys.device))

    def _hold(self, keys: Tensor) -> None:
        self.register_buffer("keys", keys)

    @torch.no_grad()
    def finish(self, task: Task) -> None:
        if self.options.selection == "fixed" or task.features is None:
            return
        if not task.validation:
            o = self.options
            say_unselected(self.name, "alpha and beta", f"keeps those of its options: {o.alpha} and {o.beta}")
            return
        features, labels = task.features("val")
        beta, alpha = self._search(features[0], labels, self.head(self.class_list(task.names, task.template)))
        self.beta.fill_(beta)
        self.alpha.fill_(alpha)

    def _search(self, features: Tensor, labels: Tensor, head: CacheHead) -> tuple[float, float]:
        """Beta and alpha of the grid with the most of features (M, embed_dim), not normalised, classified as labels (M,) say."""
        betas, alphas = map(grid, self.options.search_scale, self.options.search_step)
        weights = torch.tensor(alphas, dtype=head.keys.dtype, device=head.keys.device).view(-1, 1, 1)
        correct = torch.zeros(len(betas), len(alphas), dtype=torch.long, device=head.keys.device)
        rows = max(1, VALUES // max(1, len(head.keys), len(alphas) * head.text.shape[0]))
        for some, true in zip(features.split(rows), labels.to(correct.device).split(rows)):
            zero_shot, affinity = self._compare(some, head)
            for i, beta in enumerate(betas):
                cache = cache_logits(affinity, head.values, beta)  # the same for every alpha
                correct[i] += ((zero_shot + weights * cache).argmax(-1) == true).sum(-1)
        best = int(correct.argmax())  # the first, with beta outside
        if not correct.any():
            return 0.0, 0.0
        return betas[best // len(alphas)], alphas[best % len(alphas)]

    # ---- logits ----

    def head(self, classes: ClassList) -> CacheHead:
        """Raises UsageError if a class is not among those trained on."""
        columns = self.trained_columns(classes)
        asked = torch.isin(self.labels, columns)
        values = one_hot(self.labels[asked], columns, self.keys.dtype)
        return CacheHead(classes.held_to, self.keys[asked], values)

    def _values_of(self, classes: ClassList) -> Tensor:
        """One-hot values (N, C), which are the same in every step on one class list."""
        kept = self._kept
        if kept is None or kept[0] is not classes or kept[1] is not self.labels or kept[2] != self.labels._version:
            columns = self.trained_columns(classes)
            kept = self._kept = classes, self.labels, self.labels._version, one_hot(self.labels, columns, self.keys.dtype)
        return kept[3]

    def _compare(self, features: Tensor, head: CacheHead) -> tuple[Tensor, Tensor]:
        """Zero-shot logits (B, C) and cosines with the keys (B, N), in float32 at least, of features (B, embed_dim), not normalised."""
        features = F.normalize(features.to(torch.promote_types(features.dtype, head.keys.dtype)), dim=-1)
        return cosine_logits(features, head.text, self.logit_scale), cosine_logits(features, head.keys, 1.0)

    def logits_of_features(self, features: Tensor, head: CacheHead, seen: Tensor | bool) -> Tensor:
        zero_shot, affinity = self._compare(features, head)
        return zero_shot + self.alpha * cache_logits(affinity, head.values, self.beta)


def cache_logits(affinity: Tensor, values: Tensor, beta: float | Tensor) -> Tensor:
    """Sums (B, C) over the images of each class of exp(-beta (1 - cosine)), of cosines (B, N) and one-hot values (N, C)."""
    with torch.autocast(affinity.device.type, enabled=False):
        return torch.exp(beta * (affinity - 1)) @ values.to(affinity.dtype)


class BestEpoch(TipAdapter):
    """A cache that is trained, and keeps the epoch that is most accurate on a part of the images, the first of equal ones."""

    epoch_by: ClassVar[Literal["val", "test"]] = "val"
    held_out: Tensor  # their features (M, embed_dim)
    held_out_labels: Tensor  # (M,)
    text: Tensor  # (C, embed_dim), class features
    most: Tensor  # how many of them the best epoch has right

    @property
    def _chooses(self) -> int:
        """How many images an epoch is chosen on; with none it is the last."""
        if self.options.selection == "fixed" or self.task is None:
            return 0
        return self.task.validation if self.epoch_by == "val" else self.task.test

    @torch.no_grad()
    def _hold_out(self, task: Task) -> None:
        """What an epoch is chosen with, and the parameters of the best one; in checkpoints alone."""
        if not self._chooses:
            return
        text = self.keys.new_zeros(len(task.names), self.clip.embed_dim)
        features, labels = text.new_zeros(1, self._chooses, text.shape[1]), torch.zeros(self._chooses, device=text.device).long()
        if task.features is not None:
            features, labels = task.features(self.epoch_by)
            text = self.class_list(task.names, task.template).held_to.to(text)
        tensors = {"held_out": features[0], "held_out_labels": labels, "text": text, "most": labels.new_tensor(-1)}
        for name, value in (tensors | {f"best_{name}": p.detach().clone() for name, p in self.named_parameters()}).items():
            self.register_buffer(name, value, persistent=False)

    @torch.no_grad()
    def epoch_ended(self, epoch: int, epochs: int) -> None:
        """Keep the parameters if this epoch has more of the images right than all before it."""
        if not self._chooses or self.task is None:
            return
        head = self.head(ClassList(self.task.names, self.text))
        right = self.logits_of_features(self.held_out, head, True).argmax(-1) == self.held_out_labels
        if int(right.sum()) > int(self.most):
            self.most.fill_(right.sum())
            for name, parameter in self.named_parameters():
                self.get_buffer(f"best_{name}").copy_(parameter)

    @torch.no_grad()
    def finish(self, task: Task) -> None:
        if self._chooses and int(self.most) >= 0:
            for name, parameter in self.named_parameters():
                parameter.copy_(self.get_buffer(f"best_{name}"))
        super().finish(task)


@register("tip-adapter-f")
class TipAdapterF(BestEpoch):
    """Tip-Adapter whose keys are trained, by cross-entropy from the cache they start as (section 3.2), with alpha and beta as the options
    have them; these are searched after training. The keys are not normalised again.

    The authors keep the epoch that is best on the test images. Here it is the last, or with selection=authors theirs.
    """

    title = "Tip-Adapter-F"
    summary = "Tip-Adapter with trained keys"
    source = "Zhang et al., ECCV 2022"
    Options: ClassVar[type[MethodOptions]] = TipAdapterFOptions
    authors_names: ClassVar[Mapping[str, str]] = {"keys": "adapter.weight"}

    epoch_by = "test"

    @property
    def modality(self) -> str:
        return "V"

    def _hold(self, keys: Tensor) -> None:
        self.keys = nn.Parameter(keys)

    def setup(self, task: Task) -> None:
        super().setup(task)
        self._hold_out(task)

    def loss(self, images: AnyImages, labels: Tensor, classes: ClassList) -> Loss:
        """Cross-entropy."""
        values = self._values_of(classes)
        logits = self.logits(images, CacheHead(classes.held_to, self.keys, values), True)
        total = F.cross_entropy(logits, labels)
        return Loss(total, {"ce": total}, logits.detach())
