"""ProDA (Lu et al., CVPR 2022) the plain way: whole prompts one by one, and the bound image by image."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmrl.methods.proda import ProDA
from tests.oracle.methods.coop import ContextPrompts
from tests.oracle.methods.encoders import copies


class Plain:
    def __init__(self, method: ProDA, names: Sequence[str]) -> None:
        self.parameters: dict[str, nn.Parameter] = copies(method)
        self.model, self.scale, self.options = method.clip.model, method.clip.model.logit_scale.exp(), method.options
        self.places = method.positions
        self.prompts = {place: ContextPrompts(method, names, method.options.n_ctx, place) for place in set(self.places)}
        self.empty = ContextPrompts(method, [""], method.options.n_ctx, "end")  # 'X X X .'
        self.method = method  # whose turn it is, it says

    def weights(self, numbers: Sequence[int]) -> Tensor:
        """Class weights (len(numbers), C, embed_dim)."""
        ctx, found = self.parameters["ctx"], []
        for i in numbers:
            prompts = self.prompts[self.places[i]]
            found.append(F.normalize(prompts.encode(prompts.put_together(ctx[i])), dim=-1))
        return torch.stack(found)

    def image(self, images: Tensor) -> Tensor:
        return F.normalize(self.model.encode_image(images), dim=-1)

    def logits(self, images: Tensor) -> Tensor:
        """At test: of the mean of all prompts."""
        return self.scale * self.image(images) @ self.weights(range(len(self.places))).mean(0).T

    def bound(self, image: Tensor, weights: Tensor, labels: Tensor) -> Tensor:
        """The surrogate, image by image and class by class, with 1 / tau for the scale."""
        mean, off, losses = weights.mean(0), weights - weights.mean(0), []
        for x, y in zip(image, labels.tolist()):
            apart = off - off[:, y : y + 1]  # of which A is the covariance, for every class
            spread = apart.square().mean(0) @ x.square() if self.options.covariance == "diagonal" else (apart @ x).square().mean(0)
            losses.append((self.scale * mean @ x + self.scale**2 * spread / 2).logsumexp(0) - self.scale * mean[y] @ x)
        return torch.stack(losses).mean()

    def orthogonality(self) -> Tensor:
        ctx = self.parameters["ctx"]
        features = [F.normalize(self.empty.encode(self.empty.put_together(one))[0], dim=-1) for one in ctx]
        pairs = [(features[i] @ features[j]).abs() for i in range(len(ctx)) for j in range(len(ctx)) if i != j]
        return torch.stack(pairs).mean() if pairs else ctx.new_zeros(())

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        bound = self.bound(self.image(images), self.weights(self.method.turn()), labels)
        return bound + self.options.orthogonality_weight * self.orthogonality()

    def gradients(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Of the loss, by name; then other prompts have their turn."""
        self.loss(images, labels).backward()
        self.method.steps += 1
        found = {name: parameter.grad for name, parameter in self.parameters.items() if parameter.grad is not None}
        for parameter in self.parameters.values():
            parameter.grad = None
        return found


def plain(method: ProDA, names: Sequence[str], template: str | Sequence[str]) -> Plain:
    """ProDA has its own prompts for every data set, so `template` is not used."""
    return Plain(method, names)
