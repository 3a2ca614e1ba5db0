"""RPO the plain way: prompts put in behind every class's end-of-text token, whole towers, masks with a row for every token."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmrl.methods.rpo import RPO
from mmrl.names import spoken
from tests.oracle.methods.encoders import copies


class Plain:
    def __init__(self, method: RPO, names: Sequence[str], template: str | Sequence[str]) -> None:
        self.parameters: dict[str, nn.Parameter] = copies(method)
        self.model, self.count, self.classes = method.clip.model, method.options.n_prompts, len(names)
        own = template if method.options.template is None else method.options.template
        said = [spoken(name, underscores=method.options.keep_underscores) for name in names]
        texts = [one.replace("{}", name) for one in ([own] if isinstance(own, str) else own) for name in said]
        tokens = method.clip.tokenizer(texts, context_length=method.clip.context_length).to(self.model.positional_embedding.device)
        self.end = tokens.argmax(-1)
        x = self.model.token_embedding(tokens) + self.model.positional_embedding
        # the authors' code has 77 positions and fails where that is too few; nobody attends to these, so more of them change nothing
        self.embedded = F.pad(x, (0, 0, 0, max(0, int(self.end.max()) + 1 + self.count - x.shape[1])))

    def text_features(self) -> Tensor:
        """(C, K, embed_dim), normalised; of several templates the mean, normalised again."""
        x, rows = self.embedded.clone(), torch.arange(len(self.end), device=self.end.device)
        for k in range(self.count):
            x[rows, self.end + 1 + k] = self.parameters["text_prompt"][k].to(x.dtype)
        before_end = torch.arange(x.shape[1], device=x.device) <= self.end[:, None]  # (N, keys)
        seen = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device).tril() & before_end[:, None]  # (N, queries, keys)
        mask = torch.zeros(seen.shape, dtype=x.dtype, device=x.device).masked_fill(~seen, float("-inf"))
        for block in self.model.transformer.resblocks:
            x = block(x, attn_mask=mask.repeat_interleave(block.attn.num_heads, dim=0))
        x = self.model.ln_final(x)
        read = torch.stack([x[rows, self.end + 1 + k] for k in range(self.count)], dim=1) @ self.model.text_projection
        features = F.normalize(read, dim=-1).unflatten(0, (-1, self.classes))
        return features[0] if len(features) == 1 else F.normalize(features.mean(0), dim=-1)

    def image_features(self, images: Tensor) -> Tensor:
        """(B, K, embed_dim), normalised."""
        visual = self.model.visual
        x = visual.conv1(images).flatten(2).transpose(1, 2)
        x = torch.cat([visual.class_embedding.expand(len(x), 1, -1), x], dim=1) + visual.positional_embedding
        x = visual.ln_pre(torch.cat([x, self.parameters["image_prompt"].expand(len(x), -1, -1)], dim=1))
        mask = torch.zeros(x.shape[1], x.shape[1], dtype=x.dtype, device=x.device)
        mask[:, -self.count :] = float("-inf")
        for block in visual.transformer.resblocks:
            x = block(x, attn_mask=mask)
        return F.normalize(visual.ln_post(x)[:, -self.count :] @ visual.proj, dim=-1)

    def logits(self, images: Tensor) -> Tensor:
        image, text = self.image_features(images), self.text_features()
        pairs = [self.model.logit_scale.exp() * image[:, k] @ text[:, k].T for k in range(self.count)]
        return torch.stack(pairs).mean(0)

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(self.logits(images), labels)


def plain(method: RPO, names: Sequence[str], template: str | Sequence[str]) -> Plain:
    return Plain(method, names, template)
