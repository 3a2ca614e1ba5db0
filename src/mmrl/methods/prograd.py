"""ProGrad: prompt-aligned gradient for prompt tuning (Zhu et al., ICCV 2023)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from mmrl.clip import AnyImages, ClassList, Clip
from mmrl.errors import UsageError
from mmrl.methods.authors import require_tower, sizes_of
from mmrl.methods.exchange import Differentiate, Gradients, Loss, Task
from mmrl.methods.options import MethodOptions
from mmrl.methods.prompts import (
    LEARNER_ALONE,
    context_edit,
    context_of,
    context_texts,
    random_context,
    with_prompts,
    with_teacher,
)
from mmrl.methods.registry import register
from mmrl.methods.two_tower import TwoTower, cosine_logits
from mmrl.templates import check_template, template_list


class ProGradOptions(MethodOptions):
    n_ctx: int = Field(16, ge=1, le=70, description="number of context tokens")
    init: Literal["template", "random"] = Field(
        "template", description="start of the context: zeros and, in the last positions, the teacher's words in front of the class name"
    )
    teacher_template: str | None = Field(
        None,
        max_length=500,
        description="prompt of the zero-shot teacher; default: the data set's own (of several, the first starts the context)",
    )
    prograd_lambda: float = Field(1.0, ge=0, le=100, description="share of the part against the teacher's direction that is taken away")
    temperature: float = Field(1.0, ge=0.01, le=100, description="of teacher and student in the teacher's loss")


@register("prograd")
class ProGrad(TwoTower):
    """CoOp whose gradient never points against the zero-shot model's: the part that does is projected away (section 3.2).

    Both losses come from one forward pass of the prompts and one of the frozen image tower, which student and teacher share.
    """

    title = "ProGrad"
    summary = "learned context, updated only where the zero-shot model does not object"
    source = "Zhu et al., ICCV 2023"
    Options = ProGradOptions
    options: ProGradOptions
    edits_layers = True
    authors_names: ClassVar[Mapping[str, str]] = {"ctx": "prompt_learner.ctx"}
    saved_as = LEARNER_ALONE
    ctx: nn.Parameter  # (n, d), made in `setup`

    def __init__(self, clip: Clip, options: ProGradOptions) -> None:
        super().__init__(clip, options)
        if options.teacher_template is not None:
            check_template(options.teacher_template, of=" of the teacher")

    @property
    def modality(self) -> str:
        return "L"

    @classmethod
    def options_of(cls, tensors: Mapping[str, Tensor], clip: Clip, *, where: str) -> dict[str, Any]:
        n, width = sizes_of(tensors, "ctx", 2, where=where)
        require_tower(clip, "text", width=width, layers=1, where=where)
        return {"n_ctx": n, "init": "random"}

    def setup(self, task: Task) -> None:
        """Makes the context, which may start from the data set's prompt.

        Raises:
            UsageError: the prompt has more words in front of the class name than there are context tokens.
        """
        super().setup(task)
        n, width = self.options.n_ctx, self.clip.text.width
        start = random_context(n, width) if self.options.init == "random" else self._padded(self._teacher(task.template)[0])
        self.ctx = nn.Parameter(start)

    def _teacher(self, template: str | Sequence[str]) -> tuple[str, ...]:
        """The teacher's prompts on data whose own prompt is `template`."""
        given = self.options.teacher_template
        return template_list(template if given is None else given)

    def _padded(self, template: str) -> Tensor:
        """Zero vectors, then the words of `template` in front of `{}`: (n, d)."""
        n, positions = self.options.n_ctx, self.clip.text.positions
        words = template.split("{}")[0].strip()
        start = context_of(self.clip, words) if words else positions.new_zeros(0, positions.shape[1])
        if len(start) > n:
            raise UsageError(
                f"'{words}', which the context starts from, has {len(start)} tokens, and n_ctx is {n}; "
                f"set n_ctx to {len(start)} or more, or init to random."
            )
        return F.pad(start, (0, 0, n - len(start), 0))

    def texts(self, names: Sequence[str], template: str | Sequence[str]) -> list[str]:
        return context_texts(names, self.options.n_ctx)

    def class_list(self, names: Sequence[str], template: str | Sequence[str], *, memory_gib: float | None = None) -> ClassList:
        texts, n = self.texts(names, template), self.options.n_ctx
        classes = with_prompts(self.clip, names, template, texts, slots=n, memory_gib=memory_gib)
        return with_teacher(self.clip, classes, template, self._teacher(template))

    def text_features(self, classes: ClassList) -> Tensor:
        return self.clip.encode_prompts(classes.fed, {0: context_edit(self.clip, self.ctx)})

    def loss(self, images: AnyImages, labels: Tensor, classes: ClassList) -> Loss:
        """The cross-entropy. Its terms are that ("ce") and the soft one to the teacher ("kl": T^2 x the Kullback-Leibler divergence and
        a constant), which acts on the direction of a step alone: see `gradients`."""
        image, temperature = self.image_features(images).class_token, self.options.temperature
        logits = cosine_logits(image, self.text_features(classes), self.logit_scale)
        target = (cosine_logits(image, classes.held_to, self.logit_scale) / temperature).softmax(-1)
        terms = {
            "ce": F.cross_entropy(logits, labels),
            "kl": F.cross_entropy(logits / temperature, target) * temperature**2,
        }
        return Loss(terms["ce"], terms, logits.detach())

    def gradients(self, images: AnyImages, labels: Tensor, classes: ClassList, differentiate: Differentiate) -> tuple[Loss, Gradients]:
        """Loss and projected gradients, after two backward passes of one forward pass."""
        loss = self.loss(images, labels, classes)
        own = differentiate(loss.terms["ce"], retain_graph=True)
        teachers = differentiate(loss.terms["kl"])
        found = [g if g is None or t is None else projected(g, t, self.options.prograd_lambda) for g, t in zip(own, teachers)]
        return loss, found


def projected(gradient: Tensor, teacher: Tensor, share: float) -> Tensor:
    """`gradient` less `share` of its part along `teacher`, where that part points against it (section 3.2); both of one shape."""
    norm = torch.linalg.vector_norm(teacher)
    unit = torch.where(norm > 0, teacher / norm, torch.zeros_like(teacher))  # no direction, no objection
    return gradient - share * (gradient * unit).sum().clamp(max=0) * unit
