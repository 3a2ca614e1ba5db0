"""Evaluation: one pass over the images, class features computed once for it and then dropped."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mmrl.clip import ClassList, Clip
from mmrl.data import Broken, Dataset, Item, Preprocess, test_batches, warn_broken
from mmrl.engine.metrics import Tally
from mmrl.engine.precision import autocast
from mmrl.errors import UsageError, unknown
from mmrl.methods import Method
from mmrl.methods.base import cosine_logits
from mmrl.names import name_key
from mmrl.reports.records import Scores
from mmrl.templates import Template

BATCH = 64
Batch = tuple[Tensor, Tensor]  # images (B, 3, H, W), labels (B,)


class Evaluation(NamedTuple):
    """Scores of the adapted and of the zero-shot classifier on the same images; `skipped` were left out as missing or broken."""

    adapted: Scores
    zero_shot: Scores
    skipped: tuple[Broken, ...] = ()


def preprocess_of(clip: Clip, *, flip: bool = True) -> Preprocess:
    """The transforms that make images into inputs of `clip`."""
    return Preprocess(clip.image_size, clip.mean, clip.std, clip.interpolation, flip=flip)


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
) -> tuple[Tensor, str]:
    """Which of the classes `names` (C) count as trained on, (C,) boolean, and why, for people. Those get fused scores.

    The paper's rule (section 3.2.3): fused on classes trained on, the class token alone on new classes and on every other data set, also
    where names agree.

    Args:
        trained: classes trained on; none for zero-shot.
        dataset: name of the data set tested on, if it has one that stands for its pictures (not a folder's).
        trained_on: name of the data set trained on, if known.
        classifier: 'auto' for that rule, 'fused' or 'class' for one of the two on all classes.

    Raises:
        UsageError: an unknown classifier, or 'auto' for a named data set where it is not known what was trained on.
    """
    if classifier not in CLASSIFIERS:
        raise unknown("classifier", classifier, CLASSIFIERS)
    every, none = torch.ones(len(names), dtype=torch.bool), torch.zeros(len(names), dtype=torch.bool)
    if not trained:
        return none, "zero-shot"
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
    parts = [f"fused on {seen} classes that were trained on"] if seen else []
    parts += [f"the class token alone on {len(names) - seen} new ones"] if seen < len(names) else []
    return mask, ", ".join(parts)


def evaluate(
    method: Method, classes: ClassList, batches: Iterable[Batch], seen: Tensor | bool, *, precision: str = "fp32"
) -> Scores:
    """Scores of `method` as it stands now.

    Args:
        batches: of images (B, 3, H, W), as the backbone's test preprocessing makes them, with labels (B,).
        seen: whether the classes were trained on: one answer, or one per class (C,), boolean.

    Raises:
        UsageError: no images, or labels that are no class of the list.
        MmrlError: logits that are not finite.
    """
    return _evaluate(method, classes, batches, seen, precision, zero_shot=False)[0]


def evaluate_zero_shot(clip: Clip, classes: ClassList, batches: Iterable[Batch], *, precision: str = "fp32") -> Scores:
    """Scores of the frozen CLIP. Raises as `evaluate`."""
    tally, device = Tally(classes.names), clip.device
    with torch.no_grad(), autocast(precision, device):
        for images, labels in batches:
            tally.add(_array(_zero_shot_logits(clip, classes, images.to(device))), labels.cpu().numpy())
    return tally.scores()


def evaluate_both(
    method: Method, classes: ClassList, batches: Iterable[Batch], seen: Tensor | bool, *, precision: str = "fp32"
) -> Evaluation:
    """Both in one pass over `batches`. Arguments and errors as those of `evaluate`."""
    adapted, zero_shot = _evaluate(method, classes, batches, seen, precision, zero_shot=True)
    assert zero_shot is not None
    return Evaluation(adapted, zero_shot)


def evaluate_dataset(
    method: Method,
    dataset: Dataset,
    items: Sequence[Item] | None = None,
    *,
    seen: Tensor | Sequence[bool] | bool,
    template: Template | None = None,
    batch_size: int = BATCH,
    workers: int = 0,
    precision: str = "fp32",
    skip_broken: bool = False,
) -> Evaluation:
    """Adapted and zero-shot scores on images of `dataset`, among its classes.

    Args:
        items: which images; default: the test ones.
        seen: whether the classes were trained on, or per class of the set: `trained_mask(dataset.classes, trained)`.
        template: prompt, or several to average; default: the data set's.
        workers: threads that prepare images; `mmrl.data.usual_workers(dataset.read)` is a good number.
        skip_broken: leave out images that are missing or broken, and list them in `skipped`, instead of stopping at the first.

    Warns:
        BrokenImageWarning: images were left out.

    Raises:
        UsageError: no images, one that cannot be read, or `seen` of a length other than that of the class list.
    """
    answer = seen if isinstance(seen, bool) else torch.as_tensor(seen, dtype=torch.bool)
    if isinstance(answer, Tensor) and answer.shape != (len(dataset.classes),):
        count = len(dataset.classes)
        raise UsageError(f"seen has shape {tuple(answer.shape)}; '{dataset.name}' has {count} classes, and each needs one answer.")
    items = dataset.test if items is None else items
    skipped: list[Broken] | None = [] if skip_broken else None
    preprocess, device = preprocess_of(method.clip), method.clip.device
    batches = test_batches(dataset, items, preprocess, batch_size, workers, device=device, skipped=skipped)
    classes = method.class_list(dataset.classes, template or dataset.template)
    pair = evaluate_both(method, classes, batches, answer, precision=precision)
    warn_broken(skipped or (), len(items), of=dataset.name)
    return pair._replace(skipped=tuple(skipped or ()))


def _evaluate(
    method: Method, classes: ClassList, batches: Iterable[Batch], seen: Tensor | bool, precision: str, *, zero_shot: bool
) -> tuple[Scores, Scores | None]:
    clip, device = method.clip, method.clip.device
    adapted, frozen = Tally(classes.names), Tally(classes.names)
    with _evaluating(method), torch.no_grad(), autocast(precision, device):
        seen = seen.to(device) if isinstance(seen, Tensor) else seen
        text = method.text_features(classes)  # lives for this call alone, so it cannot go stale
        for images, labels in batches:
            images = images.to(device)
            adapted.add(_array(method.logits(images, text, seen)), labels.cpu().numpy())
            if zero_shot and method.trainable:
                frozen.add(_array(_zero_shot_logits(clip, classes, images)), labels.cpu().numpy())
    scores = adapted.scores()
    if not zero_shot:
        return scores, None
    return scores, frozen.scores() if method.trainable else scores


def _zero_shot_logits(clip: Clip, classes: ClassList, images: Tensor) -> Tensor:
    return cosine_logits(clip.encode_image(images), classes.zero_shot, clip.logit_scale)


def _array(logits: Tensor) -> NDArray[np.float32]:
    return logits.float().cpu().numpy()


@contextmanager
def _evaluating(method: Method) -> Iterator[None]:
    before = method.training
    method.eval()
    try:
        yield
    finally:
        method.train(before)
