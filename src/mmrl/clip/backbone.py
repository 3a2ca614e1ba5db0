"""A frozen CLIP: the towers, the tokenizer, and what belongs to one class list."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mmrl.clip.halves import weights_in
from mmrl.clip.images import AnyImages, Images
from mmrl.clip.kept_text import kept_features
from mmrl.clip.layers import NO_EDITS, Edits, Layer, check_edits
from mmrl.clip.packing import packing_of
from mmrl.clip.text import TextHidden, TextTower, rows_of
from mmrl.clip.vision import ImageHidden, VisionTower
from mmrl.errors import UsageError
from mmrl.names import check_names
from mmrl.templates import fill
from mmrl.too_long import TooLongError

FROZEN_CHUNK = 128  # prompts at a time where no gradient is kept: bounds memory at 1000 classes and more
_ACTIVATIONS = 24  # values a token and layer keeps for the backward pass, in units of the width (attention, MLP, norms)


@dataclass(frozen=True)
class Prompts:
    """Prompts of a class list, tokenised and run up to a layer: constant, nothing in it depends on a trained parameter.

    Attributes:
        texts: T * C, those of the first template first.
        classes: C.
        start: the first layer that has not been run.
        hidden: states that enter layer `start`.
        end: position of EOT in the body (T * C,).
        lengths: the same plus one, as numbers: positions of the body up to EOT.
        chunk: prompts encoded at a time where gradients are kept, so that their activations fit a given memory; None: all at once.
    """

    texts: tuple[str, ...]
    classes: int
    start: int
    hidden: TextHidden
    end: Tensor
    lengths: tuple[int, ...]
    chunk: int | None = None


@dataclass(frozen=True)
class ClassList:
    """All that is constant about one class list: nothing in it depends on a trained parameter, so it never goes stale.

    Attributes:
        names: C.
        zero_shot: the frozen CLIP's class features (C, embed_dim), normalised, of the data set's own prompt, whatever a method feeds.
        prompts: what the method feeds to its text tower; None where the backbone's layers cannot be run one by one.
        teacher: frozen class features (C, embed_dim) that a method is held to, where they are not the zero-shot ones.
    """

    names: tuple[str, ...]
    zero_shot: Tensor
    prompts: Prompts | None = None
    teacher: Tensor | None = None

    def __len__(self) -> int:
        return len(self.names)

    def prompts_in(self, kind: torch.dtype) -> ClassList:
        """The same list, whose prompts' states are held in `kind`, such as half precision, which takes half of the memory.

        They are the largest part of a long list, many times its features. What is computed with them is in the type of the weights.
        """
        if self.prompts is None:
            return self
        hidden = self.prompts.hidden
        return replace(self, prompts=replace(self.prompts, hidden=hidden._replace(body=hidden.body.to(kind))))

    @property
    def fed(self) -> Prompts:
        """The prompts of a method that edits layers, whose backbone allows it."""
        assert self.prompts is not None
        return self.prompts

    @property
    def held_to(self) -> Tensor:
        """The frozen class features (C, embed_dim) that a method is held to: the teacher's, or else the zero-shot ones."""
        return self.zero_shot if self.teacher is None else self.teacher


def averaged(features: Tensor, classes: int) -> Tensor:
    """CLIP's prompt ensembling: of normalised features (T * C, d) the mean over T templates, normalised again (C, d)."""
    if features.shape[0] == classes:  # one template: not a bit is changed
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

    Attributes:
        frozen_chunk: prompts that are encoded at a time where no gradient is kept; None: all at once.
    """

    frozen_chunk: int | None = FROZEN_CHUNK

    def __init__(self, name: str, model: Any, tokenizer: Any, *, preprocess: dict[str, Any]) -> None:
        self.name = name
        self.loadable = ""  # the name that `load_clip` made it of, and makes it of again
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
        self._scales: dict[torch.dtype, float] = {}
        self.not_staged = why_not_staged(model)
        if self.not_staged is None:
            self.vision = VisionTower(model.visual)
            self.text = TextTower(text)
            self.embed_dim = int(model.visual.proj.shape[1])
        else:
            self.embed_dim = int(getattr(model.visual, "output_dim", 0)) or self.encode_text(["a"]).shape[1]

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def logit_scale(self) -> float:
        """What cosines are multiplied with; 100 in OpenAI's models."""
        kind = self.model.logit_scale.dtype
        if kind not in self._scales:  # a GPU would have to be waited for in every step
            self._scales[kind] = float(self.model.logit_scale.detach().exp())
        return self._scales[kind]

    @cached_property
    def identity(self) -> str:
        """16 hex digits of a SHA-256 over all that decides a feature: every weight, the layers and their constants, and how images and
        prompts come in. Computed once, as the weights are frozen; where they lie and how they were named does not matter."""
        digest = hashlib.sha256(self.outline().encode())
        for key, value in sorted(self.model.state_dict().items()):
            digest.update(f"{key}{tuple(value.shape)}".encode())
            if key != "attn_mask":
                digest.update(value.detach().float().cpu().contiguous().numpy())
        return digest.hexdigest()[:16]

    def outline(self) -> str:
        """All that decides a feature but the weights: the layers and their constants, and how images and prompts come in."""
        layers = [
            (name, type(layer).__name__, getattr(layer, "num_heads", None), getattr(layer, "eps", None))
            for name, layer in self.model.named_modules()
        ]
        entry = (self.image_size, self.mean, self.std, self.interpolation, self.context_length, self._eos_id, self._eos_pool)
        return repr((layers, entry))

    def to(self, device: torch.device | str) -> Clip:
        self.model.to(device)
        for layer in self._layers:
            for _, twin in layer.twins.values():
                twin.to(device)
        return self

    @property
    def _layers(self) -> list[Layer]:
        return [*self.vision.layers, *self.text.layers] if self.not_staged is None else []

    def weights_in(self, kind: torch.dtype) -> AbstractContextManager[int]:
        """While it lasts, the layers' weights are there in `kind` too, for autocast, which casts them in every call otherwise, to the same
        numbers. Gives the bytes that this takes (0 where layers cannot be run one by one)."""
        return weights_in(self._layers, kind)

    def require_staged(self, method: str, others: Sequence[str] = ()) -> None:
        """Raises UsageError if the layers cannot be edited; `others` are methods that work with every backbone."""
        if self.not_staged is not None:
            raise UsageError(
                f"method '{method}' edits single layers, and the backbone '{self.name}' does not allow that: {self.not_staged}. "
                "Backbones that work are vision transformers with a class token and CLIP's causal text tower, such as tiny, "
                "ViT-B-32, ViT-B-16, ViT-L-14 and their -quickgelu forms. With every backbone work: "
                f"{', '.join(others) or 'zero-shot'}."
            )

    def tokenize(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Token ids (C, context) and the position of each EOT (C,).

        Raises:
            TooLongError: a prompt is longer than the context.
        """
        limit = self.context_length
        tokens, end = self._tokens(prompts)
        if int(end.max()) >= limit:
            worst = int(end.argmax())
            raise TooLongError(self, prompts[worst], worst, int(end[worst]) + 1)
        return tokens[:, :limit].to(self.device), end.to(self.device)

    def lengths(self, prompts: Sequence[str]) -> list[int]:
        """How many tokens each has, up to four times the context."""
        return [position + 1 for position in self._tokens(prompts)[1].tolist()]

    def _tokens(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Token ids (C, 4 * context) and the position of each EOT (C,), on the CPU."""
        with torch.device("cpu"):  # also where a method is built without values: its shapes may follow from how long a text is
            tokens = self.tokenizer(list(prompts), context_length=4 * self.context_length)
        return tokens, self.ends(tokens)

    def ends(self, tokens: Tensor) -> Tensor:
        """The position of EOT (C,) in token ids (C, N)."""
        return tokens.eq(self._eos_id or 0).int().argmax(-1) if self._eos_pool else tokens.argmax(-1)

    def encode_image(self, images: AnyImages, *, normalise: bool = True) -> Tensor:
        """Zero-shot image features (B, embed_dim), without gradient, of images (B, 3, H, W)."""
        features = Images.of(images).encoded(self)
        return F.normalize(features, dim=-1) if normalise else features

    @torch.no_grad()
    def encode_text(self, texts: Sequence[str], *, normalise: bool = True) -> Tensor:
        """Zero-shot text features (N, embed_dim) of prompts. Those of long lists are kept in the user's cache folder."""
        return kept_features(self, texts, len(texts), lambda: self._encoded(texts, normalise=normalise), normalise=normalise)

    def _encoded(self, texts: Sequence[str], *, normalise: bool) -> Tensor:
        if self.not_staged is None:
            return self.encode_prompts(self.prompts(texts), normalise=normalise)
        features: Tensor = self.model.encode_text(self.tokenize(texts)[0])
        return F.normalize(features, dim=-1) if normalise else features

    def class_list(
        self, names: Sequence[str], template: str | Sequence[str], *, start: int = 0, memory_gib: float | None = None
    ) -> ClassList:
        """Names, their prompts run up to layer `start`, and their zero-shot features, which long lists have from the user's cache folder.

        Args:
            template: one, or several, whose features are averaged.
            memory_gib: how much the prompts' activations may take in a training step, in GiB; None for no limit.

        Raises:
            UsageError: blank or repeated names, a template without exactly one `{}`, a prompt over the context length, or a memory that
                is not above 0.
        """
        checked = check_names(names)
        texts = fill(template, checked)
        if self.not_staged is not None:
            return ClassList(checked, averaged(self.encode_text(texts), len(checked)))
        prompts = self.prompts(texts, len(checked), start=start, memory_gib=memory_gib)
        with torch.no_grad():
            zero_shot = kept_features(self, texts, len(checked), lambda: self.encode_prompts(prompts))
        return ClassList(checked, zero_shot, prompts)

    @torch.no_grad()
    def prompts(
        self,
        texts: Sequence[str],
        classes: int | None = None,
        *,
        start: int = 0,
        slots: int = 0,
        readers: int = 0,
        memory_gib: float | None = None,
    ) -> Prompts:
        """Tokenise `texts` and run them, unedited, up to layer `start`.

        Args:
            texts: T * C, those of the first template first.
            classes: C; default: one for each text.
            slots: number of positions behind BOT at which a method puts tokens of its own; the texts have words there that count one
                token each, such as "X".
            readers: number of tokens of a method that read each prompt; they count for `memory_gib`.
            memory_gib: as in `class_list`.

        Raises:
            UsageError: a prompt over the context length, or a memory that is not above 0.
        """
        if memory_gib is not None and not memory_gib > 0:
            raise UsageError(f"memory_gib is {memory_gib}; it must be above 0, or left out for no limit.")
        tokens, end = self.tokenize(texts)
        embedded = self.text.embed(tokens, end, slots=slots)
        entered, shared = self.text.run_prefix(embedded, 0, start)
        end = end - embedded.prefix.shape[1]
        lengths = tuple((end + 1).tolist())
        bodies, done = [], 0
        for body in embedded.body.split(FROZEN_CHUNK):
            packing = packing_of(lengths[done : done + len(body)], body.shape[1], body.device)
            bodies.append(self.text.run_body(body, packing, shared))
            done += len(body)
        hidden = entered._replace(body=torch.cat(bodies))
        chunk = None if memory_gib is None else self._prompts_within(memory_gib, hidden, start, readers)
        return Prompts(tuple(texts), classes or len(texts), start, hidden, end, lengths, chunk)

    def _prompts_within(self, memory_gib: float, hidden: TextHidden, start: int, readers: int) -> int:
        """How many prompts keep no more than `memory_gib` for the backward pass of layers [start, depth)."""
        _, length, width = hidden.body.shape
        kept = hidden.body.element_size() * _ACTIVATIONS * width * (length + 1 + readers) * (self.text.depth - start)
        return max(1, int(memory_gib * 2**30 / kept))

    def enter_image(self, images: AnyImages, start: int) -> ImageHidden:
        """States, without gradient, that enter layer `start` of the images' tower."""
        return Images.of(images).entering(self, start)

    def encode_prompts(self, prompts: Prompts, edits: Edits = NO_EDITS, *, normalise: bool = True, share: bool = True) -> Tensor:
        """Class features (C, embed_dim) of prompts, averaged over templates; differentiable in what edits and hidden states hold.

        With `prompts.chunk`, that many prompts are encoded at a time. Their activations are then computed again in the backward pass, so
        memory grows with the chunk and not with C; the numbers stay the same.

        Args:
            edits: with tokens of S sets of prompts (S, 1 or C, K, d), the features are (S, C, embed_dim); all sets have the same words
                behind their tokens, or each its own where there are S * C prompts. With K readers they are (C, 1 + K, embed_dim).
            normalise: whether features have length 1; averaging over templates normalises them in any case.
            share: whether the prefix runs once for all prompts. It must not where an edit is random (dropout) and each has its own.

        Raises:
            ValueError: an edit of a layer below `prompts.start`.
        """
        check_edits(edits, prompts.start, self.text.depth)
        sets = max((edit.tokens.shape[0] for edit in edits.values() if edit.tokens is not None and edit.tokens.dim() == 4), default=0)
        hidden, body, end, lengths = prompts.hidden, prompts.hidden.body, prompts.end, prompts.lengths
        if not share:
            hidden = hidden._replace(prefix=hidden.prefix.expand(len(hidden.body), -1, -1))
        if sets > 1 and len(body) != sets * prompts.classes:
            body, end, lengths = body.repeat(sets, 1, 1), end.repeat(sets), lengths * sets
        _, shared = self.text.run_prefix(hidden, prompts.start, self.text.depth, edits)
        count, length, _ = body.shape

        def part(body: Tensor, at: slice | None = None) -> Tensor:
            """Features of the prompts `at`, or of all; no number of prompts is asked for then, as a traced one is not known."""
            body = body.to(hidden.prefix.dtype)  # where it is held in half precision
            own, at_end, keys = (lengths, end, shared) if at is None else (lengths[at], end[at], rows_of(shared, at, count))
            packing = packing_of(own, length, body.device) if share else None  # what an edit draws depends on shapes
            features = self.text.finish_body(body, at_end, packing, prompts.start, keys, edits)
            return F.normalize(features, dim=-1) if normalise else features

        chunk = prompts.chunk if torch.is_grad_enabled() else self.frozen_chunk
        if chunk is None or chunk >= count:
            features = part(body)
        else:
            from torch.utils.checkpoint import checkpoint

            parts = [slice(first, min(first + chunk, count)) for first in range(0, count, chunk)]
            if torch.is_grad_enabled():  # the generator's state is kept for edits that are random
                found = [checkpoint(part, body[at], at, use_reentrant=False, preserve_rng_state=not share) for at in parts]
            else:
                found = [part(body[at], at) for at in parts]
            features = torch.cat(found)
        return features.unflatten(0, (sets, -1)) if sets else averaged(features, prompts.classes)
