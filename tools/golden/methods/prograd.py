"""ProGrad: the teacher, and both gradients."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmrl.methods import Loss
from tools.golden.judge import Tensors, note, ours
from tools.golden.replay import Replay, differentiate

RENAMED = {"teacher_template": "template", "prograd_lambda": "LAMBDA", "temperature": "T"}


def options(hyper: Mapping[str, Any], tensors: Tensors) -> dict[str, Any]:
    return {"init": "template" if "template" in str(hyper.get("ctx_init", "")) else "random"}


class ProGradReplay(Replay):
    """The projection has its own numbers: the teacher's loss of every step, and both gradients of step 1."""

    def before(self) -> None:
        super().before()
        self.check("zero-shot features", "text_features_zero_shot", self.classes.held_to)
        image = self.clip.encode_image(self.images(0))
        self.check("zero-shot logits", "zs_logits", self.method.logit_scale * image @ self.classes.held_to.T)

    def loss(self, step: int, loss: Loss) -> None:
        super().loss(step, loss)
        if "kl_losses" in self.case:
            note(self.errors, "teacher's losses", loss.terms["kl"], self.case["kl_losses"][step])
        if step == 0:
            again, differ = self.method.loss(self.images(0), self.tensors["labels"][0], self.classes), differentiate(self.method)
            for term, prefix in (("ce", "grad_xe."), ("kl", "grad_kl.")):
                if self.tensors.behind(prefix):
                    golden = ours(self.method, self.tensors, prefix)
                    for (key, _), found in zip(self.method.named_parameters(), differ(again.terms[term], retain_graph=True), strict=True):
                        assert found is not None
                        note(self.errors, "both gradients", found, golden[key])


REPLAY = ProGradReplay
