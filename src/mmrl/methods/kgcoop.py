"""KgCoOp: visual-language prompt tuning with knowledge-guided context optimization (Yao et al., CVPR 2023)."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from mmrl.clip import AnyImages, ClassList, Clip
from mmrl.methods.authors import SavedAs
from mmrl.methods.coop import CoOp, CoOpOptions
from mmrl.methods.exchange import Loss
from mmrl.methods.prompts import LEARNER, LEARNER_CONSTANTS, with_teacher
from mmrl.methods.registry import register
from mmrl.templates import check_template


class KgCoOpOptions(CoOpOptions):
    n_ctx: int = Field(4, ge=1, le=70, description="number of context tokens; with ctx_init, as many as it has")
    ctx_init: str = Field("a photo of a", max_length=500, description="text that the context starts from; empty: random")
    teacher_template: str | None = Field(
        None, max_length=500, description="prompt of the frozen class features that learned ones are held to; default: the data set's own"
    )
    reg_weight: float = Field(8.0, ge=0, le=1e4, description="weight of the distance to the frozen class features")


@register("kgcoop")
class KgCoOp(CoOp):
    """CoOp whose class features stay near those of a hand-written prompt (section 3.2). The latter are made once for a class list."""

    title = "KgCoOp"
    summary = "learned context, its class features held to those of a written prompt"
    source = "Yao et al., CVPR 2023"
    Options = KgCoOpOptions
    options: KgCoOpOptions
    saved_as = SavedAs(  # the last two are in the authors' files, and their code makes nothing of them
        module=LEARNER, constant=(*LEARNER_CONSTANTS, f"{LEARNER}.bias_vectors", f"{LEARNER}.meta_net.linear1")
    )

    def __init__(self, clip: Clip, options: KgCoOpOptions) -> None:
        super().__init__(clip, options)
        if options.teacher_template is not None:
            check_template(options.teacher_template, of=" of the teacher")

    def class_list(self, names: Sequence[str], template: str | Sequence[str], *, memory_gib: float | None = None) -> ClassList:
        classes = super().class_list(names, template, memory_gib=memory_gib)
        return with_teacher(self.clip, classes, template, self.options.teacher_template)

    def loss(self, images: AnyImages, labels: Tensor, classes: ClassList) -> Loss:
        """As `held_loss`, to the features of the teacher's prompt."""
        text = self.text_features(classes)
        logits = self.combine(self.image_features(images), text, seen=True)
        return held_loss(logits, labels, text, classes.held_to, self.options.reg_weight)


def held_loss(logits: Tensor, labels: Tensor, text: Tensor, teacher: Tensor, weight: float) -> Loss:
    """Cross-entropy and, `weight` times, one minus the mean cosine of class features and the frozen ones: half the squared distance that
    the paper has, as in the authors' code.

    Args:
        logits: (B, C), with labels (B,).
        text: class features (C, embed_dim); `teacher`: the frozen ones, of the same shape.
    """
    terms = {"ce": F.cross_entropy(logits, labels), "reg_text": 1 - F.cosine_similarity(text, teacher, dim=-1).mean()}
    return Loss(terms["ce"] + weight * terms["reg_text"], terms, logits.detach())
