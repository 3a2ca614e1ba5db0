"""KgCoOp (Yao et al., CVPR 2023) the plain way: CoOp's prompts, and class features that stay near the teacher's."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from mmrl.methods.kgcoop import KgCoOp
from tests.oracle.methods import coop
from tests.oracle.methods.encoders import Encoders


class Plain(coop.Plain):
    def __init__(self, method: KgCoOp, names: Sequence[str], template: str | Sequence[str]) -> None:
        super().__init__(method, names)
        self.weight, encoders = method.options.reg_weight, Encoders(method)
        with torch.no_grad():
            self.teacher = encoders.text(encoders.tokens(method.options.teacher_template or template, names), len(names))

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy, and the weighted distance of the text features to the teacher's."""
        text = self.text()
        distance = 1 - (text * self.teacher).sum(-1).mean()
        return F.cross_entropy(self.scored(images, text), labels) + self.weight * distance


def plain(method: KgCoOp, names: Sequence[str], template: str | Sequence[str]) -> Plain:
    return Plain(method, names, template)
