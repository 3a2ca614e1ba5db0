"""Calibration of a method on held-out images of its classes: which images those are, and what is fitted to them."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmrl import trust
from mmrl.clip import ClassList
from mmrl.data import Broken, Dataset, Draw, Item
from mmrl.engine.features import FeatureStore, shown
from mmrl.engine.score import BATCH, evaluating, trained_mask
from mmrl.errors import UsageError
from mmrl.methods import Method, TwoTower
from mmrl.templates import Template
from mmrl.trust.arrays import Floats
from mmrl.trust.state import MOST, Source, Trust

LEAST = 10  # images; from fewer nothing is fitted without being asked for
A_CLASS, IN_ALL = 16, 500  # at most, where nobody asked: more tell little, and take time
SET_APART = 4  # at most, of the images of a class that would test


def held_out_images(dataset: Dataset, draw: Draw, *, apart: bool = False) -> tuple[list[Item], Source]:
    """Images of `dataset`, restricted to the classes of `draw`, that the draw left: of the validation part, else of the training part, else
    the draw's own validation images, else, if they may be set `apart`, some that would test and then do not. Never images that test.
    """
    drawn = {item.key for item in (*draw.train, *draw.val)}
    parts: tuple[tuple[Source, Sequence[Item]], ...] = (
        ("validation", [item for item in dataset.val if item.key not in drawn]),
        ("not drawn", [] if dataset.rest_tests else [item for item in dataset.train if item.key not in drawn]),
        ("validation", draw.val),
        ("held out", set_apart(dataset.held_out(draw.train)) if apart else []),
    )
    source, found = next((part for part in parts if part[1]), parts[0])
    return at_most(found, dataset.classes, A_CLASS, IN_ALL), source


def set_apart(dataset: Dataset) -> list[Item]:
    """The test images of `dataset` that calibrate instead: of each class at most 4, and at most half."""
    counts: dict[int, int] = defaultdict(int)
    for item in dataset.test:
        counts[item.label] += 1
    return at_most(dataset.test, dataset.classes, {label: min(SET_APART, count // 2) for label, count in counts.items()})


def at_most(items: Sequence[Item], classes: Sequence[str], each: int | dict[int, int], total: int = MOST) -> list[Item]:
    """Up to `each` of `items` of a class, and up to `total` in all, chosen by a generator seeded with the class's name; in their order."""
    groups: dict[int, list[Item]] = defaultdict(list)
    for item in items:
        groups[item.label].append(item)
    fair = max(1, total // max(1, len(groups)))
    chosen: set[Item] = set()
    for label, own in groups.items():
        shuffled = sorted(own)
        random.Random(classes[label]).shuffle(shuffled)
        chosen.update(shuffled[: min(fair, each if isinstance(each, int) else each[label])])
    return [item for item in items if item in chosen][:total]


def without(dataset: Dataset, items: Sequence[Item]) -> Dataset:
    """`dataset` without some of its test images."""
    gone = {item.key for item in items}
    return replace(dataset, test=[item for item in dataset.test if item.key not in gone])


def calibrate(
    method: Method, dataset: Dataset, items: Sequence[Item], *, seen: Tensor | bool, source: Source = "given", batch_size: int = BATCH,
    workers: int = 0, skipped: list[Broken] | None = None, store: FeatureStore | None = None,
) -> Trust:  # fmt: skip
    """Fit the method's calibration among the classes of `dataset`, with its prompt, to `items` of it.

    Args:
        seen, batch_size, workers, store: as in `evaluate_dataset`.
        skipped: a list to put the images in that cannot be read, which are left out; without one they are an error.

    Raises:
        UsageError: no images, one that cannot be read, or classes that the method cannot know.
    """
    items = at_most(items, dataset.classes, MOST)
    frozen = method.frozen_images
    logits, labels = list[Floats](), list[Floats]()
    with evaluating(method), torch.no_grad():
        head = method.head(method.class_list(dataset.classes, dataset.template))
        seen = seen.to(method.clip.device) if isinstance(seen, Tensor) else seen
        for images, features, true in shown(
            method.clip, dataset, items, batch_size=batch_size, workers=workers, skipped=skipped, images=not frozen, features=frozen,
            store=store,
        ):  # fmt: skip
            if frozen:
                assert features is not None
                found = method.logits_of_features(features, head, seen)
            else:
                assert images is not None
                found = method.logits(images, head, seen)
            logits.append(found.float().cpu().numpy().astype(np.float64))
            labels.append(true.cpu().numpy())
    if not logits:
        raise UsageError(f"'{dataset.name}' has no images to calibrate on.")
    gone = {each.key for each in skipped or ()}
    keys = [item.key for item in items if item.key not in gone] if source == "held out" else ()
    return Trust.fit(
        np.concatenate(logits), np.concatenate(labels), classes=dataset.classes, template=dataset.template, scale=method.logit_scale,
        source=source, keys=keys,
    )  # fmt: skip


def temperature_among(
    trust: Trust | None, method: Method, names: Sequence[str], template: Template, *, trained: Sequence[str]
) -> float | None:
    """What to divide logits among the classes `names` by; None without a calibration, and where it tells nothing of these logits.

    A method whose logits are of one scale takes the temperature to every list. Another takes it to the list and the prompt that were
    calibrated, and from trained classes to trained classes.
    """
    if trust is None:
        return None
    carries = method.one_scale or trust.holds_for(names, template) or bool(trained_mask((*names, *trust.classes), trained).all())
    return trust.temperature if carries else None


def class_factors(method: Method, trained: tuple[ClassList, Any], current: tuple[ClassList, Any]) -> Floats | None:
    """DAC's confidence (C,) of each of the current classes; None for a method without one text feature a class.

    Args:
        trained, current: a class list and what `method.head` makes of it.
    """
    (base, base_head), (classes, head) = trained, current
    if not isinstance(method, TwoTower) or not all(isinstance(each, Tensor) and each.ndim == 2 for each in (base_head, head)):
        return None
    features = (base.zero_shot, base_head, classes.zero_shot, head)
    return trust.distance_factors(*(each.detach().double().cpu().numpy() for each in features))
