"""PLOT++ the plain way: every prompt of every class and every image prompt whole through its tower, one transport problem a pair."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmrl.methods.plotpp import PLOTPP
from tests.oracle.methods.encoders import copies
from tests.oracle.methods.plot import plans


class Plain:
    def __init__(self, method: PLOTPP, names: Sequence[str]) -> None:
        self.parameters: dict[str, nn.Parameter] = copies(method)
        self.ctx: Tensor = self.parameters.get("ctx", method.ctx)  # (N, n, d), not trained where the image tower learns alone
        self.model, self.scale, self.options = method.clip.model, method.clip.model.logit_scale.exp(), method.options
        texts = self.options.ctx_init.split("|") if self.options.ctx_init else [" ".join(["X"] * self.options.n_ctx)] * len(self.ctx)
        clip, spoken = method.clip, [name.replace("_", " ") for name in names]
        self.tokens = [
            clip.tokenizer([f"{text.strip()} {name}." for name in spoken], context_length=clip.context_length).to(self.ctx.device)
            for text, _ in zip(texts, self.ctx)
        ]  # N of (C, S)
        self.iterations = 0  # of the last batch

    def text(self, tokens: Tensor, ctx: Tensor) -> Tensor:
        """What the text tower puts out for prompts (C, S) whose tokens behind BOT are `ctx` (n, d): (C, embed_dim), not normalised."""
        model, words = self.model, self.model.token_embedding(tokens)
        x = torch.cat([words[:, :1], ctx.expand(len(words), -1, -1), words[:, 1 + len(ctx) :]], dim=1) + model.positional_embedding
        mask = torch.full((x.shape[1], x.shape[1]), float("-inf"), dtype=x.dtype, device=x.device).triu(1)
        for block in model.transformer.resblocks:
            x = block(x, attn_mask=mask)
        return model.ln_final(x)[torch.arange(len(x), device=x.device), tokens.argmax(-1)] @ model.text_projection

    def image(self, images: Tensor, prompt: Tensor) -> Tensor:
        """Class token (B, embed_dim) of images with the tokens of one image prompt (k, d) at their end, not normalised."""
        visual = self.model.visual
        x = visual.conv1(images).flatten(2).transpose(1, 2)
        x = torch.cat([visual.class_embedding.expand(len(x), 1, -1), x], dim=1) + visual.positional_embedding
        x = visual.ln_pre(torch.cat([x, prompt.expand(len(x), -1, -1)], dim=1))
        for block in visual.transformer.resblocks:
            x = block(x)
        return visual.ln_post(x[:, 0]) @ visual.proj

    def logits(self, images: Tensor) -> Tensor:
        image = torch.stack([self.image(images, prompt) for prompt in self.parameters["ctx_vision"]])  # (M, B, embed_dim)
        text = torch.stack([self.text(tokens, ctx) for tokens, ctx in zip(self.tokens, self.ctx)])  # (N, C, embed_dim)
        similarity = torch.einsum("mbe,nce->bcmn", F.normalize(image, dim=-1), F.normalize(text, dim=-1))
        with torch.no_grad():
            plan, self.iterations = plans(similarity, self.options)
        logits = self.scale * (plan * similarity).sum((2, 3))
        if self.options.add_pooled_logits:
            logits = logits + self.scale * F.normalize(image.mean(0), dim=-1) @ F.normalize(text.mean(0), dim=-1).T
        return logits

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(self.logits(images), labels)


def plain(method: PLOTPP, names: Sequence[str], template: str | Sequence[str]) -> Plain:
    """PLOT++ has prompts of its own, so `template` is not used."""
    return Plain(method, names)
