"""PLOT and PLOT++: local features, plans and what they carry."""

from __future__ import annotations

import torch

from mmrl.methods.plot import Transport, transport_plan
from tools.golden.methods.coop import options  # noqa: F401  (its contexts are told in the same way)
from tools.golden.replay import Replay

RENAMED = {"n_prompts": "N", "sinkhorn_eps": "eps", "sinkhorn_max_iter": "max_iter", "sinkhorn_threshold": "thresh"}


class TransportReplay(Replay):
    """Local features, plans and what they carry."""

    def before(self) -> None:
        super().before()
        assert isinstance(self.method, Transport)
        o, scale = self.method.options, self.method.logit_scale
        text, image = self.method.text_features(self.classes), self.method.image_features(self.images(0))
        self.check("features", "text_encoder_raw", self.method.encoded_prompts(self.classes).flatten(0, 1))
        self.check("features", "text_features", text.prompts)
        self.check("features", "image_features", image.local.transpose(0, 1))
        self.check("features", "image_feature_pool", image.pooled)
        self.check("logits", "pooled_logits", scale * image.pooled @ text.pooled.T)
        similarity = torch.einsum("bmd,ncd->bcmn", image.local, text.prompts).flatten(0, 1)
        plan = transport_plan(similarity, eps=o.sinkhorn_eps, max_iter=o.sinkhorn_max_iter, threshold=o.sinkhorn_threshold)
        self.check("transport", "sim", similarity)
        self.check("transport", "transport_plan", plan)
        self.check("transport", "sim_op", (plan * similarity).sum((1, 2)).unflatten(0, (len(image.pooled), -1)))


REPLAY = TransportReplay
