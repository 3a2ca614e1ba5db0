"""CoCoOp: the width of its network, and text features of every image."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from mmrl.methods.cocoop import CoCoOp
from tools.golden.judge import Tensors
from tools.golden.replay import Replay


def options(hyper: Mapping[str, Any], tensors: Tensors) -> dict[str, Any]:
    found = re.search(r"embed\s*//\s*([0-9]+)", str(hyper.get("meta_net", "")))
    return {"reduction": int(found[1])} if found else {}


class CoCoOpReplay(Replay):
    def before(self) -> None:
        super().before()
        assert isinstance(self.method, CoCoOp)
        image = self.clip.encode_image(self.images(0))
        self.check("features", "image_features", image)
        self.check("features", "text_features", self.method.conditional_features(image, self.classes.fed))


REPLAY = CoCoOpReplay
