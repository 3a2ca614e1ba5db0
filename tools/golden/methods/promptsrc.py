"""PromptSRC: the frozen side, the parts of the loss, and the average of the prompts."""

from __future__ import annotations

import re

from mmrl.methods import Loss
from mmrl.methods.promptsrc import TEACHER_TEMPLATES, PromptSRC
from mmrl.templates import fill
from tools.golden.judge import note
from tools.golden.replay import Replay

RENAMED = {"teacher_templates": "templates_used"}


class PromptSRCReplay(Replay):
    """The frozen side, the parts of the loss, and the logits before the prompts are averaged."""

    def before(self) -> None:
        super().before()
        assert isinstance(self.method, PromptSRC)
        teacher, image = self.method.teacher(self.classes), self.clip.encode_image(self.images(0))
        self.check("zero-shot features", "fixed_text_features", teacher)
        self.check("zero-shot features", "zero_shot_image_features", image)
        self.check("zero-shot logits", "zero_shot_logits", self.method.logit_scale * image @ teacher.T)
        for key, templates in (("embeddings", self.method.options.teacher_templates), ("embeddings_all60", TEACHER_TEMPLATES)):
            if f"fixed_text_{key}" in self.tensors:
                each = self.clip.encode_text(fill(templates, self.classes.names), normalise=False)
                self.check("zero-shot features", f"fixed_text_{key}", each.unflatten(0, (len(templates), -1)).mean(0))

    def loss(self, step: int, loss: Loss) -> None:
        super().loss(step, loss)
        weights = self.method.options.model_dump()
        parts = {"ce": ("ce", ""), "l1_text": ("reg_text", "text"), "l1_image": ("reg_image", "image"), "kl": ("kl", "logit")}
        for part, golden in self.case.get("step1_loss_parts", {}).items() if step == 0 else ():
            term, weight = parts[re.sub("_x[0-9.]+$", "", part)]  # the weight is in the name, as in l1_text_x25
            note(self.errors, "losses", loss.terms[term] * weights.get(f"{weight}_loss_weight", 1), golden)

    def trained(self) -> None:
        logits = self.method.logits(self.images(0), self.method.head(self.classes), seen=True)
        self.check("evaluation logits", "eval_logits_before_gpa", logits)


REPLAY = PromptSRCReplay
