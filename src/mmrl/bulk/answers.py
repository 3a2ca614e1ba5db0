"""What is asked of every image, and what is answered."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from mmrl.classifier.judging import Calibrated, Head, Judged
from mmrl.errors import UsageError
from mmrl.templates import Template, check_template
from mmrl.trust.answers import SCORE, Prediction, Rejecting, rejection, sets
from mmrl.trust.conformal import METHODS

if TYPE_CHECKING:
    from mmrl.classifier.predictor import Classifier

TOP = 3


class Answer(NamedTuple):
    """The classes of an image, likeliest first; or why there are none. What was not asked for is None.

    Attributes:
        score, unknown: how known it looks, and whether it is rejected.
        within: its prediction set.
        copy: where a copy of it goes.
    """

    image: str
    ranked: Sequence[Prediction]
    error: str = ""
    score: float | None = None
    unknown: bool | None = None
    within: Sequence[str] | None = None
    copy: str | None = None

    @property
    def more(self) -> dict[str, Any]:
        """What was asked for besides classes, by its name."""
        within = None if self.within is None else list(self.within)
        values = {"score": self.score, "unknown": self.unknown, "set": within, "copy": self.copy}
        return {name: value for name, value in values.items() if value is not None}


class Judging(NamedTuple):
    """The classes that compete, and the rule by which images are rejected, if they are."""

    head: Head
    rule: Rejecting | None


@dataclass(frozen=True)
class AskedOfEach:
    """What is asked of every image; fields are those of `Classifier.judge`, and `allow_urls`."""

    classes: str | Sequence[str] | None = None
    top: int = TOP
    reject: bool = False
    recall: float | None = None
    threshold: float | None = None
    score: str = SCORE
    coverage: float | None = None
    template: Template | None = None
    calibrated: Calibrated = True
    allow_urls: bool = False

    @property
    def rejects(self) -> bool:
        return self.reject or self.recall is not None or self.threshold is not None

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of what an answer has besides classes."""
        return (*(("score", "unknown") if self.rejects else ()), *(("set",) if self.coverage is not None else ()))

    def judging(self, classifier: Classifier) -> Judging:
        """What is needed for every block, computed once.

        Raises:
            UsageError: the classifier cannot be asked that.
        """
        if self.top < 1:
            raise UsageError(f"top is {self.top}; it must be at least 1.")
        head = classifier.head(self.classes, self.template)
        rule = rejection(
            classifier.trust, head, reject=self.reject, recall=self.recall, threshold=self.threshold, score=self.score
        )
        if self.coverage is not None:
            sets(np.zeros((0, len(head.names))), classifier.trust, head, self.coverage, METHODS[0])
        return Judging(head, rule)

    def judged(self, classifier: Classifier, judging: Judging, logits: Tensor) -> list[Judged]:
        """Answers of images with logits (B, C)."""
        return classifier.judged(
            logits, judging.head, top=self.top, rule=judging.rule, score=self.score, coverage=self.coverage, calibrated=self.calibrated
        )

    def decides(self, classifier: Classifier, names: Sequence[str]) -> dict[str, Any]:
        """All that decides an answer, as plain data: options, the class names, and a hash of the classifier."""
        template = check_template(self.template or classifier.template)
        return {
            "method": classifier.method.name,
            "adapter": fingerprint(classifier),
            "backbone": classifier.method.clip.identity,
            "classes": list(names),
            "template": [template] if isinstance(template, str) else list(template),
            "top": self.top,
            "reject": [self.score, self.recall, self.threshold] if self.rejects else None,
            "coverage": self.coverage,
            "calibrated": self.calibrated,
            "allow_urls": self.allow_urls,
        }


def fingerprint(classifier: Classifier) -> str:
    """SHA-256 of what a classifier knows: tensors, options, trained classes, calibration; not of the backbone."""
    method, found = classifier.method, hashlib.sha256()
    trust = classifier.trust.model_dump(mode="json") if classifier.trust else None
    plain = [method.name, method.options.model_dump(mode="json"), list(classifier.trained), classifier.trained_on, trust]
    found.update(json.dumps(plain, sort_keys=True).encode("utf-8", "surrogatepass"))
    for name, value in sorted(method.state_dict().items()):
        tensor = value.detach().cpu().contiguous()
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        found.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()
