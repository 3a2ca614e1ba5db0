"""ProGrad (Zhu et al., ICCV 2023) the plain way: an image pass each for student and teacher, whole prompts, two backward passes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from mmrl.methods.prograd import ProGrad
from tests.oracle.methods.coop import ContextPrompts
from tests.oracle.methods.encoders import Encoders, copies


class Plain:
    def __init__(self, method: ProGrad, names: Sequence[str], template: str | Sequence[str]) -> None:
        self.parameters, self.options = copies(method), method.options
        self.model, self.scale = method.clip.model, method.clip.model.logit_scale.exp()
        self.prompts = ContextPrompts(method, names, self.options.n_ctx, "end")
        encoders, teachers = Encoders(method), self.options.teacher_template or template
        with torch.no_grad():
            self.teacher = encoders.text(encoders.tokens(teachers, names), len(names))

    def logits(self, images: Tensor) -> Tensor:
        """The student's, (B, C)."""
        image = F.normalize(self.model.encode_image(images), dim=-1)
        text = F.normalize(self.prompts.encode(self.prompts.put_together(self.parameters["ctx"])), dim=-1)
        return self.scale * image @ text.T

    def losses(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Cross-entropy, and soft cross-entropy to the teacher."""
        temperature = self.options.temperature
        with torch.no_grad():
            expected = self.scale * F.normalize(self.model.encode_image(images), dim=-1) @ self.teacher.T
        logits = self.logits(images)
        soft = -((expected / temperature).softmax(-1) * (logits / temperature).log_softmax(-1)).sum(-1).mean()
        return F.cross_entropy(logits, labels), soft * temperature**2

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        return self.losses(images, labels)[0]

    def gradients(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """What the optimiser gets, by parameter: projected where the angle to the teacher's gradient is over 90 degrees."""
        own_loss, teachers_loss = self.losses(images, labels)
        values = list(self.parameters.values())
        teachers = torch.autograd.grad(teachers_loss, values, retain_graph=True)
        own = torch.autograd.grad(own_loss, values)
        found = {}
        for name, g, t in zip(self.parameters, own, teachers):
            unit = t / t.norm()
            along = torch.dot(g.flatten(), unit.flatten())
            found[name] = g - self.options.prograd_lambda * along * unit if along < 0 else g
        return found


def plain(method: ProGrad, names: Sequence[str], template: str | Sequence[str]) -> Plain:
    return Plain(method, names, template)
