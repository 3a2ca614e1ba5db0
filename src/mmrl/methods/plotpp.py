"""PLOT++: optimal transport between learned prompts of both towers (Chen et al., ICLR 2023, and the authors' code, plot-pp)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from mmrl.clip import AnyImages, ClassList, Clip, Edit
from mmrl.clip.vision import ImageHidden
from mmrl.errors import UsageError
from mmrl.methods.plot import ImageSets, Transport, TransportOptions
from mmrl.methods.prompts import context_edit, context_texts, random_context, with_prompts
from mmrl.methods.registry import register
from mmrl.templates import fill

TEXTS = "a photo of a|this is a photo|this is picture of|one picture of a"  # the authors', for Caltech101 and SUN397


class PLOTPPOptions(TransportOptions):
    n_vision_prompts: int = Field(4, ge=1, le=100, description="M, number of image prompts; each is a pass of the image tower")
    n_ctx_vision: int = Field(2, ge=1, le=256, description="number of tokens of each image prompt")
    ctx_init: str = Field(
        TEXTS,
        max_length=5000,
        description="texts in front of the class name, one for each prompt, divided by '|'; of each as many tokens are learned as the "
        "first has: the rest of a longer one stays, and a shorter one takes tokens of the class name too; empty: random context",
    )
    n_ctx: int = Field(4, ge=1, le=70, description="number of context tokens of each prompt, where ctx_init is empty")
    trained: Literal["joint", "vision"] = Field("joint", description="the prompts of both towers, or the image's alone")


@register("plotpp")
class PLOTPP(Transport):
    """N prompts a class and M prompts an image, matched by optimal transport.

    Each image prompt is a pass of the image tower with its own tokens behind the patches, before ln_pre; its class token is one of the M
    local features. The pooled feature is their mean, before they are normalised. Text prompts start from texts, one each.

    The authors train in two stages: first the image prompts alone, with pooled logits added, on the first seed's images
    (`trained = "vision"`, `add_pooled_logits`); then both, for all seeds from the first stage of the first seed, which so have seen images
    of other draws than their own. A run here is one stage, and starts from its own seed.
    """

    title = "PLOT++"
    summary = "several learned prompts in both towers, matched by optimal transport"
    source = "Chen et al., ICLR 2023"
    Options = PLOTPPOptions
    options: PLOTPPOptions
    authors_names: ClassVar[Mapping[str, str]] = {"ctx": "prompt_learner.ctx", "ctx_vision": "prompt_learner.ctx_vision"}
    ctx: Tensor

    def __init__(self, clip: Clip, options: PLOTPPOptions) -> None:
        super().__init__(clip, options)
        self._texts = [text.strip() for text in options.ctx_init.split("|")] if options.ctx_init else []
        if self._texts and len(self._texts) < options.n_prompts:
            raise UsageError(
                f"ctx_init has {len(self._texts)} texts, and n_prompts is {options.n_prompts}; give one for each prompt, divided by '|'."
            )
        self._texts = self._texts[: options.n_prompts]
        start = self._initial()  # (N, n, d_t)
        self.n_ctx = start.shape[1]
        if options.trained == "joint":
            self.ctx = nn.Parameter(start)
        else:
            self.register_buffer("ctx", start)
        self.ctx_vision = nn.Parameter(random_context(options.n_vision_prompts, options.n_ctx_vision, clip.vision.width))  # (M, k, d_v)

    def _initial(self) -> Tensor:
        """As in the authors' code a text that is shorter than the first goes on with its end-of-text token."""
        clip, o = self.clip, self.options
        if not self._texts:
            return random_context(o.n_prompts, o.n_ctx, clip.text.width)
        ids, end = clip.tokenize(self._texts)
        count = int(end[0]) - 1
        if count < 1:
            raise UsageError(f"ctx_init is '{o.ctx_init}', whose first text is empty; give a text for each prompt, divided by '|'.")
        with torch.no_grad():
            return clip.text.words(ids[:, 1 : 1 + count]).clone()

    @property
    def modality(self) -> str:
        return "V, L" if self.options.trained == "joint" else "V"

    def class_list(self, names: Sequence[str], template: str | Sequence[str], *, memory_gib: float | None = None) -> ClassList:
        """As in `Method`, with a prompt of every text and name.

        Raises:
            UsageError: as there, and where nothing but learned tokens is left of a prompt.
        """
        if self._texts:
            texts = [prompt for text in self._texts for prompt in fill(text + " {}.", names)]
        else:
            texts = context_texts(names, self.n_ctx) * self.options.n_prompts
        classes = with_prompts(self.clip, names, template, texts, slots=self.n_ctx, memory_gib=memory_gib)
        ends = classes.fed.end
        if int(ends.min()) < 0:
            raise UsageError(
                f"of the prompt '{texts[int(ends.argmin())]}' nothing is left beside the {self.n_ctx} learned tokens, as many as the first "
                "text of ctx_init has; give texts with as many tokens each."
            )
        return classes

    # ---- features ----

    def encoded_prompts(self, classes: ClassList) -> Tensor:
        return self.clip.encode_prompts(classes.fed, {0: context_edit(self.clip, self.ctx.unsqueeze(1))}, normalise=False)

    def encoded_images(self, images: AnyImages) -> Tensor:
        """What the image tower puts out for images (B, 3, H, W) with every image prompt, (M, B, embed_dim)."""
        vision, count = self.clip.vision, self.options.n_vision_prompts
        main = self.clip.enter_image(images, 0).main.repeat(count, 1, 1)  # (M * B, 1 + patches, d_v)
        pooled = vision.finish(ImageHidden(main), 0, {0: Edit(tokens=vision.pre_norm(self.ctx_vision))})
        return (pooled.class_token @ vision.projection).unflatten(0, (count, -1))

    def image_features(self, images: AnyImages) -> ImageSets:
        features = self.encoded_images(images)
        with torch.autocast(features.device.type, enabled=False):
            features = features.to(torch.promote_types(features.dtype, torch.float32))
            return ImageSets(F.normalize(features, dim=-1).transpose(0, 1), F.normalize(features.mean(0), dim=-1))
