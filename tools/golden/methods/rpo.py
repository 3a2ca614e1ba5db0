"""RPO: its prompt, and what CLIP's own tokens give beside the prompts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmrl.methods.rpo import RPO
from tools.golden.judge import Tensors
from tools.golden.replay import Replay

RENAMED = {"n_prompts": "K"}


def options(hyper: Mapping[str, Any], tensors: Tensors) -> dict[str, Any]:
    """In the authors' prompts the class name stands at "_"."""
    return {"template": str(hyper["prompt"]).replace("_", "{}")} if "prompt" in hyper else {}


class RPOReplay(Replay):
    def before(self) -> None:
        super().before()
        assert isinstance(self.method, RPO)
        self.check("features", "text_features", self.method.text_features(self.classes))
        self.check("features", "image_features", self.method.image_features(self.images(0)))
        self.check("zero-shot features", "text_features_eot", self.clip.encode_prompts(self.classes.fed))
        self.check("zero-shot features", "image_features_cls", self.clip.encode_image(self.images(0)))


REPLAY = RPOReplay
