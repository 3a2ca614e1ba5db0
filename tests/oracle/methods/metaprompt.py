"""MetaPrompt the plain way: whole prompts and images, prompts put in block by block, every loss from passes of its own."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmrl.methods.metaprompt import MetaPrompt
from tests.oracle.methods.encoders import Encoders, copies


class Plain:
    def __init__(self, method: MetaPrompt, names: Sequence[str], template: str | Sequence[str]) -> None:
        self.parameters, self.encoders, self.options = copies(method), Encoders(method), method.options
        self.scale = method.clip.model.logit_scale.exp()
        n = self.options.n_ctx_text
        self.tokens = self.encoders.tokens(" ".join(["X"] * n) + " {}.", names)
        own = self.options.frozen_templates or ([template] if isinstance(template, str) else template)
        spoken = [name if self.options.keep_underscores else name.replace("_", " ") for name in names]
        texts = [one.replace("{}", name) for one in own for name in spoken]
        tokens = method.clip.tokenizer(texts, context_length=method.clip.context_length).to(self.tokens.device)
        with torch.no_grad():
            self.frozen_text = self.encoders.text(tokens, len(names))

    def text_block(self, layer: int, block: nn.Module, x: Tensor, mask: Tensor | None) -> Tensor:
        ctx, n = self.parameters["ctx_text"], self.options.n_ctx_text
        if 1 <= layer < len(ctx):
            x = torch.cat([x[:, :1], ctx[layer].expand(len(x), -1, -1), x[:, 1 + n :]], dim=1)
        return block(x, attn_mask=mask)

    def image_block(self, layer: int, block: nn.Module, x: Tensor, mask: Tensor | None) -> Tensor:
        ctx, n = self.parameters["ctx_vision"], self.options.n_ctx_vision
        if 1 <= layer < len(ctx):
            x = torch.cat([x[:, :-n], ctx[layer].expand(len(x), -1, -1)], dim=1)
        return block(x, attn_mask=mask)

    def both_logits(self, images: Tensor, classes: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Of prompted images and frozen classes, and of frozen images and prompted classes; (B, C), or (B, n) with `classes` (n,)."""
        chosen = slice(None) if classes is None else classes
        tokens, frozen_text = self.tokens[chosen], self.frozen_text[chosen]
        with torch.no_grad():
            frozen = self.encoders.image(images)
        prompted = self.encoders.image(images, self.image_block, self.parameters["ctx_vision"][0])
        text = self.encoders.text(tokens, len(tokens), self.text_block, self.parameters["ctx_text"][0])
        return self.scale * prompted @ frozen_text.T, self.scale * frozen @ text.T

    def logits(self, images: Tensor) -> Tensor:
        by_image, by_text = self.both_logits(images)
        return 0.5 * (by_image + by_text)

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        by_image, by_text = self.both_logits(images)
        return sum((F.cross_entropy(each, labels) for each in (0.5 * (by_image + by_text), by_image, by_text)), start=torch.zeros(()))

    def half_loss(self, images: Tensor, labels: Tensor, classes: list[int]) -> Tensor:
        """Cross-entropy of the images of some classes among those alone, by their prompts."""
        inside = [i for i, label in enumerate(labels.tolist()) if label in classes]
        own = torch.tensor([classes.index(label) for label in labels[inside].tolist()])
        return F.cross_entropy(self.both_logits(images[inside], torch.tensor(classes))[1], own)

    def stepped(self, images: Tensor, labels: Tensor, optimizer: torch.optim.Optimizer, order: Tensor) -> None:
        """What follows the step of a batch, with the classes in a given order."""
        text, vision = self.parameters["ctx_text"], self.parameters["ctx_vision"]
        size = (len(order) + 1) // 2
        halves = [order[:size].tolist(), order[size:].tolist()]
        if any(not set(half) & set(labels.tolist()) for half in halves):
            return
        start, held = text.detach().clone(), []
        for i in (0, 1):
            if len(halves[i]) < 2:
                continue
            (text.grad,) = torch.autograd.grad(self.half_loss(images, labels, halves[1 - i]), [text])
            vision.grad = torch.zeros_like(vision) if self.options.vision_between == "drift" else None
            optimizer.step()
            held += torch.autograd.grad(self.half_loss(images, labels, halves[i]), [text])
            if len(held) == 1:
                text.data = start.clone()
        text.data -= optimizer.param_groups[0]["lr"] * self.options.meta_step * sum(held)


def plain(method: MetaPrompt, names: Sequence[str], template: str | Sequence[str]) -> Plain:
    return Plain(method, names, template)
