"""MMRL (CVPR 2025) and MMRL++ (IJCV 2026), written straight from the papers' equations.

As in the authors' code, every call runs three whole encoders over the whole sequence: the adapted image and text encoders, and the
zero-shot image encoder without gradient. The zero-shot class features w_0 are computed once, when the classes are given. Nothing else is
shared, cached or skipped. This is the definition that the fast path is compared with, and the plain side of the benchmarks. It imports
torch and open_clip only.

Notation: B images, C classes, T text positions, K representation tokens, d_r the width of their space, d_v / d_t the towers' widths,
d the width of the joint space; layers count from 1 to L, and J is the first one with representation tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import open_clip
import torch
import torch.nn.functional as F
from torch import Tensor, nn

Regulariser = Literal["cosine", "l1", "mse"]
Space = Literal["shared", "free", "text-to-visual"]


class OracleClip:
    """The two encoders of an `open_clip.CLIP` with class token, which may carry representation tokens.

    Freezes the model's parameters in place. Deliberately no `nn.Module`: the frozen weights stay out of what is trained and saved.
    """

    def __init__(self, model: open_clip.CLIP) -> None:
        self.model = model.requires_grad_(False)
        self.visual_width, self.embed_dim = model.visual.proj.shape
        self.text_width = model.positional_embedding.shape[1]
        self.visual_depth = len(model.visual.transformer.resblocks)
        self.text_depth = len(model.transformer.resblocks)

    def image_states(self, images: Tensor, tokens: Sequence[Tensor] | None, first_layer: int, beta: float | None) -> Tensor:
        """States after the last layer and its LayerNorm, (B, 1 + K + patches, d_v), of images (B, 3, H, W); see `_layers` for the rest."""
        visual = self.model.visual
        patches = visual.conv1(images).flatten(2).transpose(1, 2)  # (B, patches, d_v)
        x = torch.cat([visual.class_embedding.expand(len(images), 1, -1), patches], dim=1)
        x = visual.ln_pre(x + visual.positional_embedding)
        return visual.ln_post(_layers(visual.transformer.resblocks, x, tokens, first_layer, beta, causal=False))

    def text_features(self, text: Tensor, tokens: Sequence[Tensor] | None, first_layer: int, beta: float | None) -> Tensor:
        """w = P_t(LN(e_L)), L2-normalised, (C, d), of token ids (C, T); see `_layers` for the rest."""
        model = self.model
        x = model.token_embedding(text) + model.positional_embedding[: text.shape[1]]
        x = _layers(model.transformer.resblocks, x, tokens, first_layer, beta, causal=True)
        eot = text.argmax(dim=-1) + (0 if tokens is None else len(tokens[0]))  # EOT has the highest id; the tokens shift it by K
        return F.normalize(model.ln_final(x)[torch.arange(len(x), device=x.device), eot] @ model.text_projection, dim=-1)


def _layers(
    blocks: nn.ModuleList, x: Tensor, tokens: Sequence[Tensor] | None, first_layer: int, beta: float | None, *, causal: bool
) -> Tensor:
    """Run all layers on x (N, S, width); section 3.2.2. From layer J on the representation tokens stand behind the first position.

    `tokens[i - J]`, (K, width), enter layer i: inserted before layer J; before later layers they replace the outputs at their positions
    or, with `beta` (MMRL++, PRC), blend with them. Returns (N, S, width) without tokens, (N, S + K, width) with them.
    """
    for i, block in enumerate(blocks, start=1):
        if tokens is not None and i >= first_layer:
            k = len(tokens[i - first_layer])
            new = tokens[i - first_layer].expand(len(x), -1, -1)  # (N, K, width)
            if i == first_layer:
                x = torch.cat([x[:, :1], new, x[:, 1:]], dim=1)
            else:
                if beta is not None:
                    new = beta * new + (1 - beta) * x[:, 1 : 1 + k]
                x = torch.cat([x[:, :1], new, x[:, 1 + k :]], dim=1)
        x = block(x, attn_mask=_causal_mask(x) if causal else None)
    return x


def _causal_mask(x: Tensor) -> Tensor:
    """(S, S) mask over the sequence as it is now, the representation tokens included: no position sees a later one."""
    return torch.full((x.shape[1], x.shape[1]), -math.inf, device=x.device, dtype=x.dtype).triu(1)


class Residual(nn.Module):
    """One layer's part of a shared aligner: A B of low rank and a bias."""

    def __init__(self, out_width: int, in_width: int, rank: int, bias: Tensor) -> None:
        super().__init__()
        self.A = nn.Parameter(_kaiming(bias.new_empty(out_width, rank)))
        self.B = nn.Parameter(bias.new_zeros(rank, in_width))
        self.bias = nn.Parameter(bias.clone())

    def forward(self, space: Tensor, weight: Tensor) -> Tensor:
        """R (W + A B)^T + bias, (K, width), of R (K, d_r) and the shared W (width, d_r)."""
        return space @ (weight + self.A @ self.B).T + self.bias


class SharedResidualAligner(nn.Module):
    """SRRA of MMRL++: tokens_i = R (W + A_i B_i)^T + bias_i with one W for all layers."""

    def __init__(self, linear: nn.Linear, layers: int, rank: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(linear.weight.detach().clone())
        self.srra = nn.ModuleList(Residual(linear.out_features, linear.in_features, rank, linear.bias.detach()) for _ in range(layers))

    def forward(self, space: Tensor) -> list[Tensor]:
        """Tokens of every layer, each (K, width), from the space's tokens (K, d_r)."""
        return [layer(space, self.weight) for layer in self.srra]


def _kaiming(weight: Tensor) -> Tensor:
    return nn.init.kaiming_uniform_(weight, a=math.sqrt(5))


def _copies(linear: nn.Linear, layers: int) -> nn.ModuleList:
    """One linear map per layer, trained apart but starting equal to `linear`."""
    maps = nn.ModuleList(nn.Linear(linear.in_features, linear.out_features) for _ in range(layers))
    for layer in maps:
        layer.load_state_dict(linear.state_dict())
    return maps.to(linear.weight)


class RepresentationLearner(nn.Module):
    """All that makes representation tokens, for layers J to L of both towers (section 3.2.1), with the authors' parameter names.

    `space`: "shared", tokens of one space mapped to both sides; "free" (w/o RS), each side's and layer's tokens are parameters;
    "text-to-visual" (the paper's MMRL-dagger), free text tokens, one linear map a layer from them to the visual side.
    The last two have no shared aligners, so SRRA does not apply to them.
    """

    def __init__(
        self, clip: OracleClip, layers: tuple[int, int], k: int, d_r: int, space: Space, rank: int | None, visual: bool, textual: bool
    ) -> None:
        super().__init__()
        d_v, d_t, (visual_layers, text_layers) = clip.visual_width, clip.text_width, layers
        self.space, self.visual, self.textual = space, visual, textual
        like = clip.model.visual.conv1.weight
        if space == "shared":
            self.compound_rep_tokens = nn.Parameter(0.02 * torch.randn(k, d_r).to(like))
            for wanted, side, width, count in ((visual, "r2v", d_v, visual_layers), (textual, "r2t", d_t, text_layers)):
                if wanted:
                    draw = nn.Linear(d_r, width).to(like)
                    name = f"compound_rep_tokens_{side}proj" if rank is None else f"srra_{side}proj"
                    self.add_module(name, _copies(draw, count) if rank is None else SharedResidualAligner(draw, count, rank))
            return
        if textual or space == "text-to-visual":
            self.text_tokens = nn.Parameter(0.02 * torch.randn(text_layers, k, d_t).to(like))
        if visual and space == "free":
            self.visual_tokens = nn.Parameter(0.02 * torch.randn(visual_layers, k, d_v).to(like))
        if visual and space == "text-to-visual":
            if visual_layers != text_layers:
                raise ValueError(f"text-to-visual needs towers of equal depth from J on, got {visual_layers} and {text_layers} layers")
            self.text_to_visual = _copies(nn.Linear(d_t, d_v).to(like), visual_layers)

    def forward(self) -> tuple[list[Tensor] | None, list[Tensor] | None]:
        """Visual tokens, (K, d_v) a layer, and text tokens, (K, d_t) a layer; None for a side that has none."""
        if self.space == "shared":
            return self._aligned("r2v") if self.visual else None, self._aligned("r2t") if self.textual else None
        visual = None
        if self.visual and self.space == "free":
            visual = list(self.visual_tokens)
        elif self.visual:
            visual = [layer(tokens) for layer, tokens in zip(self.text_to_visual, self.text_tokens, strict=True)]
        return visual, list(self.text_tokens) if self.textual else None

    def _aligned(self, side: str) -> list[Tensor]:
        if hasattr(self, f"srra_{side}proj"):
            return getattr(self, f"srra_{side}proj")(self.compound_rep_tokens)
        return [layer(self.compound_rep_tokens) for layer in getattr(self, f"compound_rep_tokens_{side}proj")]


class RepresentationProjection(nn.Module):
    """P_v^r: MMRL a fresh matrix with std d_v^-1/2; MMRL++ P_v^c + A B."""

    def __init__(self, proj: Tensor, rank: int | None) -> None:
        super().__init__()
        d_v, d = proj.shape
        if rank is None:
            self.proj_rep = nn.Parameter(torch.randn(d_v, d).to(proj) * d_v**-0.5)
        else:
            self.A = nn.Parameter(_kaiming(proj.new_empty(d_v, rank)))
            self.B = nn.Parameter(proj.new_zeros(rank, d))

    def forward(self, r: Tensor, proj: Tensor) -> Tensor:
        """(B, d) of r (B, d_v), with `proj` the frozen P_v^c, (d_v, d)."""
        return r @ (self.proj_rep if hasattr(self, "proj_rep") else proj + self.A @ self.B)


class Plain(nn.Module):
    """MMRL, or MMRL++ with `plus_plus`, for one list of classes given as token ids (C, T).

    The parameters are the trained tensors alone, on the device and in the dtype of `model`, drawn from torch's global generator.
    `first_layer` is J, of both towers unless `first_text_layer` gives text one of its own (for towers of different depth).
    The zero-shot class features are computed here, once, so the weights of `model` must be in place.
    """

    def __init__(
        self,
        model: open_clip.CLIP,
        tokens: Tensor,
        *,
        first_layer: int = 6,
        first_text_layer: int | None = None,
        rep_tokens: int = 5,
        rep_dim: int = 512,
        alpha: float = 0.7,
        lam: float = 1.0,
        regulariser: Regulariser = "cosine",
        plus_plus: bool = False,
        beta: float = 0.9,
        layer_rank: int = 4,
        projection_rank: int = 64,
        visual: bool = True,
        textual: bool = True,
        space: Space = "shared",
        logit_scale: float = 100.0,
    ) -> None:
        super().__init__()
        self.clip = OracleClip(model)
        self.tokens = tokens.to(model.positional_embedding.device)
        with torch.no_grad():
            self.w_0 = self.clip.text_features(self.tokens, None, 0, None)  # a plain attribute: no part of what is trained and saved
        self.first_layer, self.beta = first_layer, beta if plus_plus else None
        self.first_text_layer = first_layer if first_text_layer is None else first_text_layer
        self.alpha, self.lam, self.regulariser, self.logit_scale = alpha, lam, regulariser, logit_scale
        layers = (self.clip.visual_depth - first_layer + 1, self.clip.text_depth - self.first_text_layer + 1)
        rank = layer_rank if plus_plus else None
        self.representation_learner = RepresentationLearner(self.clip, layers, rep_tokens, rep_dim, space, rank, visual, textual)
        if visual:
            self.image_encoder = RepresentationProjection(model.visual.proj, projection_rank if plus_plus else None)

    def forward(self, images: Tensor, labels: Tensor | None = None) -> dict:
        """Everything that MMRL computes for images (B, 3, H, W) and, if given, their labels (B,); section 3.2.3.

        Features are L2-normalised, logits are (B, C). Without visual tokens there are no representation features: those entries are
        None and the fused logits are the class logits. `terms` are the loss's parts before they are weighted.
        """
        proj = self.clip.model.visual.proj  # P_v^c, frozen
        visual_tokens, text_tokens = self.representation_learner()
        states = self.clip.image_states(images, visual_tokens, self.first_layer, self.beta)
        f_c = F.normalize(states[:, 0] @ proj, dim=-1)
        w = self.clip.text_features(self.tokens, text_tokens, self.first_text_layer, self.beta)
        with torch.no_grad():
            f_0 = F.normalize(self.clip.image_states(images, None, 0, None)[:, 0] @ proj, dim=-1)

        f_r = logits_rep = None
        logits_class = logits_fused = self.logit_scale * f_c @ w.T
        if visual_tokens is not None:
            r = states[:, 1 : 1 + len(visual_tokens[0])].mean(dim=1)  # (B, d_v), the mean over K of LN(r_L)
            f_r = F.normalize(self.image_encoder(r, proj), dim=-1)
            logits_rep = self.logit_scale * f_r @ w.T
            logits_fused = self.alpha * logits_class + (1 - self.alpha) * logits_rep

        terms = {"reg_image": self._distance(f_c, f_0), "reg_text": self._distance(w, self.w_0)}
        loss = None
        if labels is not None:
            loss = terms["ce_class"] = F.cross_entropy(logits_class, labels)
            if logits_rep is not None:
                terms["ce_rep"] = F.cross_entropy(logits_rep, labels)
                loss = self.alpha * terms["ce_class"] + (1 - self.alpha) * terms["ce_rep"]
            loss = loss + self.lam * (terms["reg_image"] + terms["reg_text"])
        return {
            "loss": loss,
            "terms": terms,
            "logits_class": logits_class,
            "logits_rep": logits_rep,
            "logits_fused": logits_fused,
            "logits_zero_shot": self.logit_scale * f_0 @ self.w_0.T,
            "image_features": f_c,
            "representation_features": f_r,
            "text_features": w,
            "image_features_zero_shot": f_0,
            "text_features_zero_shot": self.w_0,
        }

    def _distance(self, adapted: Tensor, zero_shot: Tensor) -> Tensor:
        """Regulariser of Table 9 between L2-normalised features (N, d): a mean over the features, or over all their elements."""
        if self.regulariser == "cosine":
            return 1 - F.cosine_similarity(adapted, zero_shot, dim=-1).mean()
        return {"l1": F.l1_loss, "mse": F.mse_loss}[self.regulariser](adapted, zero_shot)
