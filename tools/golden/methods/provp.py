"""ProVP: the frozen side, and the parts of the loss."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmrl.methods import Loss
from mmrl.methods.provp import ProVP
from tools.golden.judge import Tensors, note
from tools.golden.replay import Replay

RENAMED = {"n_ctx_vision": "n_prompts", "depth": "layers", "progressive_alpha": "alpha_decay", "template": "prompt"}
PARTS = {"ce": "xe_loss", "ref": "ref_loss"}


def options(hyper: Mapping[str, Any], tensors: Tensors) -> dict[str, Any]:
    """The weight of the second loss, which the authors' code can also leave out."""
    return {"ref_loss_weight": hyper.get("lam", 1.0) if hyper.get("use_ref", True) else 0.0}


class ProVPReplay(Replay):
    """The frozen side, the parts of the loss, and image features after training."""

    def before(self) -> None:
        super().before()
        image = self.clip.encode_image(self.images(0))
        self.check("zero-shot features", "zero_shot_image_features", image)
        self.check("zero-shot logits", "zero_shot_logits", self.method.logit_scale * image @ self.method.head(self.classes).T)

    def loss(self, step: int, loss: Loss) -> None:
        super().loss(step, loss)
        for term, value in loss.terms.items() if "loss_parts" in self.case else ():
            note(self.errors, "parts of the loss", value, self.case["loss_parts"][step][PARTS[term]])

    def after(self) -> None:
        super().after()
        assert isinstance(self.method, ProVP)
        self.check("evaluation features", "eval_image_features", self.method.image_features(self.images(0)).class_token)


REPLAY = ProVPReplay
