"""KgCoOp: the names of its options, the teacher, and the distance to it."""

from __future__ import annotations

from mmrl.methods import Loss
from tools.golden.methods.coop import options  # noqa: F401  (its contexts are told in the same way)
from tools.golden.replay import Replay

RENAMED = {"teacher_template": "zero_shot_template", "reg_weight": "W"}


class HeldReplay(Replay):
    """Of a method that is held to frozen class features."""

    def before(self) -> None:
        super().before()
        self.check("zero-shot features", "text_features_zero_shot", self.classes.held_to)

    def loss(self, step: int, loss: Loss) -> None:
        super().loss(step, loss)
        if step == 0:
            self.check("losses", "loss", loss.total.detach())
            self.check("distance", "score", loss.terms["reg_text"].detach())


REPLAY = HeldReplay
