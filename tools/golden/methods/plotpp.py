"""PLOT++: its texts, and image features before they are normalised."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmrl.methods.plotpp import PLOTPP
from tools.golden.judge import Tensors
from tools.golden.methods import plot

RENAMED = {**plot.RENAMED, "n_vision_prompts": "M", "add_pooled_logits": "trade_off", "trained": "model_upd"}


def options(hyper: Mapping[str, Any], tensors: Tensors) -> dict[str, Any]:
    """One text for each prompt, or none."""
    texts = hyper.get("ctx_init", "")
    return {"ctx_init": texts if isinstance(texts, str) else "|".join(texts)}


class PLOTPPReplay(plot.TransportReplay):
    def before(self) -> None:
        super().before()
        assert isinstance(self.method, PLOTPP)
        self.check("features", "image_encoder_raw", self.method.encoded_images(self.images(0)))


REPLAY = PLOTPPReplay
