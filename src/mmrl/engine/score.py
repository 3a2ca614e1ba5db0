"""Evaluation: one pass over the images, class features computed once for it and then dropped."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from mmrl.clip import ClassList
from mmrl.data import Broken, Dataset, Item, warn_broken
from mmrl.engine.batches import Batch, placed
from mmrl.engine.features import FeatureStore, Shown
from mmrl.engine.metrics import Answers, Tally
from mmrl.engine.tested import TestPass
from mmrl.engine.turns import At, Turns, finish
from mmrl.errors import UsageError, unknown
from mmrl.methods import Method, cosine_logits
from mmrl.names import name_key
from mmrl.reports.records import Scores

BATCH = 64


class Evaluation(NamedTuple):
    """Scores of a method and, where asked for, of zero-shot CLIP on the same images; `skipped` were left out as missing or broken, and
    `answers` are the method's, of the images that were not."""

    adapted: Scores
    zero_shot: Scores | None
    skipped: tuple[Broken, ...]
    answers: Answers


def trained_mask(names: Sequence[str], trained: Sequence[str]) -> Tensor:
    """Which of `names` (C) are among the `trained` ones: (C,) boolean. Case, spaces and underscores make no difference."""
    known = set(map(name_key, trained))
    return torch.tensor([name_key(name) in known for name in names], dtype=torch.bool)


CLASSIFIERS = ("auto", "fused", "class")


def seen_classes(
    names: Sequence[str],
    trained: Sequence[str],
    *,
    dataset: str | None = None,
    trained_on: str | None = None,
    classifier: str = "auto",
    two: bool = True,
) -> tuple[Tensor, str]:
    """Which of the classes `names` (C) count as trained on, (C,) boolean, and why, for people. Those get fused scores.

    The paper's rule (section 3.2.3): fused on classes trained on, the class token alone on new classes and on every other data set, also
    where names agree.

    Args:
        trained: classes trained on; none for zero-shot.
        dataset: name of the data set tested on, if it has one that stands for its pictures (not a folder's).
        trained_on: name of the data set trained on, if known.
        classifier: 'auto' for that rule, 'fused' or 'class' for one of the two on all classes.
        two: whether the method has two classifiers (`Method.two_classifiers`); with one there is nothing to say, and nothing to choose.

    Raises:
        UsageError: an unknown classifier, one chosen where there is one alone, or 'auto' for a named data set where it is not known what
            was trained on.
    """
    if classifier not in CLASSIFIERS:
        raise unknown("classifier", classifier, CLASSIFIERS)
    every, none = torch.ones(len(names), dtype=torch.bool), torch.zeros(len(names), dtype=torch.bool)
    if not trained:
        return none, ""
    if not two:
        if classifier != "auto":
            raise UsageError(f"classifier is '{classifier}', but this method has one classifier, so there is none to choose; leave it out.")
        other = dataset is not None and trained_on is not None and dataset != trained_on
        return none if other else trained_mask(names, trained), ""
    if classifier != "auto":
        return (every, "fused on all classes, as asked for") if classifier == "fused" else (none, "the class token alone, as asked for")
    if dataset is not None and trained_on is None:
        raise UsageError(
            f"the adapter does not say which data set it was trained on, so it is not known whether '{dataset}' is. Say which classifier "
            "to use with --classifier: fused (trained on it) or class (on another)."
        )
    if dataset is not None and dataset != trained_on:
        return none, f"the class token alone: trained on '{trained_on}', which is another data set"
    mask = trained_mask(names, trained)
    seen = int(mask.sum())
    new = len(names) - seen
    parts = [f"fused on {seen} {'class that was' if seen == 1 else 'classes that were'} trained on"] if seen else []
    parts += [f"the class token alone on {new} new {'one' if new == 1 else 'ones'}"] if new else []
    return mask, ", ".join(parts)


def evaluate(method: Method, classes: ClassList, batches: Iterable[Batch], seen: Tensor | bool) -> Scores:
    """Scores of `method` as it stands now, in float32 whatever it was trained in, as the published runs are tested.

    Args:
        batches: of images (B, 3, H, W), as the backbone's test preprocessing makes them, with labels (B,).
        seen: whether the classes were trained on: one answer, or one per class (C,), boolean.

    Raises:
        UsageError: no images, labels that are no class of the list, or classes that the method cannot know.
        MmrlError: logits that are not finite.
    """
    frozen, clip = method.frozen_images, method.clip
    moved = ((placed(images, clip.device), labels) for images, labels in batches)
    passes = (Shown(images, clip.encode_image(images, normalise=False) if frozen else None, labels) for images, labels in moved)
    with evaluating(method):
        found = _Scoring(method, classes, seen, beside=False)
        for batch in passes:
            found.add(batch)
    return found.adapted.scores()


def evaluate_dataset(
    method: Method,
    dataset: Dataset,
    items: Sequence[Item] | None = None,
    *,
    seen: Tensor | Sequence[bool] | bool,
    batch_size: int = BATCH,
    workers: int = 0,
    skip_broken: bool = False,
    beside_zero_shot: bool = True,
    store: FeatureStore | None = None,
) -> Evaluation:
    """Scores on images of `dataset`, among its classes and with its prompt, and those of zero-shot CLIP on the same images.

    Args:
        items: which images; default: the test ones.
        seen: whether the classes were trained on, or per class of the set: `trained_mask(dataset.classes, trained)`.
        workers: threads that prepare images; `mmrl.data.usual_workers(dataset.read)` is a good number.
        skip_broken: leave out images that are missing or broken, and list them in `skipped`, instead of stopping at the first.
        store: where frozen features and decoded pixels are looked for, and kept; the scores are the same.

    Warns:
        BrokenImageWarning: images were left out.

    Raises:
        UsageError: no images, one that cannot be read, classes that the method cannot know, or `seen` of a length other than that of the
            class list.
    """
    items = dataset.test if items is None else items
    images = TestPass(method.clip, dataset, items, batch_size=batch_size, workers=workers, skip_broken=skip_broken, store=store)
    with closing(images):
        return finish(scoring(method, dataset, images, len(items), seen=seen, beside_zero_shot=beside_zero_shot))


def scoring(
    method: Method, dataset: Dataset, images: TestPass, count: int, *, seen: Tensor | Sequence[bool] | bool, beside_zero_shot: bool,
    temperature: float | None = None, at: At = (),
) -> Turns[Evaluation]:  # fmt: skip
    """As `evaluate_dataset`, on a pass over `count` images that other methods may take too: a turn before each batch.

    Args:
        temperature: what logits are divided by for the probabilities of the answers, not for the scores.
        at: how far the turns before this test were.
    """
    answer = seen if isinstance(seen, bool) else torch.as_tensor(seen, dtype=torch.bool)
    if isinstance(answer, Tensor) and answer.shape != (len(dataset.classes),):
        count = len(dataset.classes)
        raise UsageError(f"seen has shape {tuple(answer.shape)}; '{dataset.name}' has {count} classes, and each needs one answer.")
    frozen, beside = method.frozen_images, beside_zero_shot and not _is_zero_shot(method)
    images.ask(images=not frozen, features=frozen or beside)
    yield *at, 0  # all who are tested on these images have asked before the first of them is read
    with evaluating(method):
        classes, position = method.class_list(dataset.classes, dataset.template), 0
        found = _Scoring(method, classes, answer, beside=beside_zero_shot, temperature=temperature)
        while (batch := images.at(position)) is not None:
            found.add(batch)
            position += 1
            yield *at, position
    warn_broken(images.skipped, count, of=dataset.name)
    zero_shot = found.zero_shot
    return Evaluation(found.adapted.scores(), zero_shot.scores() if zero_shot else None, images.skipped, found.adapted.answers())


def _is_zero_shot(method: Method) -> bool:
    return not method.state_dict()


class _Scoring:
    """Answers of a method, batch by batch, and beside it those of zero-shot CLIP."""

    def __init__(
        self, method: Method, classes: ClassList, seen: Tensor | bool, *, beside: bool, temperature: float | None = None
    ) -> None:
        self._method, self._classes, self._beside, self._same = method, classes, beside, _is_zero_shot(method)
        self._seen = seen.to(method.clip.device) if isinstance(seen, Tensor) else seen
        self.adapted, self._frozen = Tally(classes.names, temperature), Tally(classes.names)
        with torch.no_grad():
            self._head = method.head(classes)  # lives as long as this, so it cannot go stale

    @torch.no_grad()
    def add(self, batch: Shown) -> None:
        images, features, labels = batch
        if self._method.frozen_images:
            assert features is not None
            logits = self._method.logits_of_features(features, self._head, self._seen)
        else:
            assert images is not None
            logits = self._method.logits(images, self._head, self._seen)
        self.adapted.add(_array(logits), labels.cpu().numpy())
        if self._beside and not self._same:
            assert features is not None
            logits = cosine_logits(F.normalize(features, dim=-1), self._classes.zero_shot, self._method.clip.logit_scale)
            self._frozen.add(_array(logits), labels.cpu().numpy())

    @property
    def zero_shot(self) -> Tally | None:
        return (self.adapted if self._same else self._frozen) if self._beside else None


def _array(logits: Tensor) -> NDArray[np.float32]:
    return logits.float().cpu().numpy()


@contextmanager
def evaluating(method: Method) -> Iterator[None]:
    """As at test, and afterwards as it was."""
    before = method.training
    method.eval()
    try:
        yield
    finally:
        method.train(before)
