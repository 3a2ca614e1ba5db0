"""What MMRL and MMRL++ share: features, loss and decoupled inference of representation tokens.

Notation as in the MMRL paper (section 3.2): J the first layer with representation tokens, from 1; K tokens; R the shared
space (K, d_r); f_c and f_r the features of class token and representation tokens; w the class features.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from mmrl.clip import ClassList, Clip, Edit, Edits
from mmrl.errors import UsageError
from mmrl.methods.base import ImageFeatures, Loss, Method, MethodOptions, cosine_logits

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


def first_layers(clip: Clip, visual: int | None, textual: int | None) -> tuple[int, int]:
    """J of both towers, from 1, checked against their depths.

    Raises:
        UsageError: a layer the tower does not have.
    """
    depth_v, depth_t = clip.vision.depth, clip.text.depth
    if visual is not None and visual > depth_v:
        raise UsageError(f"first_layer is {visual}, but the image tower of '{clip.name}' has {depth_v} layers; give 1 to {depth_v}.")
    if textual is not None and textual > depth_t:
        raise UsageError(f"first_text_layer is {textual}, but the text tower of '{clip.name}' has {depth_t} layers; give 1 to {depth_t}.")
    j_v = visual if visual is not None else max(1, depth_v // 2)
    j_t = textual if textual is not None else max(1, round(j_v * depth_t / depth_v))
    return j_v, j_t


def combine_logits(class_logits: Tensor, rep_logits: Tensor, seen: Tensor, *, alpha: float, fusion: str) -> Tensor:
    """Logits (B, C) of a class list of which `seen` (C,) were trained on.

    All trained: alpha * class + (1 - alpha) * representation. None trained: class logits. Both are the paper's cases (section
    3.2.3). Mixed: the class token, which alone is comparable over all classes, decides how much probability the trained classes get
    together; the fused scores divide it among them. So fused scores are shifted, image by image, until their sum of exponentials over
    the trained classes is that of the class logits. With nothing but trained classes the shift changes no probability.
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


class RepresentationMethod(Method):
    """Loss, features and inference; a subclass gives the tokens and P_v^r."""

    edits_layers = True
    Options: ClassVar[type[MethodOptions]] = RepresentationOptions
    options: RepresentationOptions

    def __init__(self, clip: Clip, options: RepresentationOptions) -> None:
        super().__init__(clip, options)
        if not (options.visual or options.textual):
            raise UsageError("visual and textual are both off, so there is nothing to train; leave at least one on.")
        self.j_visual, self.j_text = first_layers(clip, options.first_layer, options.first_text_layer)
        self.visual_layers = clip.vision.depth - self.j_visual + 1
        self.text_layers = clip.text.depth - self.j_text + 1

    # ---- what a subclass gives ----

    @abstractmethod
    def tokens(self) -> tuple[Tensor | None, Tensor | None]:
        """Representation tokens of the image layers (n_v, K, d_v) and of the text layers (n_t, K, d_t); None where switched off."""

    @abstractmethod
    def rep_projection(self) -> Tensor:
        """P_v^r (d_v, embed_dim)."""

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
        return self.clip.encode_classes(classes, edits)

    def image_features(self, images: Tensor) -> ImageFeatures:
        start = self.j_visual - 1
        return self._image_features(self.clip.vision.finish(self.clip.enter_image(images, start), start, self.edits()[0]))

    def _image_features(self, pooled: tuple[Tensor, Tensor | None]) -> ImageFeatures:
        first, extra = pooled
        class_token = F.normalize(first @ self.clip.vision.projection, dim=-1)
        if extra is None:
            return ImageFeatures(class_token)
        return ImageFeatures(class_token, F.normalize(extra.mean(1) @ self.rep_projection(), dim=-1))

    # ---- training ----

    def loss(self, images: Tensor, labels: Tensor, classes: ClassList) -> Loss:
        """alpha CE(f_c) + (1 - alpha) CE(f_r) + lambda (image term + text term), section 3.2.3.

        Without representation tokens in the image tower there is no f_r, and CE(f_c) counts whole.
        """
        o = self.options
        visual_edits, text_edits = self.edits()
        start = self.j_visual - 1
        entering = self.clip.enter_image(images, start)
        with torch.no_grad():
            zero_shot = self._image_features(self.clip.vision.finish(entering, start)).class_token
        image = self._image_features(self.clip.vision.finish(entering, start, visual_edits)) if visual_edits else ImageFeatures(zero_shot)
        text = self._text_features(classes, text_edits)
        class_logits = cosine_logits(image.class_token, text, LOGIT_SCALE)
        terms = {"ce_class": F.cross_entropy(class_logits, labels)}
        if image.representation is None:
            logits, total = class_logits, terms["ce_class"]
        else:
            rep_logits = cosine_logits(image.representation, text, LOGIT_SCALE)
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
        class_logits = cosine_logits(images.class_token, text, LOGIT_SCALE)
        if images.representation is None or self.options.inference == "class":
            return class_logits
        trained = torch.as_tensor(seen, device=text.device).expand(len(text))
        if self.options.inference == "both":
            trained = torch.ones_like(trained)
        rep_logits = cosine_logits(images.representation, text, LOGIT_SCALE)
        return combine_logits(class_logits, rep_logits, trained, alpha=self.options.alpha, fusion=self.options.fusion)
