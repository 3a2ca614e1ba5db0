"""TCP: the names of its options, its prompt without the context, and the class tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmrl.methods.tcp import TCP
from tools.golden.judge import Tensors
from tools.golden.methods import cocoop
from tools.golden.methods.kgcoop import HeldReplay

RENAMED = {"teacher_template": "zero_shot_template", "reg_weight": "loss_weight", "insert_layer": "insert_before_block_index"}


def options(hyper: Mapping[str, Any], tensors: Tensors) -> dict[str, Any]:
    """The context takes the place of the prompt's first words, as in "X X X X {} texture."; each is one token."""
    found = cocoop.options(hyper, tensors)  # its network is told in the same way
    if "prompt_template" in hyper:
        found["template"] = " ".join(hyper["prompt_template"].split()[len(tensors["init.prompt_learner.ctx"]) :])
    return found


class TCPReplay(HeldReplay):
    def before(self) -> None:
        super().before()
        assert isinstance(self.method, TCP)
        self.check("class tokens", "class_prompt", self.method.class_tokens(self.classes))


REPLAY = TCPReplay
