"""RPO: read-only prompt optimization for vision-language few-shot learning (Lee et al., ICCV 2023)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from mmrl.clip import AnyImages, ClassList, Clip, Edit
from mmrl.methods.base import Method
from mmrl.methods.exchange import Loss
from mmrl.methods.options import MethodOptions
from mmrl.methods.prompts import with_prompts
from mmrl.methods.registry import register
from mmrl.methods.two_tower import cosine_logits
from mmrl.templates import DEFAULT_TEMPLATE, check_template, fill

NOISE = 0.1  # length of what is added to the token that a prompt starts from


class RPOOptions(MethodOptions):
    """Defaults are the authors' for base-to-novel."""

    n_prompts: int = Field(24, ge=1, le=1000, description="K, number of read-only prompts of each tower; they are compared in pairs")
    template: str | None = Field(DEFAULT_TEMPLATE, max_length=2000, description="prompt for every data set; null: the data set's own")
    keep_underscores: bool = Field(True, description="whether class names keep their underscores in the prompt, as in the authors' code")


def near(token: Tensor, count: int) -> Tensor:
    """`count` vectors (count, d) at a distance of 0.1 from `token` (d,), each in a direction of its own."""
    return token + NOISE * F.normalize(torch.randn(count, len(token)), dim=-1)


@register("rpo")
class RPO(Method):
    """Prompts that read: they attend to the tokens of CLIP in every layer, and nobody attends to them (section 3).

    So what CLIP computes of images and class names stays as it is, and needs no gradient; only the prompts are run with one. A logit is the
    mean cosine of K pairs, an image prompt's output and a text prompt's. Image prompts enter before ln_pre. Text prompts stand behind the
    end-of-text token and have no positions: in the authors' code they take places among the 77 of the text tower, and a prompt with no
    room for them fails; here they need none.
    """

    title = "RPO"
    summary = "prompts in both towers that read CLIP's tokens and leave them as they are"
    source = "Lee et al., ICCV 2023"
    Options = RPOOptions
    options: RPOOptions
    edits_layers = True
    authors_names: ClassVar[Mapping[str, str]] = {
        "text_prompt": "prompt_learner.text_prompt",
        "image_prompt": "prompt_learner.img_prompt",
    }

    def __init__(self, clip: Clip, options: RPOOptions) -> None:
        super().__init__(clip, options)
        if options.template is not None:
            check_template(options.template, of=" of the option 'template'")
        ids, end = clip.tokenize(["a"])
        with torch.no_grad():
            end_of_text = clip.text.words(ids[0, end[0]]).float().cpu()
            class_token = clip.vision.class_token.float().cpu()
        self.text_prompt = nn.Parameter(near(end_of_text, options.n_prompts))  # (K, d_t)
        self.image_prompt = nn.Parameter(near(class_token, options.n_prompts))  # (K, d_v)

    @property
    def modality(self) -> str:
        return "V, L"

    def class_list(self, names: Sequence[str], template: str | Sequence[str], *, memory_gib: float | None = None) -> ClassList:
        own = template if self.options.template is None else self.options.template
        texts = fill(own, names, underscores=self.options.keep_underscores)
        return with_prompts(self.clip, names, template, texts, readers=self.options.n_prompts, memory_gib=memory_gib)

    # ---- features ----

    def text_features(self, classes: ClassList) -> Tensor:
        """What the prompts read in each class's prompt: (C, K, embed_dim), normalised."""
        return self.clip.encode_prompts(classes.fed, {0: Edit(readers=self.text_prompt)})[:, 1:]

    def image_features(self, images: AnyImages) -> Tensor:
        """What the prompts read in images (B, 3, H, W): (B, K, embed_dim), normalised."""
        vision = self.clip.vision
        readers = vision.finish(self.clip.enter_image(images, 0), 0, {0: Edit(readers=vision.pre_norm(self.image_prompt))}).readers
        assert readers is not None
        return F.normalize(readers @ vision.projection, dim=-1)

    # ---- logits ----

    def combine(self, images: Tensor, text: Tensor) -> Tensor:
        """Logits (B, C): the scaled cosines of the K pairs, averaged."""
        return cosine_logits(images.flatten(1), text.flatten(1), self.logit_scale / self.options.n_prompts)

    def loss(self, images: AnyImages, labels: Tensor, classes: ClassList) -> Loss:
        """Cross-entropy."""
        logits = self.combine(self.image_features(images), self.text_features(classes))
        total = F.cross_entropy(logits, labels)
        return Loss(total, {"ce": total}, logits.detach())

    def head(self, classes: ClassList) -> Tensor:
        return self.text_features(classes)

    def logits(self, images: AnyImages, head: Tensor, seen: Tensor | bool) -> Tensor:
        return self.combine(self.image_features(images), head)
