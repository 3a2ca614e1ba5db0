"""PLOT: prompt learning with optimal transport for vision-language models (Chen et al., ICLR 2023)."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from mmrl.clip import AnyImages, ClassList, Clip
from mmrl.errors import UsageError
from mmrl.methods.base import Method
from mmrl.methods.exchange import Loss, Task
from mmrl.methods.options import MethodOptions
from mmrl.methods.prompts import Position, context_class_list, context_of, encode_context, random_context
from mmrl.methods.registry import register
from mmrl.methods.two_tower import cosine_logits


class TransportOptions(MethodOptions):
    n_prompts: int = Field(4, ge=1, le=100, description="N, number of prompts of each class")
    sinkhorn_eps: float = Field(0.1, ge=1e-4, le=100, description="entropic regularisation of the transport; smaller is sharper")
    sinkhorn_max_iter: int = Field(100, ge=1, le=100_000, description="most iterations of Sinkhorn's algorithm")
    sinkhorn_threshold: float = Field(0.01, ge=0, le=1, description="it stops where its scaling changes by less than this, on average")
    add_pooled_logits: bool = Field(
        False, description="add the logits of the pooled features, as PLOT's authors do on ImageNet and PLOT++'s in their first stage"
    )


class PLOTOptions(TransportOptions):
    n_ctx: int = Field(16, ge=1, le=70, description="number of context tokens of each prompt; with ctx_init, as many as its texts have")
    ctx_init: str = Field(
        "", max_length=5000, description="texts that the contexts start from, one for each prompt, divided by '|'; default: random"
    )
    csc: bool = Field(False, description="class-specific context: each class learns its own, and no new class can be named")
    class_token_position: Position = Field("end", description="where the class name stands in the context")


class TextSets(NamedTuple):
    """Class features of N prompts (N, C, embed_dim), and of their mean (C, embed_dim); both normalised."""

    prompts: Tensor
    pooled: Tensor


class ImageSets(NamedTuple):
    """M local features (B, M, embed_dim), such as the patches', and the pooled one (B, embed_dim); both normalised."""

    local: Tensor
    pooled: Tensor


@torch.no_grad()
def transport_plan(similarity: Tensor, *, eps: float, max_iter: int, threshold: float) -> Tensor:
    """Entropic optimal transport between M local features and N prompts, all equal in weight, by Sinkhorn's algorithm (section 3.3).

    As in the authors' code all problems stop at once, where the scaling of all local features of all problems changes by less than
    `threshold` on average. So a plan depends, a little, on the other problems of its batch.

    Args:
        similarity: cosines (P, M, N) of P problems; the cost is 1 minus them.

    Returns:
        Plans (P, M, N), constant; not finite where exp(-cost / eps) is too small for its dtype.
    """
    kernel = torch.exp((similarity - 1) / eps).contiguous()
    turned = kernel.transpose(1, 2)
    problems, m, n = kernel.shape
    row, column = kernel.new_ones(problems, m, 1), kernel.new_ones(problems, n, 1)
    for _ in range(max_iter):
        before = row
        row = 1 / m / (kernel @ column)
        column = 1 / n / (turned @ row)
        if (row - before).abs().mean() < threshold:
            break
    return row * column.transpose(1, 2) * kernel


class Transport(Method):
    """N features a class, M an image, and logits that are the similarity which the plan between them carries: PLOT, PLOT++.

    The plan is constant: gradients reach the prompts through the similarities alone. The head are the class features of all prompts.
    Sinkhorn's algorithm stops for all images and classes of a batch at once, on their mean error, so that logits depend, at test too, on
    the images and classes beside them: that is the authors' code, and is kept. A plan that is not finite ends their run; here it makes
    every logit of the batch, and so the loss, NaN.
    """

    options: TransportOptions
    edits_layers = True
    eager = "Sinkhorn's algorithm takes as many iterations as its error asks for"
    whole_batch = True  # on whose mean error Sinkhorn's algorithm stops

    # ---- features ----

    @abstractmethod
    def encoded_prompts(self, classes: ClassList) -> Tensor:
        """What the text tower puts out for every prompt, (N, C, embed_dim)."""

    @abstractmethod
    def image_features(self, images: AnyImages) -> ImageSets:
        """Features of images (B, 3, H, W)."""

    def text_features(self, classes: ClassList) -> TextSets:
        """Class features of every prompt; the mean is taken before they are normalised, as in the authors' code."""
        features = self.encoded_prompts(classes)
        with torch.autocast(features.device.type, enabled=False):
            features = features.to(torch.promote_types(features.dtype, torch.float32))
            return TextSets(F.normalize(features, dim=-1), F.normalize(features.mean(0), dim=-1))

    # ---- logits ----

    def combine(self, images: ImageSets, text: TextSets) -> Tensor:
        """Logits (B, C), in float32 at least: all NaN if a plan is not finite."""
        o = self.options
        with torch.autocast(text.prompts.device.type, enabled=False):
            similarity = torch.einsum("bmd,ncd->bcmn", images.local.to(text.prompts.dtype), text.prompts).flatten(0, 1)
            plan = transport_plan(similarity, eps=o.sinkhorn_eps, max_iter=o.sinkhorn_max_iter, threshold=o.sinkhorn_threshold)
            carried = (plan * similarity).sum((1, 2)) * torch.where(torch.isfinite(plan).all(), 1.0, torch.nan)
            logits = self.logit_scale * carried.unflatten(0, (len(images.local), -1))
        return logits + cosine_logits(images.pooled, text.pooled, self.logit_scale) if o.add_pooled_logits else logits

    def loss(self, images: AnyImages, labels: Tensor, classes: ClassList) -> Loss:
        """Cross-entropy; NaN if a plan is not finite."""
        logits = self.combine(self.image_features(images), self.text_features(classes))
        total = F.cross_entropy(logits, labels)
        return Loss(total, {"ce": total}, logits.detach())

    def head(self, classes: ClassList) -> TextSets:
        return self.text_features(classes)

    def logits(self, images: AnyImages, head: TextSets, seen: Tensor | bool) -> Tensor:
        return self.combine(self.image_features(images), head)


@register("plot")
class PLOT(Transport):
    """N prompts a class, matched to an image's patches by optimal transport; logits are the similarity that the plan carries (section 3).

    The image tower runs once, without gradient. The authors have ResNets, whose attention pool gives local features; of a vision
    transformer the patches are used, after the final LayerNorm and the projection.
    """

    title = "PLOT"
    summary = "several learned prompts, matched to the patches by optimal transport"
    source = "Chen et al., ICLR 2023"
    Options = PLOTOptions
    options: PLOTOptions
    authors_names: ClassVar[Mapping[str, str]] = {"ctx": "prompt_learner.ctx"}
    ctx: nn.Parameter

    def __init__(self, clip: Clip, options: PLOTOptions) -> None:
        super().__init__(clip, options)
        self._start = self._initial()  # (N, n, d)
        self.n_ctx = options.n_ctx if self._start is None else self._start.shape[1]
        if not options.csc:
            self.ctx = nn.Parameter(self._random(options.n_prompts) if self._start is None else self._start)  # (N, n, d)

    def _initial(self) -> Tensor | None:
        o = self.options
        if not o.ctx_init:
            return None
        texts = [text.strip() for text in o.ctx_init.split("|")]
        if len(set(texts)) < len(texts) or len(texts) != o.n_prompts:
            raise UsageError(
                f"ctx_init has {len(set(texts))} different texts, and n_prompts is {o.n_prompts}; give one for each prompt, divided by '|' "
                "(prompts that start alike stay alike)."
            )
        starts = [context_of(self.clip, text) for text in texts]
        if len({len(start) for start in starts}) > 1:
            counts = ", ".join(str(len(start)) for start in starts)
            raise UsageError(f"the texts of ctx_init have {counts} tokens; give texts with as many tokens each.")
        return torch.stack(starts)

    def _random(self, *shape: int) -> Tensor:
        return random_context(*shape, self.n_ctx, self.clip.text.width)

    @classmethod
    def open_vocabulary(cls, options: MethodOptions) -> bool:
        assert isinstance(options, PLOTOptions)
        return not options.csc

    @property
    def modality(self) -> str:
        return "L"

    def setup(self, task: Task) -> None:
        super().setup(task)
        if self.options.csc:
            shape = (len(task.names), self.options.n_prompts)
            self.ctx = nn.Parameter(self._random(*shape) if self._start is None else self._start.repeat(shape[0], 1, 1, 1))  # (C, N, n, d)

    def class_list(self, names: Sequence[str], template: str | Sequence[str], *, memory_gib: float | None = None) -> ClassList:
        return context_class_list(self.clip, names, template, self.n_ctx, position=self.options.class_token_position, memory_gib=memory_gib)

    # ---- features ----

    def encoded_prompts(self, classes: ClassList) -> Tensor:
        shared = not self.options.csc
        ctx = self.ctx.unsqueeze(1) if shared else self.ctx[self.trained_columns(classes)].transpose(0, 1)  # (N, 1 or C, n, d)
        return encode_context(self.clip, classes.fed, ctx, normalise=False)

    @torch.no_grad()
    def image_features(self, images: AnyImages) -> ImageSets:
        """Frozen features of images (B, 3, H, W)."""
        vision = self.clip.vision
        pooled = vision.finish(self.clip.enter_image(images, 0), 0, patches=True)
        assert pooled.patches is not None
        tokens = torch.cat([pooled.class_token.unsqueeze(1), pooled.patches], dim=1) @ vision.projection
        with torch.autocast(tokens.device.type, enabled=False):
            tokens = F.normalize(tokens.to(torch.promote_types(tokens.dtype, torch.float32)), dim=-1)
        return ImageSets(tokens[:, 1:], tokens[:, 0])
