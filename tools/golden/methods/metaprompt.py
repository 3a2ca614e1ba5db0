"""MetaPrompt: both logits, the order of the classes, and the losses of the steps on halves of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from mmrl.methods import Gradients
from mmrl.methods.metaprompt import MetaPrompt
from mmrl.templates import template_list
from tools.golden.judge import Tensors, note
from tools.golden.replay import Replay, Steps

RENAMED = {"depth": "layers"}
BETWEEN = {"set_to_none=False": "drift", "set_to_none=True": "still"}


def options(hyper: Mapping[str, Any], tensors: Tensors) -> dict[str, Any]:
    templates = hyper.get("templates", hyper.get("template", ()))
    found = {"frozen_templates": template_list(templates), "vision_between": BETWEEN.get(hyper.get("zero_grad", ""))}
    return {key: value for key, value in found.items() if value}


@dataclass
class HalfSteps(Steps):
    """Notes the losses: of a step on one half, of the half held out, and again."""

    losses: list[Tensor] = field(default_factory=list)

    def gradients(self, total: Tensor) -> Gradients:
        self.losses.append(total.detach())
        return super().gradients(total)


class MetaPromptReplay(Replay):
    """Both logits, and every step on halves of the classes."""

    def before(self) -> None:
        super().before()
        method, scale = self.method, self.method.logit_scale
        assert isinstance(method, MetaPrompt)
        prompted, frozen = method.image_features(self.images(0))
        text, frozen_text = method.head(self.classes)
        for key, found in {"image_features": prompted, "text_features": text}.items():
            self.check("features", key, found)
        for key, found in {"zero_shot_image_features": frozen, "zero_shot_text_features": frozen_text}.items():
            self.check("zero-shot features", key, found)
        self.check("both logits", "logits_image_prompt", scale * prompted @ frozen_text.T)
        self.check("both logits", "logits_text_prompt", scale * frozen @ text.T)

    def recorded(self) -> None:
        assert isinstance(self.method, MetaPrompt)
        orders = iter(self.tensors["class_permutation"])
        self.method.draw = lambda classes: next(orders)  # type: ignore[method-assign]

    def more(self, step: int, optimizer: torch.optim.Optimizer) -> Steps:
        assert isinstance(self.method, MetaPrompt)
        order = self.tensors["class_permutation"][step]
        self.method.draw = lambda classes: order  # type: ignore[method-assign]
        self.halves = HalfSteps(self.method, optimizer)
        return self.halves

    def stepped(self, step: int) -> None:
        losses = self.halves.losses
        if "inner_losses_per_step" in self.case:
            for found, golden in zip(losses[::2], self.case["inner_losses_per_step"][step], strict=True):
                note(self.errors, "losses of halves", found, golden)
        if "last_heldout_loss_per_step" in self.case and losses:
            note(self.errors, "losses of halves", losses[-1], self.case["last_heldout_loss_per_step"][step])


REPLAY = MetaPromptReplay
