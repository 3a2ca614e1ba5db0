"""CLIP-LoRA: which matrices it changes, and recorded dropout."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from mmrl.methods.clip_lora import CLIPLoRA
from mmrl.templates import fill
from tools.golden.dropout import replayed_dropout
from tools.golden.judge import Tensors
from tools.golden.replay import Replay

RENAMED = {"rank": "r", "dropout": "dropout_rate", "template": "prompt"}


def options(hyper: Mapping[str, Any], tensors: Tensors) -> dict[str, Any]:
    """Matrices "q,k,v" and a position "all (12+12 blocks)". Without dropout the authors' code stops gradients at the changes' inputs."""
    words = {option: str(hyper[theirs]) for option, theirs in (("matrices", "params"), ("position", "position")) if theirs in hyper}
    found: dict[str, Any] = {"detach_input": hyper.get("dropout_rate") == 0}
    found |= {"position": words["position"].split()[0]} if "position" in words else {}
    return found | ({"matrices": "".join(part for part in "qkvo" if part in words["matrices"])} if "matrices" in words else {})


class CLIPLoRAReplay(Replay):
    def dropout(self) -> AbstractContextManager[None]:
        if not self.tensors.behind("dropout_keep."):
            return nullcontext()
        assert isinstance(self.method, CLIPLoRA)
        return replayed_dropout(self.method, self.tensors, self.classes)

    def before(self) -> None:
        super().before()
        prompts = fill(self.case["hyper"]["prompt"], self.classes.names)
        self.check("zero-shot features", "zero_shot_text_features", self.clip.encode_text(prompts))


REPLAY = CLIPLoRAReplay
