"""APE and APE-T: adaptive prior refinement of a cache (Zhu et al., ICCV 2023)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from mmrl.clip import AnyImages, ClassList
from mmrl.methods.exchange import Loss, Task
from mmrl.methods.frozen import VALUES, FrozenFeatures, FrozenOptions, unit
from mmrl.methods.linear import AS_AUTHORS, Selection, exact, require_images, say_unselected
from mmrl.methods.options import MethodOptions
from mmrl.methods.registry import register
from mmrl.methods.tip_adapter import BestEpoch, CacheHead, Scale, Step, TipAdapterOptions, cache_logits, grid, one_hot
from mmrl.methods.two_tower import cosine_logits

SMALLEST = 1e-6  # added to probabilities before their logarithm

Share = Annotated[float, Field(gt=0, le=1)]
Weight = Annotated[float, Field(ge=0, le=1000)]


class APEOptions(FrozenOptions):
    """Defaults are the authors' values for ImageNet; every other data set has its own."""

    channels: Share = Field(500 / 1024, description="share of the feature's channels that the cache compares: the authors' of 1024, RN50's")
    criterion_weights: tuple[Weight, Weight] = Field(
        (0.7, 0.3), description="weights, in a channel's score, of how little alike classes are there, and of the variance over the classes"
    )
    alpha: float = Field(1.0, ge=0, le=10_000, description="weight of the cache beside the zero-shot logits, until one is selected")
    beta: float = Field(1.0, ge=0, le=10_000, description="sharpness of the cache, until one is selected: higher, fewer keys count")
    gamma: float = Field(0.1, ge=0, le=1000, description="how much images count more that class features tell badly, until one is selected")
    augment_epoch: int = Field(
        10, ge=0, le=1000, description="augmented views of a training image, whose mean is its key; 0: the image as at test"
    )
    search_scale: tuple[Scale, Scale, Annotated[float, Field(gt=0, le=1000)]] = Field(
        (7.0, 7.0, 0.5), description="upper ends of the grids of beta, alpha and gamma; the first two start at 0.1, the last at 0"
    )
    search_step: tuple[Step, Step, Step] = Field((200, 20, 5), description="numbers of values in the grids of beta, alpha and gamma")
    selection: Selection = Field(
        "validation",
        description="where alpha, beta and gamma come from: a grid, by accuracy on the validation images, or the options as they are "
        "(fixed, and where there are no validation images); " + AS_AUTHORS,
    )


class RefinedHead(NamedTuple):
    """Class features (C, embed_dim), normalised; keys (N, K) of the classes' images; whose each is (N, C), one-hot; and how far from its
    class each is told (N,)."""

    text: Tensor
    keys: Tensor
    values: Tensor
    divergence: Tensor

    def weighted(self, gamma: float | Tensor) -> Tensor:
        """Values (N, C), times exp(gamma x divergence)."""
        return self.values * torch.exp(gamma * self.divergence).unsqueeze(1)


def similarity(text: Tensor, keys: Tensor | None, labels: Tensor) -> Tensor:
    """How alike different classes are in each channel (d,): the mean, over ordered pairs of classes and all pairs of their vectors, of the
    vectors' product in it. A class's vectors are its feature of text (C, d) and its keys (N, d) with labels (N,), if given.

    Since the mean of products of two classes is the product of their means, the cost is C and not the authors' C^2. Classes count alike,
    also those with fewer images.
    """
    classes, means = len(text), text
    if keys is not None:
        members = one_hot(labels, torch.arange(classes, device=labels.device), text.dtype)
        means = (text + members.T @ keys) / (1 + members.sum(0)).unsqueeze(1)
    return (means.sum(0).square() - means.square().sum(0)) / (classes * (classes - 1))


def best_channels(text: Tensor, keys: Tensor | None, labels: Tensor, weights: tuple[float, float], count: int) -> Tensor:
    """Numbers of the `count` channels with the highest score, the highest first."""
    score = weights[1] * text.var(0) - weights[0] * similarity(text, keys, labels)
    return score.topk(count).indices


def kept_channels(width: int, share: float) -> int:
    """Number of channels that are kept of `width`."""
    return max(1, round(width * share))


def divergence(keys: Tensor, labels: Tensor, text: Tensor) -> Tensor:
    """Of each image's label from what class features (C, K) tell of its key (N, K), without a temperature (N,), in bits."""
    told = (keys @ text.T).softmax(-1).gather(1, labels.unsqueeze(1)).squeeze(1)
    return ((1 + SMALLEST) / (told + SMALLEST)).log2()


@register("ape")
class APE(FrozenFeatures):
    """Zero-shot logits + alpha x sum over the training images of a class of exp(-beta (1 - cosine)) exp(gamma divergence), with nothing
    trained. The cosine is of some channels alone, those in which classes differ most.

    The key of an image is the mean of its features over augmented views, normalised after averaging. Beta, alpha and gamma are searched on
    the validation images, beta outermost: the first of those most accurate; where none is ever right all are 0. The authors search on the
    whole validation split, and for ImageNet on its test images.

    Asked for some of the classes trained on, it looks at their images alone; the logits are those among all, at their columns.
    """

    title = "APE"
    summary = "a cache of the training images' features in the channels that tell classes apart, nothing trained"
    source = "Zhu et al., ICCV 2023"
    Options = APEOptions
    options: APEOptions
    keys: Tensor  # (N, K), normalised
    labels: Tensor  # (N,), among the task's classes
    channels: Tensor  # (K,)
    divergence: Tensor  # (N,)
    beta: Tensor
    alpha: Tensor
    gamma: Tensor

    @classmethod
    def open_vocabulary(cls, options: MethodOptions) -> bool:
        return False

    # ---- the cache ----

    @torch.no_grad()
    def setup(self, task: Task) -> None:
        """Raises UsageError for fewer than two classes, or a class without a training image."""
        super().setup(task)
        count = kept_channels(self.clip.embed_dim, self.options.channels)
        if task.features is None:
            images = task.images
            self._hold(torch.zeros(images, count), torch.zeros(images).long(), torch.zeros(count).long(), torch.zeros(images))
            return
        views, labels = task.features("train", self.options.augment_epoch)
        require_images(self.name, task, labels)
        keys = unit(exact(views).mean(0))
        text = self.class_list(task.names, task.template).held_to.to(keys)
        channels = best_channels(text, keys, labels, self.options.criterion_weights, count)
        keys, text = (F.normalize(each[:, channels], dim=-1) for each in (keys, text))
        self._hold(keys, labels.clone(), channels, divergence(keys, labels, text))

    def _hold(self, keys: Tensor, labels: Tensor, channels: Tensor, divergence: Tensor) -> None:
        tensors = {"keys": keys, "labels": labels, "channels": channels, "divergence": divergence}
        tensors |= {name: keys.new_tensor(getattr(self.options, name)) for name in ("beta", "alpha", "gamma")}
        for name, value in tensors.items():
            self.register_buffer(name, value)

    @torch.no_grad()
    def finish(self, task: Task) -> None:
        if self.options.selection == "fixed" or task.features is None:
            return
        o = self.options
        if not task.validation:
            say_unselected(self.name, "beta, alpha and gamma", f"keeps its options' {o.beta}, {o.alpha} and {o.gamma}")
            return
        features, labels = task.features("val")
        found = self._search(features[0], labels, self.head(self.class_list(task.names, task.template)))
        for buffer, value in zip((self.beta, self.alpha, self.gamma), found):
            buffer.fill_(value)

    def _grids(self) -> tuple[list[float], list[float], list[float]]:
        """Values of beta, alpha and gamma."""
        scale, steps = self.options.search_scale, self.options.search_step
        return grid(scale[0], steps[0]), grid(scale[1], steps[1]), [i * scale[2] / steps[2] for i in range(steps[2])]

    def _search(self, features: Tensor, labels: Tensor, head: RefinedHead) -> tuple[float, float, float]:
        """Beta, alpha and gamma of the grid with the most of features (M, embed_dim), not normalised, classified as labels (M,) say."""
        betas, alphas, gammas = self._grids()
        weights = head.keys.new_tensor(alphas).view(-1, 1, 1)
        correct = torch.zeros(len(betas), len(alphas), len(gammas), dtype=torch.long, device=head.keys.device)
        values = torch.cat([head.weighted(gamma) for gamma in gammas], dim=-1)  # (N, gammas * C)
        rows = max(1, VALUES // max(1, len(head.keys), max(len(alphas), len(gammas)) * len(head.text)))
        for some, true in zip(features.split(rows), labels.to(correct.device).split(rows)):
            zero_shot, affinity = self._compare(some, head)
            for i, beta in enumerate(betas):
                for j, cache in enumerate(cache_logits(affinity, values, beta).split(len(head.text), dim=-1)):  # one exp for all gammas
                    correct[i, :, j] += ((zero_shot + weights * cache).argmax(-1) == true).sum(-1)
        if not correct.any():
            return 0.0, 0.0, 0.0
        i, rest = divmod(int(correct.argmax()), len(alphas) * len(gammas))  # the first
        return betas[i], alphas[rest // len(gammas)], gammas[rest % len(gammas)]

    # ---- logits ----

    def head(self, classes: ClassList) -> RefinedHead:
        """Raises UsageError if a class is not among those trained on."""
        columns = self.trained_columns(classes)
        asked = torch.isin(self.labels, columns)
        values = one_hot(self.labels[asked], columns, self.keys.dtype)
        return RefinedHead(classes.held_to, self.keys[asked], values, self.divergence[asked])

    def _compare(self, features: Tensor, head: RefinedHead) -> tuple[Tensor, Tensor]:
        """Zero-shot logits (B, C), of all channels, and cosines with the keys (B, N), in float32 at least, of features (B, embed_dim)."""
        features = unit(features)
        features = features.to(torch.promote_types(features.dtype, head.keys.dtype))
        refined = F.normalize(features[:, self.channels], dim=-1)
        return cosine_logits(features, head.text, self.logit_scale), cosine_logits(refined, head.keys, 1.0)

    def logits_of_features(self, features: Tensor, head: RefinedHead, seen: Tensor | bool) -> Tensor:
        zero_shot, affinity = self._compare(features, head)
        return zero_shot + self.alpha * cache_logits(affinity, head.weighted(self.gamma), self.beta)


class APETOptions(TipAdapterOptions):
    """Defaults are the authors' values for ImageNet; every other data set has its own."""

    channels: Share = Field(500 / 1024, description="share of the feature's channels that are trained: the authors' of 1024, RN50's")
    criterion_weights: tuple[Weight, Weight] = Field(
        (0.2, 0.8), description="weights, in a channel's score, of how little alike classes are there, and of the variance over the classes"
    )
    criterion: Literal["text", "text-and-images"] = Field(
        "text",
        description="what the likeness of classes is of: their class features, as the authors' code asks for, or keys too, as it has where "
        "APE ran before",
    )
    alpha: float = Field(2.0, ge=0, le=10_000, description="weight of the cache beside the zero-shot logits, until one is selected")
    search_scale: tuple[Scale, Scale] = Field((7.0, 7.0), description="upper ends of the grids of beta and alpha; they start at 0.1")
    selection: Selection = Field(
        "validation",
        description="where epoch, alpha and beta come from: the best epoch, then a grid, by accuracy on the validation images, or the last "
        "epoch and the options (fixed, and where there are no validation images); " + AS_AUTHORS,
    )


@register("ape-t")
class APET(BestEpoch):
    """A residual r_c of each class, in the channels that tell classes apart, added to its class feature and to its keys alike, and a weight
    v_i of each key: 100 x (t_c + r_c) + alpha x sum of exp(-beta (1 - x (k_i + r_c))) v_i, where nothing is normalised again.

    Trained by cross-entropy with alpha and beta as the options have them. Of the epochs the first most accurate on the validation images is
    kept, then alpha and beta are searched on them, as Tip-Adapter's are. The authors do both on the whole validation split, for ImageNet on
    its test images, and up to September 2023 they kept the epoch that is best on the test images. Their code trains on its ten views of an
    image in turn, and stops as it is published, since no file has the number of channels that it asks for; what it is meant to do is done.
    """

    title = "APE-T"
    summary = "residuals of classes, in the channels that tell them apart, and weights of cached images, trained"
    source = "Zhu et al., ICCV 2023"
    Options = APETOptions
    options: APETOptions
    authors_names: ClassVar[Mapping[str, str]] = {"residual": "res", "value_weights": "value_weights"}
    channels: Tensor  # (K,)

    @property
    def modality(self) -> str:
        return "V-L"

    @torch.no_grad()
    def setup(self, task: Task) -> None:
        """Raises UsageError for fewer than two classes, or a class without a training image."""
        super().setup(task)
        keys, count = self.keys, kept_channels(self.clip.embed_dim, self.options.channels)
        text, channels = keys.new_zeros(len(task.names), keys.shape[1]), torch.zeros(count, dtype=torch.long, device=keys.device)
        if task.features is not None:
            require_images(self.name, task, self.labels)
            text = self.class_list(task.names, task.template).held_to.to(keys)
            alike = keys if self.options.criterion == "text-and-images" else None
            channels = best_channels(text, alike, self.labels, self.options.criterion_weights, count)
        self.register_buffer("channels", channels)
        self.residual = nn.Parameter(keys.new_zeros(len(text), count))
        self.value_weights = nn.Parameter(keys.new_ones(len(keys)))
        self._hold_out(task)

    # ---- training ----

    def loss(self, images: AnyImages, labels: Tensor, classes: ClassList) -> Loss:
        """Cross-entropy. Residuals are compared once a class, and not once a key of it."""
        columns, values = self.trained_columns(classes), self._values_of(classes)
        features, text = unit(self.clip.encode_image(images, normalise=False)), classes.held_to
        moved = cosine_logits(features[:, self.channels], self.residual, 1.0)  # (B, C)
        affinity = cosine_logits(features, self.keys, 1.0) + moved[:, self.labels]
        cache = cache_logits(affinity, values * self.value_weights.unsqueeze(1), self.beta)
        logits = cosine_logits(features, text, self.logit_scale) + self.logit_scale * moved[:, columns] + self.alpha * cache
        total = F.cross_entropy(logits, labels)
        return Loss(total, {"ce": total}, logits.detach())

    # ---- logits ----

    def head(self, classes: ClassList) -> CacheHead:
        """Raises UsageError if a class is not among those trained on."""
        text, keys, values = super().head(classes)
        columns = self.trained_columns(classes)
        asked = torch.isin(self.labels, columns)
        moved = keys.new_zeros(len(self.residual), keys.shape[1]).index_copy(1, self.channels, self.residual)  # (C, embed_dim)
        weights = self.value_weights[asked].unsqueeze(1)
        return CacheHead(text.to(moved) + moved[columns], keys + moved[self.labels[asked]], values * weights)
