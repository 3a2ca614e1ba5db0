"""CoOp: learning to prompt for vision-language models (Zhou et al., IJCV 2022)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from pydantic import Field
from torch import Tensor, nn

from mmrl.clip import ClassList, Clip
from mmrl.methods.authors import require_tower, sizes_of
from mmrl.methods.exchange import Task
from mmrl.methods.options import MethodOptions
from mmrl.methods.prompts import (
    LEARNER_ALONE,
    Position,
    context_class_list,
    context_of,
    context_texts,
    encode_context,
    random_context,
)
from mmrl.methods.registry import register
from mmrl.methods.two_tower import TwoTower


class CoOpOptions(MethodOptions):
    n_ctx: int = Field(16, ge=1, le=70, description="number of context tokens; with ctx_init, as many as it has")
    ctx_init: str = Field("", max_length=500, description="text that the context starts from; default: random")
    csc: bool = Field(False, description="class-specific context: each class learns its own, and no new class can be named")
    class_token_position: Position = Field("end", description="where the class name stands in the context")


@register("coop")
class CoOp(TwoTower):
    """Context vectors in place of "a photo of a", learned by cross-entropy; both towers stay as they are (section 3.2).

    Shared context in front of the class name runs through the text tower once, whatever the number of classes.
    """

    title = "CoOp"
    summary = "learned context in the prompt"
    source = "Zhou et al., IJCV 2022"
    Options: ClassVar[type[MethodOptions]] = CoOpOptions
    options: CoOpOptions
    edits_layers = True
    authors_names: ClassVar[Mapping[str, str]] = {"ctx": "prompt_learner.ctx"}
    saved_as = LEARNER_ALONE
    ctx: nn.Parameter

    def __init__(self, clip: Clip, options: CoOpOptions) -> None:
        super().__init__(clip, options)
        start = context_of(clip, options.ctx_init) if options.ctx_init else None
        self.n_ctx = options.n_ctx if start is None else len(start)
        self._start = start
        if not options.csc:
            self.ctx = nn.Parameter(random_context(self.n_ctx, clip.text.width) if start is None else start)  # (n, d)

    @classmethod
    def open_vocabulary(cls, options: MethodOptions) -> bool:
        assert isinstance(options, CoOpOptions)
        return not options.csc

    @property
    def modality(self) -> str:
        return "L"

    @classmethod
    def options_of(cls, tensors: Mapping[str, Tensor], clip: Clip, *, where: str) -> dict[str, Any]:
        *classes, n, width = sizes_of(tensors, "ctx", 2, 3, where=where)
        require_tower(clip, "text", width=width, layers=1, where=where)
        return {"n_ctx": n, "csc": bool(classes), "ctx_init": ""}

    def setup(self, task: Task) -> None:
        super().setup(task)
        if self.options.csc:
            shape = (len(task.names), self.n_ctx, self.clip.text.width)
            self.ctx = nn.Parameter(random_context(*shape) if self._start is None else self._start.repeat(shape[0], 1, 1))  # (C, n, d)

    def texts(self, names: Sequence[str], template: str | Sequence[str]) -> list[str]:
        return context_texts(names, self.n_ctx)

    def class_list(self, names: Sequence[str], template: str | Sequence[str], *, memory_gib: float | None = None) -> ClassList:
        return context_class_list(self.clip, names, template, self.n_ctx, position=self.options.class_token_position, memory_gib=memory_gib)

    def text_features(self, classes: ClassList) -> Tensor:
        ctx = self.ctx[self.trained_columns(classes)] if self.options.csc else self.ctx
        return encode_context(self.clip, classes.fed, ctx)
