"""What a classifier's answers are worth: calibrated probabilities, images of none of the classes, sets of classes."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

from torch import Tensor

from mmrl.class_lists import class_names
from mmrl.classifier.web import Urls
from mmrl.data import Broken, Dataset, Draw, Item, usual_workers, warn_broken
from mmrl.data.given import given_dataset
from mmrl.data.sources import given_images
from mmrl.engine.calibrate import calibrate
from mmrl.engine.score import trained_mask
from mmrl.errors import Notice, UsageError, unknown
from mmrl.methods import Method
from mmrl.names import check_names, listed, name_key
from mmrl.templates import Template, check_template
from mmrl.trust.answers import SCORE, Prediction, Rejecting, rejection, scored, sets
from mmrl.trust.arrays import Floats
from mmrl.trust.conformal import METHODS
from mmrl.trust.rejection import checked_score
from mmrl.trust.state import FEW, Trust

DAC = "dac"
Calibrated = bool | Literal["dac"]
PARTS = ("train", "val", "test")


class Judged(NamedTuple):
    """What is answered for one image.

    Attributes:
        ranked: classes, likeliest first; empty for an image that was left out.
        score: how known it looks, higher is more; NaN for an image that was left out.
        unknown: whether it is rejected, as its score is below the threshold.
        within: its prediction set, likeliest first; empty where none was asked for.
    """

    ranked: list[Prediction]
    score: float
    unknown: bool = False
    within: Sequence[str] = ()


class Head(NamedTuple):
    """What a classifier keeps for a list of classes.

    Attributes:
        head: of the method, such as class features (C, embed_dim).
        seen: (C,), which classes were trained on.
        template: prompt, or several, of the names.
    """

    names: tuple[str, ...]
    head: Any
    seen: Tensor
    template: Template


class Trusting:
    """What a classifier says of its own answers: the part of `Classifier` that needs, or makes, a calibration."""

    method: Method
    trained: tuple[str, ...]
    template: Template
    draw: Draw | None
    trust: Trust | None
    _heads: dict[tuple[Any, ...], Head]
    _lock: Any
    _head: Callable[..., Head]
    _logits: Callable[..., tuple[Tensor, set[int]]]
    _ranked: Callable[..., list[list[Prediction]]]

    def calibrate(
        self, data: Any, classes: str | Sequence[str] | None = None, *, split: str | None = None, template: Template | None = None,
        root: str | Path | None = None, skip_broken: bool = False, workers: int | None = None,
    ) -> Trust:  # fmt: skip
        """Fit probabilities, thresholds and prediction sets to labelled images, and keep that; `save_pretrained` saves it.

        They must be images that it was not trained on and will not be measured on: what is fitted to test images looks better on them than
        it is. Images of its training are left out where they are known.

        Args:
            data: all that `mmrl.fit` takes. Of data with parts the validation images count, or else the training images that it was not
                trained on; of others every image.
            classes: names that compete; default: those that it was trained on, or those of the data for zero-shot CLIP. Recall and coverage
                are known for this list alone.
            split: another part: "train", "val" or "test".
            template: prompt, or several; default: the classifier's.
            root: folder with the downloaded data sets.
            skip_broken: leave out images that are missing or broken.
            workers: threads that prepare images; default: one a core, at most 8.

        Returns:
            what was fitted.

        Warns:
            Notice: there are few images.
            BrokenImageWarning: images were left out.

        Raises:
            UsageError: bad data, only test images, images of a class that does not compete, or one that cannot be read.
        """
        found = fit_trust(
            self, data, classes, split=split, template=template, root=root, skip_broken=skip_broken, workers=workers
        )
        with self._lock:
            self.trust = found
            self._heads.clear()
        return found

    def known_scores(
        self, images: Any, classes: str | Sequence[str] | None = None, *, score: str = SCORE, template: Template | None = None,
        skip_broken: bool = False, allow_urls: bool | Urls = False,
    ) -> Floats:  # fmt: skip
        """How much each image looks like one of the classes, (B,): higher is more. NaN for images left out; otherwise as `predict`.

        Args:
            score: "energy", the soft maximum of the logits, in their unit; or "mcm", maximum concept matching, the largest softmax
                probability of the cosines, from 1 / C.
        """
        checked_score(score)
        head, given = self._head(classes, template), given_images(images, allow_urls)
        logits, _ = self._logits(given, head, skip_broken=skip_broken, allow_urls=allow_urls)
        return scored(logits.numpy(), score, self.method.logit_scale)

    def judge(
        self, images: Any, classes: str | Sequence[str] | None = None, *, top: int = 5, reject: bool = True, recall: float | None = None,
        threshold: float | None = None, score: str = SCORE, coverage: float | None = None, template: Template | None = None,
        skip_broken: bool = False, allow_urls: bool | Urls = False, calibrated: Calibrated = True,
    ) -> list[Judged]:  # fmt: skip
        """The `top` classes of each image, how known it looks, whether it is rejected, and with `coverage` its prediction set, in one pass.
        Arguments as in `predict`, `rank` and `predict_sets`."""
        head, given = self._head(classes, template), given_images(images, allow_urls)
        rule = rejection(self.trust, head, reject=reject, recall=recall, threshold=threshold, score=score)
        logits, gone = self._logits(given, head, skip_broken=skip_broken, allow_urls=allow_urls)
        return self.judged(logits, head, gone, top=top, rule=rule, score=score, coverage=coverage, calibrated=calibrated)

    def judged(
        self, logits: Tensor, head: Head, gone: Collection[int] = (), *, top: int = 5, rule: Rejecting | None = None, score: str = SCORE,
        coverage: float | None = None, calibrated: Calibrated = True,
    ) -> list[Judged]:  # fmt: skip
        """What `judge` says of logits (B, C) on the CPU, as `score_pixels` gives them.

        Args:
            head: what the logits were made with.
            gone: positions of images that were left out, whose logits are NaN.
            rule: by which images are rejected, as `rejection` makes it.
        """
        within = [] if coverage is None else sets(logits.numpy(), self.trust, head, coverage, METHODS[0])
        scores = scored(logits.numpy(), score, self.method.logit_scale)
        ranked = self._ranked(logits, gone, head, top, calibrated)
        return [
            Judged(each, float(scores[at]), rule is not None and bool(scores[at] < rule.threshold), within[at] if within else ())
            for at, each in enumerate(ranked)
        ]

    def predict_sets(
        self, images: Any, classes: str | Sequence[str] | None = None, *, coverage: float = 0.9, method: str = "lac",
        template: Template | None = None, skip_broken: bool = False, allow_urls: bool | Urls = False,
    ) -> Any:  # fmt: skip
        """For each image the classes, likeliest first, that hold the right one with probability `coverage`; one list for a single image.

        The probability is over new images like those of the calibration, all classes together. A set is never empty; from too few held-out
        images for the coverage (8 for 0.9) every class is in it. Other arguments as in `predict`.

        Args:
            coverage: above 0 and below 1.
            method: "lac", the smallest sets on average, or "aps", larger ones for harder images.

        Raises:
            UsageError: it is not calibrated, or among other classes, or as `predict`.
        """
        own = self.trust.classes if classes is None and self.trust and not self.trained else classes
        head, given = self._head(own, template), given_images(images, allow_urls)
        logits, _ = self._logits(given, head, skip_broken=skip_broken, allow_urls=allow_urls)
        found = sets(logits.numpy(), self.trust, head, coverage, method)
        return found[0] if given.single else found


def fit_trust(
    classifier: Trusting, data: Any, classes: str | Sequence[str] | None, *, split: str | None, template: Template | None, root: Any,
    skip_broken: bool, workers: int | None,
) -> Trust:  # fmt: skip
    """What `Classifier.calibrate` does."""
    dataset = _calibrating(classifier, given_dataset(data, root=root), split)
    names = check_names(class_names(classes)) if classes is not None else classifier.trained or dataset.classes
    place = {name_key(name): at for at, name in enumerate(names)}
    used = {item.label for item in dataset.test}
    missing = [name for label, name in enumerate(dataset.classes) if label in used and name_key(name) not in place]
    if missing:
        raise UsageError(
            f"images of '{dataset.name}' are of {listed(missing)}, which {'is' if len(missing) == 1 else 'are'} not among the "
            f"{len(names)} classes to calibrate. Give the list of all classes that compete, or leave these images out."
        )
    items = [Item(item.key, place[name_key(dataset.classes[item.label])]) for item in dataset.test]
    own = check_template(template or classifier.template)
    dataset = replace(dataset, classes=tuple(names), template=own, train=[], val=[], test=items, rest_tests=False)
    skipped: list[Broken] | None = [] if skip_broken else None
    found = calibrate(
        classifier.method, dataset, items, seen=trained_mask(names, classifier.trained) if classifier.trained else False,
        workers=usual_workers(dataset.read) if workers is None else workers, skipped=skipped,
    )  # fmt: skip
    warn_broken(skipped or (), len(items), of=dataset.name)
    if found.images < FEW:
        warnings.warn(f"calibrated on {found.images} images: from fewer than {FEW}, thresholds and sets are rough.", Notice, stacklevel=3)
    return found


def _calibrating(classifier: Trusting, dataset: Dataset, split: str | None) -> Dataset:
    """`dataset` with the images to calibrate on as its test images; never the test part, unless it is asked for by name."""
    if split is not None and split not in PARTS:
        raise unknown("split", split, PARTS)
    drawn = classifier.draw if classifier.draw is not None and classifier.draw.dataset == dataset.name else None
    taken = {item.key for item in drawn.train} if drawn else set()
    part = split or ("train" if dataset.rest_tests else "val" if dataset.val else "train" if drawn else None)
    if part is None:
        raise UsageError(
            f"'{dataset.name}' has no validation images, and it is not known which of its training images were trained on. Calibrating on "
            "test images makes what is measured on them too good. Give other images, or say which part: split='train', 'val' or 'test'."
        )
    items = [item for item in getattr(dataset, part) if item.key not in taken]
    if not items:
        raise UsageError(f"'{dataset.name}' has no {part} images that this classifier was not trained on. Give other images.")
    return replace(dataset, test=items, rest_tests=False)
