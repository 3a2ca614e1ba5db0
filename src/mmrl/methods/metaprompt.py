"""MetaPrompt: learning domain invariant prompt for vision-language models (Zhao et al., IEEE TIP 2024)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from mmrl.clip import AnyImages, ClassList, Clip, Edit, Edits, Images, Prompts
from mmrl.errors import UsageError
from mmrl.methods.base import Method
from mmrl.methods.exchange import Gradients, Loss, MoreSteps
from mmrl.methods.options import MethodOptions
from mmrl.methods.prompts import context_class_list, context_edit, prompts_of, random_context, with_teacher
from mmrl.methods.registry import register
from mmrl.methods.two_tower import cosine_logits
from mmrl.templates import MOST_TEMPLATES, check_template


class MetaPromptOptions(MethodOptions):
    """Defaults are the authors' for base-to-novel."""

    n_ctx_text: int = Field(2, ge=1, le=70, description="number of prompts in each text layer that has some")
    n_ctx_vision: int = Field(2, ge=1, le=1000, description="number of prompts in each image layer that has some")
    depth: int | None = Field(None, ge=1, le=1000, description="number of layers, from the first, with prompts; default: all")
    meta_step: float = Field(0.2, ge=0, le=1000, description="size of the step along the held-out gradients, in learning rates; 0: none")
    frozen_templates: tuple[str, ...] | None = Field(
        None,
        min_length=1,
        max_length=MOST_TEMPLATES,
        description="prompts whose features are averaged to the frozen class features; default: the data set's own",
    )
    keep_underscores: bool = Field(True, description="whether class names keep their underscores in those prompts, as in the authors' code")
    vision_between: Literal["drift", "still"] = Field(
        "drift",
        description="image prompts in the steps on half of the classes, which do not use them: moved by momentum and weight decay alone, "
        "as by the torch 1.10 of the authors' runs, or not at all, as by torch 2",
    )


class MixedHead(NamedTuple):
    """Class features (C, embed_dim), normalised: of the learned prompts, and frozen ones."""

    text: Tensor
    frozen: Tensor


class Half(NamedTuple):
    """Half of the classes: their prompts, and the images of a batch that belong to them, as frozen features (B, embed_dim), with labels
    (B,) among them."""

    prompts: Prompts
    image: Tensor
    labels: Tensor


@register("metaprompt")
class MetaPrompt(Method):
    """Prompts of their own in the layers of both towers. Prompted images are compared with frozen classes, frozen images with prompted
    classes; the logits are the mean of both ("asymmetric contrast").

    After every step the classes are divided at random into two halves, and the text prompts are trained such that a step on the images and
    classes of one half does good to the other: for either half, a step of the optimiser on the other one, and the gradient that the half
    held out has there. Then the prompts go down both gradients by `meta_step` learning rates. As in the authors' code, the optimiser's
    momentum goes through all steps, and the prompts are set back after the first of the two, and not after the second (there the copy that
    they would be set back to is what has been trained).

    The prompted and the frozen pass of an image share what enters the first layer; the steps on halves take the frozen features of the
    whole batch's pass.
    """

    title = "MetaPrompt"
    summary = "prompts in all layers of both towers, trained such that steps on some classes do good to others"
    source = "Zhao et al., TIP 2024"
    Options = MetaPromptOptions
    options: MetaPromptOptions
    edits_layers = True
    eager = "each divides the classes at random, and images among the parts"
    whole_batch = True  # whose images are divided by their classes
    authors_names: ClassVar[Mapping[str, str]] = {"ctx_text": "prompt_learner.ctx", "ctx_vision": "vision_prompt_learner.ctx"}

    def __init__(self, clip: Clip, options: MetaPromptOptions) -> None:
        super().__init__(clip, options)
        layers = min(clip.vision.depth, clip.text.depth)
        depth = options.depth or layers
        if depth > layers:
            raise UsageError(f"depth is {depth}, but the shallower tower of '{clip.name}' has {layers} layers; give 1 to {layers}.")
        if options.frozen_templates is not None:
            check_template(options.frozen_templates, of=" of the frozen class features")
        self.ctx_text = nn.Parameter(random_context(depth, options.n_ctx_text, clip.text.width))  # (depth, n, d_t)
        self.ctx_vision = nn.Parameter(random_context(depth, options.n_ctx_vision, clip.vision.width))  # (depth, n, d_v)

    @property
    def modality(self) -> str:
        return "V, L"

    # ---- features ----

    def class_list(self, names: Sequence[str], template: str | Sequence[str], *, memory_gib: float | None = None) -> ClassList:
        classes = context_class_list(self.clip, names, template, self.options.n_ctx_text, memory_gib=memory_gib)
        return with_teacher(self.clip, classes, template, self.options.frozen_templates, underscores=self.options.keep_underscores)

    def frozen_text(self, classes: ClassList) -> Tensor:
        """Frozen class features (C, embed_dim), normalised."""
        return classes.zero_shot if classes.teacher is None else classes.teacher

    def text_features(self, prompts: Prompts) -> Tensor:
        """Class features (C, embed_dim), normalised, of the learned prompts."""
        first, *deep = self.ctx_text.unbind(0)
        return self.clip.encode_prompts(prompts, _edits(context_edit(self.clip, first), deep))

    def image_features(self, images: AnyImages) -> tuple[Tensor, Tensor]:
        """Prompted and frozen features (B, embed_dim), normalised, of images (B, 3, H, W)."""
        images, tower = Images.of(images), self.clip.vision
        first, *deep = self.ctx_vision.unbind(0)
        pooled = tower.finish(self.clip.enter_image(images, 0), 0, _edits(Edit(tower.pre_norm(first)), deep))
        return F.normalize(pooled.class_token @ tower.projection, dim=-1), self.clip.encode_image(images)

    # ---- training ----

    def loss(self, images: AnyImages, labels: Tensor, classes: ClassList) -> Loss:
        """Cross-entropies of the mean of both logits, and of either."""
        prompted, frozen = self.image_features(images)
        by_image = cosine_logits(prompted, self.frozen_text(classes), self.logit_scale)
        by_text = cosine_logits(frozen, self.text_features(classes.fed), self.logit_scale)
        logits = (by_image + by_text) / 2
        terms = {name: F.cross_entropy(each, labels) for name, each in (("ce", logits), ("image", by_image), ("text", by_text))}
        return Loss(terms["ce"] + terms["image"] + terms["text"], terms, logits.detach(), frozen)

    def stepped(self, batches: Sequence[tuple[Any, Tensor]], classes: ClassList, steps: MoreSteps) -> None:
        """Trains the text prompts on either half of the classes, and moves them to where this does good to the other half. Left out where
        one half has no image in the batch; a half of one class is not held out."""
        halves = self._halves(torch.cat([frozen for frozen, _ in batches]), torch.cat([labels for _, labels in batches]), classes)
        if not all(len(half.labels) for half in halves):
            return
        start, found = self.ctx_text.detach().clone(), []
        for held_out, other in (halves, halves[::-1]):
            if held_out.prompts.classes < 2:
                continue
            steps.update(self._between(steps.gradients(self._loss_of_half(other))))
            found.append(steps.gradients(self._loss_of_half(held_out))[0])
            if len(found) == 1:
                with torch.no_grad():
                    self.ctx_text.copy_(start)
        with torch.no_grad():
            for gradient in found:
                if gradient is not None:
                    self.ctx_text.sub_(gradient, alpha=steps.rate * self.options.meta_step)

    def draw(self, classes: int) -> Tensor:
        """Random order (C,) of the classes; the first half of it is the larger one."""
        return torch.randperm(classes)

    def _halves(self, frozen: Tensor, labels: Tensor, classes: ClassList) -> tuple[Half, Half]:
        order = self.draw(len(classes)).to(labels.device)
        size = -(-len(order) // 2)
        place = order.argsort()[labels]  # (B,), of each image's class in the order
        first = place < size
        return (
            Half(prompts_of(classes.fed, order[:size]), frozen[first], place[first]),
            Half(prompts_of(classes.fed, order[size:]), frozen[~first], place[~first] - size),
        )

    def _loss_of_half(self, half: Half) -> Tensor:
        return F.cross_entropy(cosine_logits(half.image, self.text_features(half.prompts), self.logit_scale), half.labels)

    def _between(self, gradients: Gradients) -> Gradients:
        """Gradients of text and image prompts for a step on half of the classes; the loss does not depend on the latter."""
        text, vision = gradients
        drift = self.options.vision_between == "drift" and vision is None and text is not None
        return [text, torch.zeros_like(self.ctx_vision) if drift else vision]

    # ---- test ----

    def head(self, classes: ClassList) -> MixedHead:
        return MixedHead(self.text_features(classes.fed), self.frozen_text(classes))

    def logits(self, images: AnyImages, head: MixedHead, seen: Tensor | bool) -> Tensor:
        prompted, frozen = self.image_features(images)
        return (cosine_logits(prompted, head.frozen, self.logit_scale) + cosine_logits(frozen, head.text, self.logit_scale)) / 2


def _edits(first: Edit, deep: Sequence[Tensor]) -> Edits:
    """Of the first layer, and of those above it, whose prompts take the place of what the layer below put out."""
    return {0: first, **{i: Edit(tokens) for i, tokens in enumerate(deep, 1)}}
