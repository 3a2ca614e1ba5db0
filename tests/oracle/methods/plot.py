"""PLOT the plain way: N times all prompts, whole, through the text tower, and one transport problem for each image and class."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmrl.methods.plot import PLOT, TransportOptions
from tests.oracle.methods.coop import ContextPrompts, trained_rows
from tests.oracle.methods.encoders import copies


def plans(similarity: Tensor, o: TransportOptions) -> tuple[Tensor, int]:
    """Transport plans (B, C, M, N) of cosines (B, C, M, N), and the iterations that they took."""
    m, n = similarity.shape[2:]
    kernel = torch.exp(-(1 - similarity) / o.sinkhorn_eps)
    r, c = torch.ones_like(kernel[..., 0]), torch.ones_like(kernel[..., 0, :])  # (B, C, M), (B, C, N)
    taken = 0
    for i in range(o.sinkhorn_max_iter):
        old = r
        r = (1 / m) / torch.einsum("xymn,xyn->xym", kernel, c)
        c = (1 / n) / torch.einsum("xymn,xym->xyn", kernel, r)
        taken = i + 1
        if float((r - old).abs().mean()) < o.sinkhorn_threshold:
            break
    return torch.einsum("xym,xymn,xyn->xymn", r, kernel, c), taken


class Plain:
    def __init__(self, method: PLOT, names: Sequence[str]) -> None:
        self.parameters: dict[str, nn.Parameter] = copies(method)
        self.model, self.scale, self.options = method.clip.model, method.clip.model.logit_scale.exp(), method.options
        self.prompts = ContextPrompts(method, names, method.n_ctx, method.options.class_token_position)
        self.rows = trained_rows(method, names) if method.options.csc else None
        self.iterations = 0  # of the last batch

    def image_tokens(self, images: Tensor) -> Tensor:
        """Class token and patches (B, 1 + M, embed_dim) after the final norm and the projection."""
        visual = self.model.visual
        x = visual.conv1(images).flatten(2).transpose(1, 2)
        x = visual.ln_pre(torch.cat([visual.class_embedding.expand(len(x), 1, -1), x], dim=1) + visual.positional_embedding)
        for block in visual.transformer.resblocks:
            x = block(x)
        return visual.ln_post(x) @ visual.proj

    def logits(self, images: Tensor) -> Tensor:
        tokens = F.normalize(self.image_tokens(images), dim=-1)
        ctx: Tensor = self.parameters["ctx"]
        sets = ctx if self.rows is None else ctx[self.rows].transpose(0, 1)  # N of (n, d), or of (C, n, d)
        text = torch.stack([self.prompts.encode(self.prompts.put_together(one)) for one in sets])  # (N, C, embed_dim)
        similarity = torch.einsum("bme,nce->bcmn", tokens[:, 1:], F.normalize(text, dim=-1))
        with torch.no_grad():
            plan, self.iterations = plans(similarity, self.options)
        logits = self.scale * (plan * similarity).sum((2, 3))
        if self.options.add_pooled_logits:
            logits = logits + self.scale * tokens[:, 0] @ F.normalize(text.mean(0), dim=-1).T
        return logits

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(self.logits(images), labels)


def plain(method: PLOT, names: Sequence[str], template: str | Sequence[str]) -> Plain:
    """PLOT has its own prompt for every data set, so `template` is not used."""
    return Plain(method, names)
