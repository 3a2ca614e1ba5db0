"""ProDA: prompt distribution learning (Lu et al., CVPR 2022)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from mmrl.clip import AnyImages, ClassList, Clip, Prompts
from mmrl.errors import UsageError
from mmrl.methods.base import Method
from mmrl.methods.exchange import Differentiate, Gradients, Loss
from mmrl.methods.options import MethodOptions
from mmrl.methods.prompts import Position, arranged, context_class_list, context_texts, encode_context, random_context
from mmrl.methods.registry import register
from mmrl.methods.two_tower import cosine_logits

Covariance = Literal["full", "diagonal"]


class ProDAOptions(MethodOptions):
    n_prompts: int = Field(32, ge=1, le=1000, description="K, number of prompts of each class; they are shared by all classes")
    n_ctx: int = Field(16, ge=1, le=70, description="number of context tokens of each prompt")
    prompts_per_step: int = Field(
        4, ge=1, le=1000, description="number of prompts that a training step takes; divides n_prompts, and more count as all of them"
    )
    class_token_position: Literal["mixed", "end", "middle", "front"] = Field(
        "mixed", description="where the class name stands in the context; mixed: a quarter in front, a quarter in the middle"
    )
    orthogonality_weight: float = Field(
        0.1, ge=0, le=1e4, description="lambda, weight of the mean absolute cosine between prompts that name no class"
    )
    covariance: Covariance = Field(
        "full", description="of the class weights over the prompts; diagonal: as if the numbers of a feature were independent"
    )


@dataclass(frozen=True)
class ProDAClasses(ClassList):
    """A class list whose prompts stand in several orders.

    Attributes:
        placed: prompts of all classes by the position of the class name.
        nameless: one prompt of context alone.
    """

    placed: Mapping[Position, Prompts] = field(default_factory=dict)
    nameless: Prompts | None = None


def positions_of(mixed: str, count: int) -> list[Position]:
    """Where the class name stands in each of `count` prompts."""
    if mixed != "mixed":
        return [mixed] * count  # type: ignore[list-item]
    quarter = count // 4
    front: list[Position] = ["front"] * quarter
    middle: list[Position] = ["middle"] * quarter
    end: list[Position] = ["end"] * (count - 2 * quarter)
    return front + middle + end


def spread(image: Tensor, text: Tensor, labels: Tensor, covariance: Covariance) -> Tensor:
    """Variance (B, C) over the prompts of x . (w_c - w_y): the paper's x^T A_{c,y} x, with A_{c,y} = S_cc + S_yy - S_cy - S_yc.

    S are blocks of the maximum-likelihood covariance of all class weights, or the diagonals of those blocks.

    Args:
        image: x (B, d), with labels y (B,).
        text: w, class weights (K, C, d) of K prompts.
    """
    off = text - text.mean(0)  # (K, C, d)
    if covariance == "full":
        moved = torch.einsum("bd,kcd->bkc", image, off)
        return (moved - moved.gather(2, labels[:, None, None].expand(-1, len(text), 1))).square().mean(1)
    squared, own = image.square(), off[:, labels]  # (B, d), (K, B, d)
    both = torch.einsum("bd,kbd,kcd->bc", squared, own, off) / len(text)
    alone = squared @ off.square().mean(0).T  # (B, C)
    return alone + alone.gather(1, labels[:, None]) - 2 * both


def upper_bound(logits: Tensor, variance: Tensor, labels: Tensor) -> Tensor:
    """The paper's surrogate: no less than the mean cross-entropy of Gaussian logits, by Jensen's inequality and E exp(z) = exp(m + v / 2).

    Args:
        logits: their means (B, C).
        variance: (B, C) of each one's difference to that of the label.
    """
    return F.cross_entropy(logits + variance / 2, labels)


@register("proda")
class ProDA(Method):
    """A collection of learned prompts whose class weights are held to be Gaussian, jointly for all classes (section 3).

    Trained is an upper bound of the expected cross-entropy under that Gaussian, with the mean and the covariance of the prompts of the
    step, and the mean absolute cosine between prompts without a class name (semantic orthogonality), which keeps them diverse. At test an
    image is scored against the Gaussian's mean, that of the class features of all K prompts.

    The authors' code cannot be had, so there are no numbers to compare with: what is tested is the paper's equations. Where those leave
    room, it is done so:

    - Class weights are normalised features; their mean is taken as it is, in training and at test, since it is the Gaussian's.
    - The covariance divides by the number of prompts, so that of one prompt is 0. It is not cut down to a diagonal unless the option says.
    - Prompts take turns: in K / `prompts_per_step` steps each is taken once, in an order that the run's seed decides. Their contexts all
      enter the orthogonality of every step.
    - A prompt without a class name is "BOT context . EOT", wherever its class name would stand.
    - Of mixed positions, a quarter of the prompts have the class name in front, a quarter in the middle, and the rest at the end.
    - Contexts start from N(0, 0.02^2), as CoOp's.

    Images need one frozen pass. Prompts with the name at the end share BOT and their context among all classes.
    """

    title = "ProDA"
    summary = "a Gaussian over the class features of many learned prompts"
    source = "Lu et al., CVPR 2022"
    Options = ProDAOptions
    options: ProDAOptions
    edits_layers = True
    eager = "each takes other prompts, whose numbers are drawn in Python"
    steps: Tensor

    def __init__(self, clip: Clip, options: ProDAOptions) -> None:
        super().__init__(clip, options)
        count = options.n_prompts
        self.taken = min(options.prompts_per_step, count)
        if count % self.taken:
            raise UsageError(f"n_prompts is {count} and prompts_per_step {self.taken}, which does not divide it; change one of them.")
        self.positions = positions_of(options.class_token_position, count)
        self.ctx = nn.Parameter(random_context(count, options.n_ctx, clip.text.width))  # (K, n, d)
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64), persistent=False)  # behind us; decides whose turn it is

    @property
    def modality(self) -> str:
        return "L"

    # ---- prompts ----

    def class_list(self, names: Sequence[str], template: str | Sequence[str], *, memory_gib: float | None = None) -> ProDAClasses:
        n = self.options.n_ctx
        end = context_class_list(self.clip, names, template, n, memory_gib=memory_gib)
        ahead: dict[Position, int] = {"middle": n // 2, "front": 0}
        placed = {
            position: arranged(self.clip, end, n, ahead=ahead[position]).fed if position in ahead else end.fed
            for position in dict.fromkeys(self.positions)
        }
        nameless = self.clip.prompts([" ".join(["X"] * n) + "."], slots=n)
        return ProDAClasses(end.names, end.zero_shot, end.prompts, end.teacher, placed, nameless)

    def texts(self, names: Sequence[str], template: str | Sequence[str]) -> list[str]:
        return context_texts(names, self.options.n_ctx)

    def turn(self) -> list[int]:
        """Numbers of the prompts that the next training step takes."""
        count, taken = self.options.n_prompts, self.taken
        if taken == count:
            return list(range(count))
        tour, part = divmod(int(self.steps), count // taken)
        seed = 0 if self.task is None else self.task.seed
        order = torch.randperm(count, generator=torch.Generator().manual_seed((seed * 1_000_003 + tour) % 2**63))
        return sorted(order[part * taken : (part + 1) * taken].tolist())

    def features(self, classes: ClassList, prompts: Sequence[int]) -> Tensor:
        """Class features (len(prompts), C, embed_dim) of the prompts with these numbers, ascending; normalised."""
        assert isinstance(classes, ProDAClasses)
        found = []
        for position, placed in classes.placed.items():
            own = [i for i in prompts if self.positions[i] == position]
            if own:
                found.append(encode_context(self.clip, placed, self.ctx[own].unsqueeze(1)))
        return torch.cat(found)

    def orthogonality(self, classes: ClassList) -> Tensor:
        """Mean absolute cosine between any two of the K prompts without a class name; 0 where there is one."""
        assert isinstance(classes, ProDAClasses) and classes.nameless is not None
        features = encode_context(self.clip, classes.nameless, self.ctx.unsqueeze(1))[:, 0]  # (K, embed_dim)
        with torch.autocast(features.device.type, enabled=False):
            features, count = features.to(torch.promote_types(features.dtype, torch.float32)), len(features)
            others = 1 - torch.eye(count, dtype=features.dtype, device=features.device)
            return ((features @ features.T).abs() * others).sum() / max(1, count * (count - 1))

    # ---- training ----

    def loss(self, images: AnyImages, labels: Tensor, classes: ClassList) -> Loss:
        """The bound, and lambda times the orthogonality. Logits are those of the mean of the step's prompts."""
        text, image = self.features(classes, self.turn()), self.clip.encode_image(images)
        dtype = torch.promote_types(torch.promote_types(image.dtype, text.dtype), torch.float32)
        with torch.autocast(image.device.type, enabled=False):
            text, image = text.to(dtype), image.to(dtype)
            logits = cosine_logits(image, text.mean(0), self.logit_scale)
            variance = self.logit_scale**2 * spread(image, text, labels, self.options.covariance)
            terms = {"upper_bound": upper_bound(logits, variance, labels)}
        terms["orthogonality"] = self.orthogonality(classes)
        return Loss(terms["upper_bound"] + self.options.orthogonality_weight * terms["orthogonality"], terms, logits.detach())

    def gradients(self, images: AnyImages, labels: Tensor, classes: ClassList, differentiate: Differentiate) -> tuple[Loss, Gradients]:
        """As in `Method`; then other prompts have their turn."""
        found = super().gradients(images, labels, classes, differentiate)
        self.steps += 1
        return found

    # ---- test ----

    def head(self, classes: ClassList) -> Tensor:
        """Mean class features (C, embed_dim) of all K prompts, a few of which are run at a time; not normalised."""
        numbers = list(range(self.options.n_prompts))
        total = torch.zeros((), device=self.clip.device)
        for start in range(0, len(numbers), self.taken):
            total = total + self.features(classes, numbers[start : start + self.taken]).sum(0)
        return total / len(numbers)

    def logits_of_features(self, features: Tensor, head: Tensor, seen: Tensor | bool) -> Tensor:
        return cosine_logits(F.normalize(features, dim=-1), head, self.logit_scale)
