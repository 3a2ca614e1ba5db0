"""A frozen CLIP: the towers, the tokenizer, and what belongs to one class list."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mmrl.clip.layers import Edits
from mmrl.clip.text import TextHidden, TextTower
from mmrl.clip.vision import ImageHidden, VisionTower
from mmrl.errors import UsageError
from mmrl.names import check_names
from mmrl.templates import fill

FROZEN_CHUNK = 128  # prompts at a time where no gradient is kept: bounds memory at 1000 classes and more
_ACTIVATIONS = 24  # values a token and layer keeps for the backward pass, in units of the width (attention, MLP, norms)


@dataclass(frozen=True)
class ClassList:
    """All that is constant about one class list: nothing in it depends on a trained parameter, so it never goes stale.

    Attributes:
        names: C.
        prompts: T * C, those of the first template first.
        start: the first layer that has not been run.
        hidden: states of the prompts that enter layer `start`.
        end: position of EOT in the body (T * C,).
        zero_shot: the frozen CLIP's class features (C, embed_dim), normalised.
        chunk: prompts encoded at a time where gradients are kept, so that their activations fit a given memory; None: all at once.
    """

    names: tuple[str, ...]
    prompts: tuple[str, ...]
    start: int
    hidden: TextHidden
    end: Tensor
    zero_shot: Tensor
    chunk: int | None = None

    def __len__(self) -> int:
        return len(self.names)


def averaged(features: Tensor, classes: int) -> Tensor:
    """CLIP's prompt ensembling: of normalised features (T * C, d) the mean over T templates, normalised again (C, d)."""
    if len(features) == classes:  # one template: not a bit is changed
        return features
    return F.normalize(features.unflatten(0, (-1, classes)).mean(0), dim=-1)


def _three(values: Sequence[float]) -> tuple[float, float, float]:
    r, g, b = (float(v) for v in values)
    return r, g, b


def why_not_staged(model: Any) -> str | None:
    """Why the layers of `model` cannot be run one by one, or None if they can."""
    from open_clip.transformer import ResidualAttentionBlock, VisionTransformer

    visual, text = model.visual, getattr(model, "text", model)
    if not isinstance(visual, VisionTransformer):
        return f"its image tower is a {type(visual).__name__}, not a vision transformer"
    if visual.attn_pool is not None or visual.pool_type != "tok":
        return "its image tower does not pool at a class token"
    if not hasattr(text, "transformer") or not hasattr(text, "positional_embedding"):
        return f"its text tower is a {type(text).__name__}, not CLIP's own transformer"
    if getattr(text, "attn_mask", None) is None or getattr(text, "cls_emb", None) is not None:
        return "its text tower is not causal"
    pool = getattr(text, "text_pool_type", getattr(text, "pool_type", None))
    if pool not in ("argmax", "eos"):
        return f"its text tower pools at '{pool}', not at the end-of-text token"
    blocks = [*visual.transformer.resblocks, *text.transformer.resblocks]
    if any(type(block) is not ResidualAttentionBlock for block in blocks):
        return "its layers are of a kind that is not CLIP's (other norms or attention)"
    return None


class Clip:
    """A frozen CLIP. Knows no method and no class list; `class_list` makes the latter.

    Args:
        model: an open_clip model; its parameters are frozen here.
        tokenizer: open_clip's, called with `context_length`.
        preprocess: mean, std (3 each, for images in [0, 1]) and interpolation.
    """

    def __init__(self, name: str, model: Any, tokenizer: Any, *, preprocess: dict[str, Any]) -> None:
        self.name = name
        self.model = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.mean = _three(preprocess["mean"])
        self.std = _three(preprocess["std"])
        self.interpolation: str = preprocess["interpolation"]
        size = model.visual.image_size
        self.image_size: int = size if isinstance(size, int) else size[0]
        text = getattr(model, "text", model)
        self.context_length: int = int(getattr(text, "context_length", 77))
        self._eos_id: int | None = getattr(text, "text_eos_id", getattr(text, "eos_id", None))
        pool = getattr(text, "text_pool_type", getattr(text, "pool_type", "argmax"))
        self._eos_pool = pool == "eos"
        self.not_staged = why_not_staged(model)
        if self.not_staged is None:
            self.vision = VisionTower(model.visual)
            self.text = TextTower(text)
            self.embed_dim = int(model.visual.proj.shape[1])
        else:
            self.embed_dim = int(getattr(model.visual, "output_dim", 0))

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def logit_scale(self) -> float:
        """What cosines are multiplied with; 100 in OpenAI's models."""
        return float(self.model.logit_scale.detach().exp())

    @cached_property
    def identity(self) -> str:
        """16 hex digits of a SHA-256 over all that decides a feature: every weight, the layers and their constants, and how images and
        prompts come in. Computed once, as the weights are frozen; where they lie and how they were named does not matter."""
        layers = [
            (name, type(layer).__name__, getattr(layer, "num_heads", None), getattr(layer, "eps", None))
            for name, layer in self.model.named_modules()
        ]
        entry = (self.image_size, self.mean, self.std, self.interpolation, self.context_length, self._eos_id, self._eos_pool)
        digest = hashlib.sha256(repr((layers, entry)).encode())
        for key, value in sorted(self.model.state_dict().items()):
            digest.update(f"{key}{tuple(value.shape)}".encode())
            if key != "attn_mask":
                digest.update(value.detach().float().cpu().contiguous().numpy())
        return digest.hexdigest()[:16]

    def to(self, device: torch.device | str) -> Clip:
        self.model.to(device)
        return self

    def require_staged(self, method: str) -> None:
        """Raises UsageError if the layers cannot be edited."""
        if self.not_staged is not None:
            raise UsageError(
                f"method '{method}' edits single layers, and the backbone '{self.name}' does not allow that: {self.not_staged}. "
                "Backbones that work are vision transformers with a class token and CLIP's causal text tower, such as tiny, "
                "ViT-B-32, ViT-B-16, ViT-L-14 and their -quickgelu forms; zero-shot works with every backbone."
            )

    def tokenize(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Token ids (C, context) and the position of each EOT (C,).

        Raises:
            UsageError: a prompt is longer than the context.
        """
        limit = self.context_length
        tokens = self.tokenizer(list(prompts), context_length=4 * limit)
        end = (tokens == self._eos_id).int().argmax(-1) if self._eos_pool else tokens.argmax(-1)
        if int(end.max()) >= limit:
            worst = int(end.argmax())
            length = int(end[worst]) + 1
            more = "at least " if length >= 4 * limit else ""
            raise UsageError(
                f"the prompt '{prompts[worst]}' has {more}{length} tokens; '{self.name}' reads {limit}. "
                "Shorten the class name or the template."
            )
        return tokens[:, :limit].to(self.device), end.to(self.device)

    @torch.no_grad()
    def encode_image(self, images: Tensor) -> Tensor:
        """Zero-shot image features (B, embed_dim), normalised, of images (B, 3, H, W)."""
        if self.not_staged is not None:
            return F.normalize(self.model.encode_image(images), dim=-1)
        pooled, _ = self.vision.finish(self.vision.embed(images), 0)
        return F.normalize(pooled @ self.vision.projection, dim=-1)

    @torch.no_grad()
    def encode_text(self, prompts: Sequence[str]) -> Tensor:
        """Zero-shot text features of prompts (N, embed_dim), normalised."""
        tokens, end = self.tokenize(prompts)
        if self.not_staged is not None:
            return F.normalize(self.model.encode_text(tokens), dim=-1)
        return self._frozen(tokens, end, 0)[1]

    def class_list(
        self, names: Sequence[str], template: str | Sequence[str], *, start: int = 0, memory_gib: float | None = None
    ) -> ClassList:
        """Run the prompts of `names` up to layer `start` and, unedited, to the end.

        Args:
            template: one, or several, whose features are averaged.
            memory_gib: how much the prompts' activations may take in a training step, in GiB; None for no limit.

        Raises:
            UsageError: blank or repeated names, a template without exactly one `{}`, a prompt over the context length, or a memory that
                is not above 0.
        """
        if memory_gib is not None and not memory_gib > 0:
            raise UsageError(f"memory_gib is {memory_gib}; it must be above 0, or left out for no limit.")
        checked = check_names(names)
        prompts = fill(template, checked)
        if self.not_staged is not None:
            none = TextHidden(torch.empty(0), torch.empty(0))
            return ClassList(checked, tuple(prompts), start, none, torch.empty(0), averaged(self.encode_text(prompts), len(checked)))
        tokens, end = self.tokenize(prompts)
        with torch.no_grad():
            hidden, features = self._frozen(tokens, end, start)
        chunk = None if memory_gib is None else self._prompts_within(memory_gib, hidden.body, start)
        return ClassList(checked, tuple(prompts), start, hidden, end - 1, averaged(features, len(checked)), chunk)

    def _prompts_within(self, memory_gib: float, body: Tensor, start: int) -> int:
        """How many prompts of `body` (C, T, d) keep no more than `memory_gib` for the backward pass of layers [start, depth)."""
        _, length, width = body.shape
        kept = body.element_size() * _ACTIVATIONS * width * (length + 1) * (self.text.depth - start)
        return max(1, int(memory_gib * 2**30 / kept))

    def _frozen(self, tokens: Tensor, end: Tensor, start: int) -> tuple[TextHidden, Tensor]:
        """States that enter layer `start`, and zero-shot features."""
        embedded = self.text.embed(tokens, end)
        bodies, features = [], []
        prefix, below = self.text.run_prefix(embedded.prefix, 0, start)
        _, above = self.text.run_prefix(prefix, start, self.text.depth)
        for first in range(0, len(tokens), FROZEN_CHUNK):
            part = slice(first, first + FROZEN_CHUNK)
            body = embedded.body[part]
            for i, shared in enumerate(below):
                body = self.text.body_layer(i, body, shared)
            bodies.append(body)
            features.append(F.normalize(self.text.finish_body(body, end[part] - 1, start, above), dim=-1))
        return TextHidden(prefix, torch.cat(bodies)), torch.cat(features)

    def enter_image(self, images: Tensor, start: int) -> ImageHidden:
        """States (no gradient) that enter layer `start`: the same for the adapted and the zero-shot pass."""
        with torch.no_grad():
            return self.vision.run(self.vision.embed(images), 0, start)

    def encode_classes(self, classes: ClassList, edits: Edits) -> Tensor:
        """Adapted class features (C, embed_dim), normalised; differentiable in what the edits hold.

        With `classes.chunk`, that many prompts are encoded at a time. Their activations are then computed anew in the backward pass, so
        memory grows with the chunk and not with C; the numbers stay the same.
        """
        _, shared = self.text.run_prefix(classes.hidden.prefix, classes.start, self.text.depth, edits)

        def part(body: Tensor, end: Tensor) -> Tensor:
            return F.normalize(self.text.finish_body(body, end, classes.start, shared, edits), dim=-1)

        body, end, chunk = classes.hidden.body, classes.end, classes.chunk
        if chunk is None or chunk >= len(body):
            return averaged(part(body, end), len(classes))
        from torch.utils.checkpoint import checkpoint

        slices = [slice(first, first + chunk) for first in range(0, len(body), chunk)]
        if torch.is_grad_enabled():
            parts = [checkpoint(part, body[s], end[s], use_reentrant=False, preserve_rng_state=False) for s in slices]
        else:
            parts = [part(body[s], end[s]) for s in slices]
        return averaged(torch.cat(parts), len(classes))
