"""GDA (Wang et al., ICLR 2024) the plain way: whole encoders, one class at a time, every inverse by itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmrl.methods.gda import GDA
from tests.oracle.methods.encoders import Encoders, copies

SCALE = 100.0


class Classifier(NamedTuple):
    """Weights (d, C) and biases (C,) without the prior."""

    weight: Tensor
    bias: Tensor


def classifier(means: Tensor, precision: Tensor) -> Classifier:
    """Of class means (C, d) and the inverse covariance (d, d)."""
    bias = torch.stack([-0.5 * mean @ precision @ mean for mean in means])
    return Classifier(precision @ means.T, bias)


def samples_of(model: nn.Module, views: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Samples (V * N, d), normalised, of views (V, N, 3, H, W), and their labels."""
    each = [F.normalize(model.encode_image(images), dim=-1) for images in views]  # type: ignore[operator]
    return torch.cat(each), torch.cat([labels for _ in each])


def class_means(samples: Tensor, labels: Tensor, classes: int) -> Tensor:
    return torch.stack([samples[labels == c].mean(0) for c in range(classes)])


def shrunk(samples: Tensor, labels: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Means (C, d) and inverse covariance (d, d) of the few-shot runs."""
    means = class_means(samples, labels, classes)
    centred = torch.cat([samples[labels == c] - means[c] for c in range(classes)])
    n, d = centred.shape
    covariance = torch.cov(centred.T)
    return means, d * torch.linalg.pinv((n - 1) * covariance + covariance.trace() * torch.eye(d, dtype=centred.dtype))


def mean_of_covariances(samples: Tensor, labels: Tensor, classes: int, cut: float) -> tuple[Tensor, Tensor]:
    """The same of the base-to-novel runs."""
    covariance = torch.stack([torch.cov(samples[labels == c].T) for c in range(classes)]).mean(0)
    return class_means(samples, labels, classes), torch.linalg.pinv(covariance, rtol=cut)


def new_classes(samples: Tensor, text: Tensor, k: int, text_copies: int) -> tuple[Tensor, Tensor]:
    """Means (C, d) and inverse covariance (d, d) of new classes with features (C, d)."""
    means, inverses, d = [], [], text.shape[1]
    for feature in text:
        nearest = samples[(samples @ feature).argsort(descending=True)[:k]]
        means.append(torch.cat([nearest, feature.expand(text_copies, -1)]).mean(0))
        difference = nearest - feature
        covariance = difference.T @ difference / (len(nearest) - 1)
        shrunk_scatter = (len(nearest) - 1) * covariance + covariance.trace() * torch.eye(d, dtype=text.dtype)
        inverses.append(d * torch.linalg.pinv(shrunk_scatter))
    return torch.stack(means), torch.stack(inverses).mean(0)


def gaussians(method: GDA, samples: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Means and inverse covariance of the classes trained on, with the method's options."""
    assert method.task is not None
    classes, cut = len(method.task.names), method.options.pinv_cut
    if method.options.covariance == "shrunk":
        return shrunk(samples, labels, classes)
    return mean_of_covariances(samples, labels, classes, samples.shape[1] * 2.0**-23 if cut is None else cut)


class Plain:
    """Fitted to the samples given, with the alpha that the method has."""

    def __init__(self, method: GDA, names: Sequence[str], template: str | Sequence[str], samples: Tensor, labels: Tensor) -> None:
        assert method.task is not None
        self.parameters: dict[str, nn.Parameter] = copies(method)
        self.model, self.alpha, encoders, o = method.clip.model, method.alpha.clone(), Encoders(method), method.options
        with torch.no_grad():
            self.text = encoders.text(encoders.tokens(o.templates or template, names), len(names))
        means, precision = gaussians(method, samples, labels)
        rows = [method.task.names.index(name) if name in method.task.names else -1 for name in names]
        known, new = ([at for at, row in enumerate(rows) if (row < 0) == added] for added in (False, True))
        self.halves: list[tuple[list[int], Classifier]] = []
        if known:
            self.halves.append((known, classifier(means[[rows[at] for at in known]], precision)))
        if new:
            self.halves.append((new, classifier(*new_classes(samples, self.text[new], o.neighbours, o.text_copies))))
        self.classifier, self.scale = self.halves[0][1], method.clip.logit_scale

    def logits(self, images: Tensor) -> Tensor:
        """Where there are two halves, frozen CLIP tells them apart."""
        with torch.no_grad():
            image = F.normalize(self.model.encode_image(images), dim=-1)
        cosines = image @ self.text.T
        out = SCALE * cosines
        for columns, own in self.halves:
            out[:, columns] += self.alpha * (image @ own.weight + own.bias)
            if len(self.halves) > 1:
                together = torch.log(torch.exp(self.scale * cosines[:, columns]).sum(-1, keepdim=True))
                out[:, columns] = together + torch.log_softmax(out[:, columns], -1)
        return out

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(self.logits(images), labels)


def selected(plain: Plain, image: Tensor, labels: Tensor, grid: Sequence[float], start: float) -> float:
    """Alpha, the first of the most accurate on image features (M, d), normalised."""
    most, found = 0.0, start
    for alpha in grid:
        logits = SCALE * image @ plain.text.T + alpha * (image @ plain.classifier.weight + plain.classifier.bias)
        accuracy = float((logits.argmax(-1) == labels).double().mean())
        if accuracy > most:
            most, found = accuracy, alpha
    return found
