"""MMRL: multi-modal representation learning (Guo and Gu, CVPR 2025), and what MMRL++ shares with it.

Notation as in the paper (section 3.2): J the first layer with representation tokens, from 1; K tokens; R the shared space (K, d_r);
f_c and f_r the features of class token and representation tokens; w the class features.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from mmrl.clip import AnyImages, ClassList, Clip, Edit, Edits, Images
from mmrl.clip.vision import Pooled
from mmrl.errors import UsageError
from mmrl.methods.authors import SavedAs, require_tower, sizes_of
from mmrl.methods.exchange import Loss
from mmrl.methods.options import MethodOptions
from mmrl.methods.registry import register
from mmrl.methods.two_tower import ImageFeatures, TwoTower, cosine_logits

TOKEN_STD = 0.02  # supplement A
IMPORTED_SIZES = {"rep_space": 2, "visual.bias": 2, "text.bias": 2, "visual.a": 3, "projection_a": 2}  # of what options follow from
LOGIT_SCALE = 100.0  # logits are 100 x cosine whatever the backbone learned, as in the authors' code


class RepresentationOptions(MethodOptions):
    """Options of both methods; defaults are the paper's (supplement A)."""

    rep_tokens: int = Field(5, ge=1, le=1000, description="K, number of representation tokens")
    rep_dim: int = Field(512, ge=1, le=100_000, description="d_r, width of the shared representation space")
    first_layer: int | None = Field(
        None, ge=1, description="J, first image layer with representation tokens, from 1; default: half the depth (6 of 12)"
    )
    first_text_layer: int | None = Field(None, ge=1, description="the same for the text tower; default: the same share of its depth as J")
    alpha: float = Field(0.7, ge=0, le=1, description="weight of the class token's loss and logits against the representation tokens'")
    lam: float = Field(1.0, ge=0, description="lambda, weight of the regularisation towards zero-shot features")
    regulariser: Literal["cosine", "l1", "mse"] = Field("cosine", description="distance to the zero-shot features (Table 9)")
    fusion: Literal["logits", "probabilities"] = Field(
        "logits", description="what is averaged at test: logits as in the authors' code, or probabilities as in the paper"
    )
    inference: Literal["decoupled", "class", "both"] = Field(
        "decoupled",
        description="decoupled: both features for trained classes, the class token alone for new ones; class: the class token always "
        "(Table 4, w/o DS1); both: both features always (w/o DS2)",
    )
    visual: bool = Field(True, description="representation tokens in the image tower (off: Table 4, w/o V)")
    textual: bool = Field(True, description="representation tokens in the text tower (off: Table 4, w/o L)")


def fuse(class_logits: Tensor, rep_logits: Tensor, seen: Tensor, *, alpha: float, fusion: str) -> Tensor:
    """Logits (B, C) of a class list of which `seen` (C,) were trained on: the decoupled inference of section 3.2.3.

    All trained: alpha * class + (1 - alpha) * representation. None trained: class logits. Both are the paper's cases. Mixed: the class
    token, which alone is comparable over all classes, decides how much probability the trained classes get together; the fused scores
    divide it among them. So fused scores are shifted, image by image, until their sum of exponentials over the trained classes is that
    of the class logits. With nothing but trained classes the shift changes no probability.
    """
    if not bool(seen.any()):
        return class_logits
    c, r = class_logits[:, seen], rep_logits[:, seen]
    if fusion == "logits":
        fused = alpha * c + (1 - alpha) * r
    else:
        fused = torch.log((alpha * c.softmax(-1) + (1 - alpha) * r.softmax(-1)).clamp_min(1e-30))
    if bool(seen.all()):
        return fused
    out = class_logits.clone()
    shift = c.logsumexp(-1, keepdim=True) - fused.logsumexp(-1, keepdim=True)
    out[:, seen] = (fused + shift).to(out.dtype)
    return out


class RepresentationMethod(TwoTower):
    """Loss, features and inference; a subclass gives the tokens and P_v^r."""

    edits_layers = True
    saved_as = SavedAs()
    Options: ClassVar[type[MethodOptions]] = RepresentationOptions
    options: RepresentationOptions

    def __init__(self, clip: Clip, options: RepresentationOptions) -> None:
        super().__init__(clip, options)
        if not (options.visual or options.textual):
            raise UsageError("visual and textual are both off, so there is nothing to train; leave at least one on.")
        depth_v, depth_t = clip.vision.depth, clip.text.depth
        self.j_visual = self._checked("first_layer", options.first_layer or self.default_layer(depth_v), "image", depth_v)
        same_share = max(1, round(self.j_visual * depth_t / depth_v))
        self.j_text = self._checked("first_text_layer", options.first_text_layer or same_share, "text", depth_t)
        self.visual_layers, self.text_layers = depth_v - self.j_visual + 1, depth_t - self.j_text + 1

    @staticmethod
    def default_layer(depth: int) -> int:
        """J where it is not given: half the depth, the published 6 of 12."""
        return max(1, depth // 2)

    def _checked(self, option: str, layer: int, tower: str, depth: int) -> int:
        if layer > depth:
            raise UsageError(f"{option} is {layer}, but the {tower} tower of '{self.clip.name}' has {depth} layers; give 1 to {depth}.")
        return layer

    @property
    def modality(self) -> str:
        towers = [letter for letter, on in (("V", self.options.visual), ("L", self.options.textual)) if on]
        return (", " if self.free_tokens else "-").join(towers)

    @property
    def two_classifiers(self) -> bool:
        return self.options.visual and self.options.inference == "decoupled"

    @property
    def logit_scale(self) -> float:
        return LOGIT_SCALE

    @classmethod
    def options_of(cls, tensors: Mapping[str, Tensor], clip: Clip, *, where: str) -> dict[str, Any]:
        for name, n in IMPORTED_SIZES.items():
            if name in tensors:
                sizes_of(tensors, name, n, where=where)
        for side in ("visual", "text"):
            layers, width = tensors[f"{side}.bias"].shape
            require_tower(clip, side, width=width, layers=layers, where=where)
        k, d_r = tensors["rep_space"].shape
        j_visual, j_text = (t.depth - len(tensors[f"{side}.bias"]) + 1 for side, t in (("visual", clip.vision), ("text", clip.text)))
        return {"rep_tokens": k, "rep_dim": d_r, "first_layer": j_visual, "first_text_layer": j_text}

    # ---- what a subclass gives ----

    @abstractmethod
    def tokens(self) -> tuple[Tensor | None, Tensor | None]:
        """Representation tokens of the image layers (n_v, K, d_v) and of the text layers (n_t, K, d_t); None where switched off."""

    @abstractmethod
    def rep_projection(self) -> Tensor:
        """P_v^r (d_v, embed_dim)."""

    @property
    def free_tokens(self) -> bool:
        """Whether the tokens of the two towers have nothing in common."""
        return False

    def keep(self) -> float:
        """Share of a representation token's output that the next layer sees."""
        return 0.0

    # ---- passes ----

    @property
    def frozen_text_layers(self) -> int:
        return self.j_text - 1

    def edits(self) -> tuple[Edits, Edits]:
        """Edits of the image tower and of the text tower."""
        visual, text = self.tokens()
        return self._edits(visual, self.j_visual), self._edits(text, self.j_text)

    def _edits(self, tokens: Tensor | None, first: int) -> Edits:
        if tokens is None:
            return {}
        return {first - 1 + i: Edit(layer, keep=self.keep()) for i, layer in enumerate(tokens.unbind(0))}

    def text_features(self, classes: ClassList) -> Tensor:
        return self._text_features(classes, self.edits()[1])

    def _text_features(self, classes: ClassList, edits: Edits) -> Tensor:
        if not edits:
            return classes.zero_shot
        return self.clip.encode_prompts(classes.fed, edits)

    def image_features(self, images: AnyImages) -> ImageFeatures:
        start = self.j_visual - 1
        return self._image_features(self.clip.vision.finish(self.clip.enter_image(images, start), start, self.edits()[0], extra=True))

    def _image_features(self, pooled: Pooled) -> ImageFeatures:
        class_token = F.normalize(pooled.class_token @ self.clip.vision.projection, dim=-1)
        if pooled.extra is None:
            return ImageFeatures(class_token)
        return ImageFeatures(class_token, F.normalize(pooled.extra.mean(1) @ self.rep_projection(), dim=-1))

    # ---- training ----

    def loss(self, images: AnyImages, labels: Tensor, classes: ClassList) -> Loss:
        """alpha CE(f_c) + (1 - alpha) CE(f_r) + lambda (image term + text term), section 3.2.3.

        Without representation tokens in the image tower there is no f_r, and CE(f_c) counts whole.
        """
        o = self.options
        visual_edits, text_edits = self.edits()
        start = self.j_visual - 1
        images = Images.of(images)
        entering = self.clip.enter_image(images, start)
        zero_shot = self.clip.encode_image(images)
        image = ImageFeatures(zero_shot)
        if visual_edits:
            image = self._image_features(self.clip.vision.finish(entering, start, visual_edits, extra=True))
        text = self._text_features(classes, text_edits)
        class_logits = cosine_logits(image.class_token, text, self.logit_scale)
        terms = {"ce_class": F.cross_entropy(class_logits, labels)}
        if image.representation is None:
            logits, total = class_logits, terms["ce_class"]
        else:
            rep_logits = cosine_logits(image.representation, text, self.logit_scale)
            terms["ce_rep"] = F.cross_entropy(rep_logits, labels)
            logits = o.alpha * class_logits.detach() + (1 - o.alpha) * rep_logits.detach()
            total = o.alpha * terms["ce_class"] + (1 - o.alpha) * terms["ce_rep"]
        terms["reg_image"] = self._distance(image.class_token, zero_shot)
        terms["reg_text"] = self._distance(text, classes.zero_shot)
        total = total + o.lam * (terms["reg_image"] + terms["reg_text"])
        return Loss(total, terms, logits.detach())

    def _distance(self, adapted: Tensor, frozen: Tensor) -> Tensor:
        """Mean distance of normalised features (N, d)."""
        if self.options.regulariser == "cosine":
            return 1 - F.cosine_similarity(adapted, frozen, dim=-1).mean()
        if self.options.regulariser == "l1":
            return F.l1_loss(adapted, frozen)
        return F.mse_loss(adapted, frozen)

    # ---- inference ----

    def combine(self, images: ImageFeatures, text: Tensor, seen: Tensor | bool) -> Tensor:
        class_logits = cosine_logits(images.class_token, text, self.logit_scale)
        if images.representation is None or self.options.inference == "class":
            return class_logits
        trained = torch.as_tensor(seen, device=text.device).expand(len(text))
        if self.options.inference == "both":
            trained = torch.ones_like(trained)
        rep_logits = cosine_logits(images.representation, text, self.logit_scale)
        return fuse(class_logits, rep_logits, trained, alpha=self.options.alpha, fusion=self.options.fusion)

    def rule(self) -> dict[str, Any]:
        o = self.options
        if not o.visual or o.inference == "class":
            return super().rule()
        return {"name": "fused", "alpha": o.alpha, "fusion": o.fusion, "trained_only": o.inference == "decoupled"}


class MMRLOptions(RepresentationOptions):
    space: Literal["shared", "free", "text-to-visual"] = Field(
        "shared",
        description="where tokens come from: one space shared by both towers; free tokens of each tower (Table 4, w/o RS); "
        "free text tokens, mapped to visual ones (MMRL-dagger)",
    )


def normal_tokens(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(*shape) * TOKEN_STD)


class Aligner(nn.Module):
    """n independent linear maps (from d_in to d), all equal at the start, applied at once."""

    def __init__(self, layers: int, d_in: int, d: int) -> None:
        super().__init__()
        first = nn.Linear(d_in, d)
        self.weight = nn.Parameter(first.weight.detach().repeat(layers, 1, 1))  # (n, d, d_in)
        self.bias = nn.Parameter(first.bias.detach().repeat(layers, 1))  # (n, d)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens (K, d_in), or one set a layer (n, K, d_in) -> (n, K, d)."""
        x = x.expand(len(self.weight), -1, -1)
        return torch.baddbmm(self.bias.unsqueeze(1), x, self.weight.transpose(1, 2))


@register("mmrl")
class MMRL(RepresentationMethod):
    """Tokens of a shared space R, mapped into every layer from J of both towers by a linear map of its own (section 3.2)."""

    title = "MMRL"
    summary = "representation tokens from one shared space in the upper layers of both towers"
    source = "Guo and Gu, CVPR 2025"
    Options = MMRLOptions
    options: MMRLOptions
    text: Aligner | None
    visual: Aligner | None
    visual_tokens: nn.Parameter | None
    text_tokens: nn.Parameter | None
    authors_names: ClassVar[Mapping[str, str]] = {
        "rep_space": "representation_learner.compound_rep_tokens",
        "visual.weight": "representation_learner.compound_rep_tokens_r2vproj.{i}.weight",
        "visual.bias": "representation_learner.compound_rep_tokens_r2vproj.{i}.bias",
        "text.weight": "representation_learner.compound_rep_tokens_r2tproj.{i}.weight",
        "text.bias": "representation_learner.compound_rep_tokens_r2tproj.{i}.bias",
        "projection": "image_encoder.proj_rep",
    }

    def __init__(self, clip: Clip, options: MMRLOptions) -> None:
        super().__init__(clip, options)
        k, d_r, d_v, d_t = options.rep_tokens, options.rep_dim, clip.vision.width, clip.text.width
        n_v, n_t = self.visual_layers, self.text_layers
        if options.space == "text-to-visual":
            if not (options.visual and options.textual) or n_v != n_t:
                raise UsageError(
                    "space 'text-to-visual' maps the tokens of text layer by layer: visual and textual must both be on, and both towers "
                    f"need as many layers from J (here {n_v} and {n_t}; set first_layer and first_text_layer)."
                )
            self.text_tokens = normal_tokens(n_t, k, d_t)
            self.visual = Aligner(n_v, d_t, d_v)
        elif options.space == "free":
            self.visual_tokens = normal_tokens(n_v, k, d_v) if options.visual else None
            self.text_tokens = normal_tokens(n_t, k, d_t) if options.textual else None
        else:
            self.rep_space = normal_tokens(k, d_r)
            self.text = Aligner(n_t, d_r, d_t) if options.textual else None
            self.visual = Aligner(n_v, d_r, d_v) if options.visual else None
        if options.visual:
            self.projection = nn.Parameter(torch.randn(d_v, clip.embed_dim) * d_v**-0.5)

    def tokens(self) -> tuple[Tensor | None, Tensor | None]:
        if self.options.space == "text-to-visual":
            assert self.visual is not None
            return self.visual(self.text_tokens), self.text_tokens
        if self.options.space == "free":
            return self.visual_tokens, self.text_tokens
        return (
            None if self.visual is None else self.visual(self.rep_space),
            None if self.text is None else self.text(self.rep_space),
        )

    def rep_projection(self) -> Tensor:
        return self.projection

    @property
    def free_tokens(self) -> bool:
        return self.options.space == "free"
