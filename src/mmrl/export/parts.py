"""What of a classifier is exported: which programs, and what else a runtime must know."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mmrl.classifier.predictor import Classifier
from mmrl.clip import Clip, naming
from mmrl.clip.vocabulary import vocabulary_file
from mmrl.errors import UsageError
from mmrl.export.tracing import ImageProgram, LogitsProgram, PromptGroup, TextProgram, text_program
from mmrl.methods import Method, TwoTower
from mmrl.runtime.manifest import CLASS_FEATURES, FULL, LOGITS, REPRESENTATION_FEATURES, TRAINED
from mmrl.templates import template_list

SAME = 1e-4  # relative difference of logits that are the same but for rounding


@dataclass(frozen=True)
class TextPart:
    """What makes class features of new names.

    Attributes:
        program: of token ids.
        groups: the prompts that it takes.
        vocabulary: the file of the tokenizer's merges.
    """

    program: TextProgram
    groups: list[PromptGroup]
    vocabulary: bytes

    def tokens(self, names: Sequence[str]) -> list[Tensor]:
        """Token ids (T, C, context) of each group's prompts."""
        return [self.program.traced.plain_tokens(group.texts(names)).unflatten(0, (-1, len(names))) for group in self.groups]


@dataclass(frozen=True)
class Exportable:
    """Programs and data of a classifier.

    Attributes:
        kind: "full", which takes new classes too, or "trained".
        image: program of pixels, and the names of what it puts out.
        classes: features (C, embed_dim) of the trained classes, of a "full" one.
        text: None where new classes cannot be named; `no_text` says why.
        rule: how logits come of features, of a "full" one.
        subsets: whether logits among some of the trained classes are those among all, of a "trained" one.
        any_spelling: whether logits are the same however the trained names are written, of a "trained" one.
    """

    classifier: Classifier
    kind: str
    image: nn.Module
    outputs: tuple[str, ...]
    classes: NDArray[np.float32] | None
    text: TextPart | None
    no_text: str
    rule: dict[str, Any] | None
    subsets: bool = True
    any_spelling: bool = False

    @property
    def pixels(self) -> tuple[int, int, int]:
        """Shape of an image."""
        size = self.classifier.method.clip.image_size
        return 3, size, size


def exportable(classifier: Classifier, *, text: bool = True) -> Exportable:
    """What of `classifier` can be exported.

    Args:
        text: whether new classes shall be named.

    Raises:
        UsageError: a classifier without classes and without a text tower that can be exported.
    """
    method = classifier.method
    clip = method.clip
    if (rule := rule_of(method)) is None or not method.open_vocabulary(method.options):
        return _trained(classifier)
    assert isinstance(method, TwoTower)
    why, found = "it was exported without its text tower", None
    if text:
        found, why = _text(method, classifier)
    names, classes = classifier.trained, None
    if not names and found is None:
        raise UsageError(f"there is nothing to export: the classifier has no classes of its own, and no names can be given, as {why}.")
    with torch.no_grad(), naming(names, classifier.template):
        if names:
            classes = method.text_features(method.class_list(names, classifier.template)).float().cpu().numpy()
        representation = method.image_features(noise(clip, 1)).representation
    outputs = (CLASS_FEATURES,) if representation is None else (CLASS_FEATURES, REPRESENTATION_FEATURES)
    return Exportable(classifier, FULL, ImageProgram(method), outputs, classes, found, why, rule)


def rule_of(method: Method) -> dict[str, Any] | None:
    """How logits come of an image's and a class's features; None for a method that has no such rule, or does not say it."""
    kind = type(method)
    if not isinstance(method, TwoTower) or kind.logits is not TwoTower.logits or kind.head is not TwoTower.head:
        return None
    order = kind.__mro__
    says, combines = (next(at for at, cls in enumerate(order) if name in vars(cls)) for name in ("rule", "combine"))
    return method.rule() if says <= combines else None


def _text(method: TwoTower, classifier: Classifier) -> tuple[TextPart | None, str]:
    vocabulary = vocabulary_file(method.clip.tokenizer)
    if vocabulary is None:
        return None, f"the tokenizer of '{method.clip.name}' is not CLIP's own byte-pair encoding"
    try:
        with torch.no_grad():
            program, groups = text_program(method, classifier.template)
    except (UsageError, RuntimeError, ValueError) as error:
        return None, f"the text tower of method '{method.name}' cannot be traced: {error}"
    return TextPart(program, groups, vocabulary), ""


def _trained(classifier: Classifier) -> Exportable:
    method, names = classifier.method, classifier.trained
    if not names:
        raise UsageError(f"method '{method.name}' is exported with the classes that it was trained on, and there are none.")
    with torch.no_grad(), naming(names, classifier.template):
        some = max(1, len(names) // 2)
        lists = [method.class_list(each, classifier.template) for each in (names, names[:some], (*names[1:], names[0]))]
        heads = [method.head(each) for each in (*lists[:2], replace(lists[2], names=names))]  # the last: other prompts for the same names
        every, fewer, prompted = (method.logits(noise(method.clip, 2), head, True) for head in heads)
    why = f"method '{method.name}' has no class features that an image's are compared with"
    image = LogitsProgram(method, heads[0])
    subsets = torch.allclose(every[:, :some], fewer, rtol=SAME, atol=SAME)
    any_spelling = len(names) > 1 and torch.equal(every, prompted)
    return Exportable(classifier, TRAINED, image, (CLASS_FEATURES, LOGITS), None, None, why, None, subsets, any_spelling)


def noise(clip: Clip, count: int) -> Tensor:
    """Normalised images (count, 3, H, W) of the backbone's size and type."""
    kind = next(clip.model.parameters()).dtype
    generator = torch.Generator().manual_seed(count)
    return torch.randn(count, 3, clip.image_size, clip.image_size, generator=generator).to(clip.device, kind)


def templates_of(classifier: Classifier) -> list[str]:
    return list(template_list(classifier.template))
