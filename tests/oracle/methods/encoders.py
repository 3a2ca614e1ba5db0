"""What plain forms of methods that change both towers have in common: whole encoders over open_clip's modules, nothing shared."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmrl.methods import Method

Run = Callable[[int, nn.Module, Tensor, Tensor | None], Tensor]  # index from 0, open_clip's block, its input (N, S, d), mask -> its output


def plain_block(layer: int, block: nn.Module, x: Tensor, mask: Tensor | None) -> Tensor:
    return block(x, attn_mask=mask)


def copies(method: Method) -> dict[str, nn.Parameter]:
    """The method's parameters, of the same values."""
    return {name: nn.Parameter(parameter.detach().clone()) for name, parameter in method.named_parameters()}


class Encoders:
    """A frozen CLIP's two encoders, whose blocks a method may run in its own way."""

    def __init__(self, method: Method) -> None:
        self.model, self.tokenizer, self.context = method.clip.model, method.clip.tokenizer, method.clip.context_length
        self.embedding = self.model.token_embedding

    def tokens(self, template: str | Sequence[str], names: Sequence[str]) -> Tensor:
        """Token ids (T * C, context) of all templates, those of the first in front."""
        templates = [template] if isinstance(template, str) else template
        texts = [one.replace("{}", name.replace("_", " ")) for one in templates for name in names]
        return self.tokenizer(texts, context_length=self.context).to(self.model.positional_embedding.device)

    def text(self, tokens: Tensor, classes: int, run: Run = plain_block, context: Tensor | None = None) -> Tensor:
        """Class features (C, embed_dim), normalised; of several templates the mean, normalised again.

        Args:
            context: (n, d), in place of the words behind BOT.
        """
        model, x = self.model, self.embedding(tokens)
        if context is not None:
            x = torch.cat([x[:, :1], context.expand(len(x), -1, -1), x[:, 1 + len(context) :]], dim=1)
        x = x + model.positional_embedding
        mask = torch.full((x.shape[1], x.shape[1]), float("-inf"), dtype=x.dtype, device=x.device).triu(1)
        for i, block in enumerate(model.transformer.resblocks):
            x = run(i, block, x, mask)
        x = model.ln_final(x)[torch.arange(len(x), device=x.device), tokens.argmax(-1)] @ model.text_projection
        features = F.normalize(x, dim=-1).unflatten(0, (-1, classes))
        return features[0] if len(features) == 1 else F.normalize(features.mean(0), dim=-1)

    def image(self, images: Tensor, run: Run = plain_block, tokens: Tensor | None = None) -> Tensor:
        """Image features (B, embed_dim), normalised.

        Args:
            tokens: (K, d), at the end of the sequence, before ln_pre.
        """
        visual = self.model.visual
        x = visual.conv1(images).flatten(2).transpose(1, 2)
        x = torch.cat([visual.class_embedding.expand(len(x), 1, -1), x], dim=1) + visual.positional_embedding
        if tokens is not None:
            x = torch.cat([x, tokens.expand(len(x), -1, -1)], dim=1)
        x = visual.ln_pre(x)
        for i, block in enumerate(visual.transformer.resblocks):
            x = run(i, block, x, None)
        return F.normalize(visual.ln_post(x)[:, 0] @ visual.proj, dim=-1)
