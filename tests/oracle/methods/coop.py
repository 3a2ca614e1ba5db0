"""CoOp the plain way, and whole encoders for prompts that are put together from embeddings."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmrl.methods import Method
from mmrl.methods.coop import CoOp
from tests.oracle.methods.encoders import copies


class ContextPrompts:
    """Prompts 'BOT context name . EOT' of all classes at all positions of the text tower, in one of the authors' three orders.

    The frozen words are embedded once, as in the authors' code.
    """

    def __init__(self, method: Method, names: Sequence[str], n: int, position: str) -> None:
        clip = method.clip
        self.model, self.n, self.position = clip.model, n, position
        spoken = [name.replace("_", " ") for name in names]
        texts = [" ".join(["X"] * n + [name + "."]) for name in spoken]
        self.tokens = clip.tokenizer(texts, context_length=clip.context_length).to(self.model.positional_embedding.device)  # (C, S)
        self.lengths = [len(clip.tokenizer.encode(name)) for name in spoken]
        self.embedded = self.model.token_embedding(self.tokens).detach()  # (C, S, d)

    def put_together(self, ctx: Tensor) -> Tensor:
        """Embedded prompts (C, S, d), without positions, from context (n, d) or (C, n, d)."""
        ctx = ctx.expand(len(self.embedded), self.n, -1)
        first, rest = self.embedded[:, :1], self.embedded[:, 1 + self.n :]
        if self.position == "end":
            return torch.cat([first, ctx, rest], dim=1)
        ahead = self.n // 2 if self.position == "middle" else 0
        prompts = []
        for i, length in enumerate(self.lengths):
            name, behind = rest[i, :length], rest[i, length:]
            prompts.append(torch.cat([first[i], ctx[i, :ahead], name, ctx[i, ahead:], behind]))
        return torch.stack(prompts)

    def encode(self, prompts: Tensor) -> Tensor:
        """What the text tower puts out for prompts (C, S, d): (C, embed_dim), not normalised."""
        model = self.model
        x = prompts + model.positional_embedding
        mask = torch.full((x.shape[1], x.shape[1]), float("-inf"), dtype=x.dtype, device=x.device).triu(1)
        for block in model.transformer.resblocks:
            x = block(x, attn_mask=mask)
        x = model.ln_final(x)
        return x[torch.arange(len(x), device=x.device), self.tokens.argmax(-1)] @ model.text_projection


def trained_rows(method: Method, names: Sequence[str]) -> list[int]:
    """Of class-specific context: where each name stands among the classes trained on."""
    assert method.task is not None
    return [method.task.names.index(name) for name in names]


class Plain:
    def __init__(self, method: CoOp, names: Sequence[str]) -> None:
        self.parameters: dict[str, nn.Parameter] = copies(method)
        self.model, self.scale = method.clip.model, method.clip.model.logit_scale.exp()
        self.prompts = ContextPrompts(method, names, method.n_ctx, method.options.class_token_position)
        self.rows = trained_rows(method, names) if method.options.csc else None

    def text(self) -> Tensor:
        """Class features (C, embed_dim), normalised."""
        ctx: Tensor = self.parameters["ctx"]
        prompts = self.prompts.put_together(ctx if self.rows is None else ctx[self.rows])
        return F.normalize(self.prompts.encode(prompts), dim=-1)

    def logits(self, images: Tensor) -> Tensor:
        return self.scored(images, self.text())

    def scored(self, images: Tensor, text: Tensor) -> Tensor:
        """Logits (B, C) of images among classes with features `text`."""
        return self.scale * F.normalize(self.model.encode_image(images), dim=-1) @ text.T

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(self.logits(images), labels)


def plain(method: CoOp, names: Sequence[str], template: str | Sequence[str]) -> Plain:
    """CoOp has its own prompt for every data set, so `template` is not used."""
    return Plain(method, names)
