"""GDA: Gaussian discriminant analysis of frozen features beside the zero-shot classifier (Wang et al., ICLR 2024)."""

from __future__ import annotations

from typing import Annotated, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from mmrl.clip import ClassList
from mmrl.errors import UsageError
from mmrl.methods.exchange import Task
from mmrl.methods.frozen import VALUES, FrozenFeatures, FrozenOptions, unit
from mmrl.methods.linear import AS_AUTHORS, Rows, Selection, require_images, say_unselected
from mmrl.methods.options import MethodOptions
from mmrl.methods.registry import register
from mmrl.methods.two_tower import cosine_logits
from mmrl.names import name_key

Alpha = Annotated[float, Field(ge=0, le=1e6)]


class GDAOptions(FrozenOptions):
    """Defaults are the authors' values of their few-shot runs; those of base-to-novel differ in `covariance` alone."""

    alpha: Alpha = Field(0.1, description="weight of the Gaussian classifier beside the zero-shot logits, until one is selected")
    alpha_grid: tuple[Alpha, ...] = Field(
        (1e-4, 1e-3, 1e-2, 0.1, 1.0, 10.0, 100.0),
        min_length=1,
        max_length=1000,
        description="values of alpha to select from; of those equally accurate the first",
    )
    selection: Selection = Field(
        "validation",
        description="where the final alpha comes from: the grid, by accuracy on the validation images, or the option alpha as it is "
        "(fixed, and where there are no validation images); " + AS_AUTHORS,
    )
    augment_epoch: int = Field(
        10, ge=0, le=1000, description="augmented views of a training image, each a sample of its class; 0: the image as at test"
    )
    covariance: Literal["shrunk", "mean"] = Field(
        "shrunk",
        description="whose inverse is used: that of all samples around their class means, shrunk towards its trace (few-shot runs), or the "
        "mean of the classes' own covariances, by its pseudo-inverse (base-to-novel runs)",
    )
    pinv_cut: float | None = Field(
        None,
        ge=0,
        lt=1,
        description="directions whose variance is at most this share of the largest are left out of the pseudo-inverse; null: embed_dim x "
        "2^-23, the authors' in float32, where it acts as the regulariser",
    )
    neighbours: int = Field(64, ge=2, le=100_000, description="training samples that stand for a new class, nearest to its class feature")
    text_copies: int = Field(16, ge=0, le=100_000, description="how often its class feature counts in its mean beside them")
    keep_samples: bool = Field(
        True,
        description="whether the features of all training samples are kept, which new classes need: views x images x embed_dim numbers; "
        "without them it knows the trained classes alone",
    )


class GaussianHead(NamedTuple):
    """Class features (C, embed_dim), normalised, rows of the Gaussian classifier, and of a list with trained and new classes which are
    new (C,)."""

    text: Tensor
    rows: Rows
    new: Tensor | None = None


class Gaussians(NamedTuple):
    """Class means (C, embed_dim) and the inverse of the covariance that they share (embed_dim, embed_dim), in float64."""

    means: Tensor
    precision: Tensor

    def rows(self) -> Rows:
        """Log density of a class, less what is the same for all: so is the prior of C equally likely ones, which the authors add."""
        weight = self.means @ self.precision
        return Rows(weight, -(self.means * weight).sum(-1) / 2)


@register("gda")
class GDA(FrozenFeatures):
    """Zero-shot logits + alpha x the logits of a Gaussian classifier: class means and one covariance in closed form, without training.
    Every augmented view of an image is a sample of its own.

    A class is known by its name. Of trained classes the mean is that of their samples. A list of new classes has a classifier of its own:
    the mean of a class is that of the training samples nearest to its class feature and of that feature, and the covariance
    is theirs, the inverses averaged over the classes of the list. So the logits of a new class depend on the other new ones of its list.
    The authors score trained and new classes apart, and the two classifiers are not on one scale: with one covariance for both, no image is
    ever given to a new class. So in a list with both each half has its own classifier, whose logits are shifted, image by image,
    until the half has together the probability that frozen CLIP gives it.

    Alpha is the first of the most accurate on the validation images, for new classes too. The authors select it on the whole validation
    split, and for ImageNet on its test images.
    """

    title = "GDA"
    summary = "a Gaussian classifier of frozen features beside zero-shot CLIP, in closed form"
    source = "Wang et al., ICLR 2024"
    Options = GDAOptions
    options: GDAOptions
    weight: Tensor  # (C, embed_dim)
    bias: Tensor  # (C,)
    alpha: Tensor
    samples: Tensor  # (V * N, embed_dim), normalised; where they are kept

    @classmethod
    def open_vocabulary(cls, options: MethodOptions) -> bool:
        assert isinstance(options, GDAOptions)
        return options.keep_samples

    @property
    def one_scale(self) -> bool:
        """No: new classes have a Gaussian classifier of their own, and in a list with both frozen CLIP's mass counts as it is."""
        return False

    # ---- the classes trained on ----

    @torch.no_grad()
    def setup(self, task: Task) -> None:
        """Raises UsageError where a class has no training image, or the samples show no covariance."""
        super().setup(task)
        views, width = self.options.augment_epoch, self.clip.embed_dim
        if task.features is None:
            samples = torch.zeros(max(1, views) * task.images, width)
            self._hold(samples, Gaussians(torch.zeros(len(task.names), width), torch.zeros(width, width)))
            return
        features, labels = task.features("train", views)
        require_images(self.name, task, labels)
        samples = unit(features).flatten(0, 1)  # view by view
        self._hold(samples, self._fitted(samples, labels.to(samples.device).repeat(len(features)), len(task.names)))

    def _hold(self, samples: Tensor, fitted: Gaussians) -> None:
        weight, bias = fitted.rows()
        tensors = {"weight": weight, "bias": bias, "alpha": torch.tensor(self.options.alpha)}
        tensors |= {"samples": samples} if self.options.keep_samples else {}
        for name, value in tensors.items():
            self.register_buffer(name, value.to(samples))

    def _fitted(self, samples: Tensor, labels: Tensor, classes: int) -> Gaussians:
        """Of samples (n, d), normalised, with labels (n,)."""
        of_all = self.options.covariance == "shrunk"
        counts = torch.bincount(labels, minlength=classes)
        if not of_all and int(counts.min()) < 2:
            raise UsageError(
                f"method '{self.name}' with covariance 'mean' needs two samples of every class, and a class has one image and "
                f"augment_epoch is {self.options.augment_epoch}. Give it 2 or more, or choose covariance=shrunk."
            )
        weights = torch.ones(classes) if of_all else 1 / ((counts - 1) * classes).cpu().double()
        means, scatter = moments(samples, labels, counts, weights)
        if not float(scatter.trace()) > 0:
            raise UsageError(
                f"method '{self.name}' needs samples that differ within their class, and those of each class are equal: augment_epoch is "
                f"{self.options.augment_epoch}. Give it 2 or more views, or more images."
            )
        d = scatter.shape[0]
        if of_all:
            return Gaussians(means, d * inverse(scatter + scatter.trace() / (len(samples) - 1) * torch.eye(d).to(scatter)))
        cut = d * torch.finfo(torch.float32).eps if self.options.pinv_cut is None else self.options.pinv_cut
        return Gaussians(means, torch.linalg.pinv(scatter, rtol=cut, hermitian=True))

    @torch.no_grad()
    def finish(self, task: Task) -> None:
        if self.options.selection == "fixed" or task.features is None:
            return
        if not task.validation:
            say_unselected(self.name, "alpha", f"keeps that of its options: {self.options.alpha}")
            return
        features, labels = task.features("val")
        self.alpha.fill_(self._search(features[0], labels, self.head(self.class_list(task.names, task.template))))

    def _search(self, features: Tensor, labels: Tensor, head: GaussianHead) -> float:
        """Alpha of the grid with the most of features (M, embed_dim), not normalised, classified as labels (M,) say; the option's where
        none is."""
        grid = self.options.alpha_grid
        correct = torch.zeros(len(grid), dtype=torch.long, device=head.text.device)
        rows = max(1, VALUES // len(head.text))
        for some, true in zip(features.split(rows), labels.to(correct.device).split(rows)):
            zero_shot, gaussian = self._compare(some, head)
            correct += torch.stack([((zero_shot + alpha * gaussian).argmax(-1) == true).sum() for alpha in grid])
        return grid[int(correct.argmax())] if correct.any() else self.options.alpha

    # ---- new classes ----

    def _columns(self, classes: ClassList) -> Tensor:
        """Position (C,) of each class among those trained on, -1 for a new one."""
        trained = {name_key(name): i for i, name in enumerate(self.task.names if self.task else ())}
        return torch.tensor([trained.get(name_key(name), -1) for name in classes.names], device=self.weight.device)

    def _new_classes(self, text: Tensor) -> Gaussians:
        """Of class features (C, d), normalised."""
        d, copies, near = text.shape[1], self.options.text_copies, min(self.options.neighbours, len(self.samples))
        means, total = [], double(text.new_zeros(d, d))
        for some in text.to(self.samples).split(max(1, VALUES // max(len(self.samples), near * d))):
            nearest = (some @ self.samples.T).topk(near, dim=-1).indices
            samples, centres = double(self.samples[nearest]), double(some)  # (c, k, d), (c, d)
            means.append((samples.sum(1) + copies * centres) / (near + copies))
            total += shrunk_inverses(samples - centres.unsqueeze(1))
        return Gaussians(torch.cat(means), d / len(text) * total)

    # ---- logits ----

    @torch.no_grad()
    def head(self, classes: ClassList) -> GaussianHead:
        """Raises UsageError if no samples are kept and a class is not among those trained on."""
        text = classes.held_to
        columns = self._columns(classes) if self.options.keep_samples else self.trained_columns(classes)
        weight, bias, new = self.weight[columns], self.bias[columns], columns < 0
        if bool(new.any()):
            with torch.autocast(text.device.type, enabled=False):
                found = self._new_classes(text[new]).rows()
            weight[new], bias[new] = (rows.to(weight) for rows in found)
        return GaussianHead(text, Rows(weight, bias), new if bool(new.any()) and not bool(new.all()) else None)

    def _compare(self, features: Tensor, head: GaussianHead) -> tuple[Tensor, Tensor]:
        """Zero-shot and Gaussian logits (B, C), in float32 at least, of features (B, embed_dim), not normalised."""
        features = unit(features)
        return cosine_logits(features, head.text, self.logit_scale), head.rows.logits(features)

    def logits_of_features(self, features: Tensor, head: GaussianHead, seen: Tensor | bool) -> Tensor:
        zero_shot, gaussian = self._compare(features, head)
        logits = zero_shot + self.alpha * gaussian
        if head.new is None:
            return logits
        mass = cosine_logits(unit(features), head.text, self.clip.logit_scale)  # at the scale that CLIP's probabilities were trained at
        for half in (head.new, ~head.new):
            logits[:, half] += mass[:, half].logsumexp(-1, keepdim=True) - logits[:, half].logsumexp(-1, keepdim=True)
        return logits


# ---- algebra, in float64 ----


def double(x: Tensor) -> Tensor:
    """In float64; on the processor where the device has none."""
    return x.cpu().double() if x.device.type == "mps" else x.double()


def moments(samples: Tensor, labels: Tensor, counts: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Class means (C, d) and the scatter around them (d, d), of samples (n, d) with labels (n,).

    Args:
        counts: samples of each class (C,).
        weights: of each class's part in the scatter (C,).
    """
    classes, d = len(counts), samples.shape[1]
    rows = max(1, VALUES // max(classes, d))
    means, scatter = double(samples.new_zeros(classes, d)), double(samples.new_zeros(d, d))
    labels, counts, weights = (each.to(means.device) for each in (labels, counts, weights))
    for some, of in zip(samples.split(rows), labels.split(rows)):
        means += (of == torch.arange(classes, device=of.device).unsqueeze(1)).to(means) @ double(some)
    means /= counts.unsqueeze(1)
    for some, of in zip(samples.split(rows), labels.split(rows)):
        centred = double(some) - means[of]
        scatter += centred.T @ (weights[of].to(scatter).unsqueeze(1) * centred)
    return means, scatter


def inverse(matrix: Tensor) -> Tensor:
    """Of a symmetric, positive definite matrix."""
    return torch.cholesky_inverse(torch.linalg.cholesky(matrix))


def shrunk_inverses(centred: Tensor) -> Tensor:
    """The sum over w of the inverses of S_w + tr(S_w) / (k - 1) I, (d, d), where S_w is the scatter of centred samples (c, k, d).

    By Woodbury's identity, so that k x k matrices are factored in place of d x d ones.
    """
    count, k, d = centred.shape
    trace = centred.square().sum((1, 2)) / (k - 1)
    small = centred @ centred.mT + trace.view(-1, 1, 1) * torch.eye(k).to(centred)
    whitened = torch.linalg.solve_triangular(torch.linalg.cholesky(small), centred, upper=False) / trace.sqrt().view(-1, 1, 1)
    whitened = whitened.reshape(count * k, d)
    return (1 / trace).sum() * torch.eye(d).to(centred) - whitened.T @ whitened
