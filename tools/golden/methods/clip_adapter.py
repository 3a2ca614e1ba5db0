"""CLIP-Adapter: what the adapter puts out, before it is blended."""

from __future__ import annotations

from mmrl.methods.clip_adapter import CLIPAdapter
from tools.golden.replay import Replay


class AdapterReplay(Replay):
    """What the adapter is given, and what it puts out."""

    def before(self) -> None:
        super().before()
        assert isinstance(self.method, CLIPAdapter)
        frozen = self.clip.encode_image(self.images(0), normalise=False)
        self.check("features", "image_encoder_raw", frozen)
        self.check("features", "adapter_output", self.method.adapted(frozen))


REPLAY = AdapterReplay
