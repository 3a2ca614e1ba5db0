"""The open-world test: trained and new classes in one list, and what confidences, rejection and prediction sets are worth there.

Each image is passed once; all rules and measures follow from its logits. Temperatures, biases, thresholds and quantiles are fitted on
validation images of trained classes, never on a test image, nor on any image of a new class.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from mmrl import trust
from mmrl.data import Broken, Dataset, Item, describe_broken, draw_shots, warn_broken
from mmrl.engine.calibrate import class_factors
from mmrl.engine.context import Bench, Context
from mmrl.engine.features import FeatureStore, shown
from mmrl.engine.metrics import score
from mmrl.engine.record import environment
from mmrl.engine.rules import STACKED, Fitted, Floats, Mask, Passed, cross_fitted, fit_on, fitted_rules, plain_rules
from mmrl.engine.score import evaluating
from mmrl.methods import Method, cosine_logits
from mmrl.protocols import Cell
from mmrl.reports.records import Coverage, ListCalibration, OpenWorldRecord, Rejection, RuleScores, TestRecord

MOST_UNKNOWN = 500  # images of each other data set, evenly over its test list
RECALL = 0.95  # of known images, at the threshold for rejection
COVERAGE = 0.9  # of prediction sets
SAME = 1e-3  # logits that differ by less are those of the same rule
Labels = NDArray[np.int64]


@dataclass(frozen=True)
class Parts:
    """The images of an open-world test; labels are of the whole list of classes.

    Attributes:
        trained: (C,), the classes that were trained on; for zero-shot CLIP, the base half.
        test: of all classes.
        validation, validation_new: held-out images of trained classes, and of new ones.
        others: by name, data sets and some of their test images.
    """

    dataset: Dataset
    trained: Mask
    test: Sequence[Item]
    validation: Sequence[Item]
    validation_new: Sequence[Item]
    others: Mapping[str, tuple[Dataset, Sequence[Item]]]

    def names(self, trained: bool) -> list[str]:
        """Of the trained classes, or of the new ones."""
        return [name for name, own in zip(self.dataset.classes, self.trained, strict=True) if own == trained]


def parts_of(cell: Cell, context: Context) -> Parts:
    """What `cell` is tested on. Validation images are those of its draw; zero-shot CLIP, which has none, takes the whole list."""
    dataset, t = context.tested(cell), cell.training
    base = dataset.restrict("base").kept or ()
    trained = np.isin(np.arange(len(dataset.classes)), base)
    if t is None:
        held_out, new = [item for item in dataset.val if trained[item.label]], list[Item]()
    else:
        whole = context.dataset(t.dataset)
        kept = [at for at in range(len(trained)) if not trained[at]]
        held_out = [Item(item.key, base[item.label]) for item in context.prepare(t).draw.val]
        drawn = draw_shots(whole, t.shots, t.seed, "novel", allow_fewer=True).val
        new = [Item(item.key, kept[item.label]) for item in drawn]
    others = {name: (other, _some(other.test)) for name in cell.others or () if (other := context.dataset(name)).test}
    return Parts(dataset, trained, dataset.test, held_out, new, others)


def _some(items: Sequence[Item]) -> list[Item]:
    places = np.linspace(0, len(items) - 1, min(len(items), MOST_UNKNOWN)).round().astype(int)
    return [items[at] for at in places]


class _Logits(NamedTuple):
    """Of the same images: over the whole list by each rule's classifier, among the trained classes, and among the new ones."""

    labels: Labels
    mixed: Passed
    trained: Floats
    new: Floats

    def at(self, places: Mask) -> _Logits:
        return _Logits(self.labels[places], self.mixed.at(places), self.trained[places], self.new[places])


class _Reader:
    """Passes images through the method, over the three lists of classes."""

    def __init__(self, method: Method, parts: Parts, bench: Bench, store: FeatureStore | None) -> None:
        self.method, self.bench, self.store, self.skipped = method, bench, store, list[Broken]()
        template = parts.dataset.template
        lists = {"mixed": parts.dataset.classes, "trained": parts.names(True), "new": parts.names(False)}
        self.classes = {name: method.class_list(names, template) for name, names in lists.items()}
        self.heads = {name: method.head(classes) for name, classes in self.classes.items()}
        seen: Tensor | bool = torch.from_numpy(parts.trained).to(method.clip.device) if method.state_dict() else False
        known = not isinstance(seen, bool)
        asked: list[tuple[str, Tensor | bool]] = [("mixed", seen), ("trained", known), ("new", False)]
        self.asked = asked + ([("mixed", True), ("mixed", False)] if method.two_classifiers else [])

    def read(self, dataset: Dataset, items: Sequence[Item]) -> _Logits | None:
        """None for no images."""
        if not items:
            return None
        columns: list[list[Floats]] = [[] for _ in range(len(self.asked) + 1)]
        labels: list[Labels] = []
        for logits, true in self._batches(dataset, items):
            labels.append(true.cpu().numpy())
            for column, values in zip(columns, logits, strict=True):
                column.append(values.float().cpu().numpy().astype(np.float64))
        own, trained, new, *two, frozen = (np.concatenate(column) for column in columns)
        fused, single = two or (None, None)
        halves = (frozen, trained, new) if self.method.state_dict() else (None, None, None)
        return _Logits(np.concatenate(labels), Passed(own, fused, single, *halves), trained, new)

    def _batches(self, dataset: Dataset, items: Sequence[Item]) -> Iterator[tuple[list[Tensor], Tensor]]:
        """Logits of the questions asked, and last those of frozen CLIP, with labels."""
        method, bench = self.method, self.bench
        frozen, zero_shot = method.frozen_images, self.classes["mixed"].zero_shot
        asked = [(self.heads[name], seen) for name, seen in self.asked]
        skipped: list[Broken] | None = [] if bench.skip_broken else None
        for images, features, labels in shown(
            method.clip, dataset, items, batch_size=bench.batch_size, workers=bench.workers, skipped=skipped, images=not frozen,
            features=True, store=self.store,
        ):  # fmt: skip
            assert features is not None
            if images is None:
                found = [method.logits_of_features(features, head, seen) for head, seen in asked]
            else:
                found = method.logits_each(images, asked)
            yield [*found, cosine_logits(F.normalize(features, dim=-1), zero_shot, method.clip.logit_scale)], labels
        warn_broken(skipped or (), len(items), of=dataset.name)
        self.skipped += skipped or ()

    def factors(self, of: Literal["mixed", "new"]) -> Floats | None:
        """DAC's factors of the classes of a list (C,); None for a method without one text feature a class."""
        classes, heads = self.classes, self.heads
        return class_factors(self.method, (classes["trained"], heads["trained"]), (classes[of], heads[of]))


def open_world_test(method: Method, parts: Parts, bench: Bench, *, store: FeatureStore | None = None) -> TestRecord:
    """Test `method` on all images among all classes; the record's scores are of the rule that the method ships.

    Raises:
        UsageError: as `evaluate_dataset`, or no test images of trained, or of new classes.
    """
    started, began, dataset = datetime.now(timezone.utc), time.monotonic(), parts.dataset
    with evaluating(method), torch.no_grad():
        reader = _Reader(method, parts, bench, store)
        test, held_out, new = (reader.read(dataset, items) for items in (parts.test, parts.validation, parts.validation_new))
        others = {name: found for name, (other, items) in parts.others.items() if (found := reader.read(other, items))}
    assert test is not None
    names = dataset.classes
    count = len(parts.test)
    return TestRecord(
        key="",
        dataset=dataset.name,
        data=dataset.fingerprint,
        own_split=dataset.own_split,
        classes="all",
        seen=tuple(parts.trained.tolist()) if method.state_dict() else False,
        classifier="",
        options=method.options.model_dump(mode="json"),
        template=dataset.template,
        scores=score(test.mixed.own, test.labels, names),
        zero_shot=None,
        open_world=judged(test, held_out, new, others, parts.trained, dataset.name, reader),
        seconds=time.monotonic() - began,
        environment=environment(method.clip.device, started),
        warnings=(describe_broken(reader.skipped, count, of=dataset.name),) if reader.skipped else (),
    )


def judged(
    test: _Logits, held_out: _Logits | None, new: _Logits | None, others: Mapping[str, _Logits], trained: Mask, name: str, reader: _Reader
) -> OpenWorldRecord:
    """All measures, of logits. Zero-shot CLIP was trained on none of the classes, so it has no rule with fitted values."""
    known = trained[test.labels]
    rules = plain_rules(test.mixed, trained)
    shipped = next((rule for rule, logits in rules.items() if np.abs(logits - test.mixed.own).max() < SAME), "own")
    rules = {shipped: test.mixed.own, **rules} if shipped not in rules else {**rules, shipped: test.mixed.own}  # its own rounding
    fitted = fit_on(held_out.mixed, held_out.labels, trained) if held_out else None
    evidence: tuple[RuleScores, ...] = ()
    if fitted and held_out and reader.method.state_dict():
        rules |= fitted_rules(test.mixed, trained, fitted)
        evidence = _held_out(held_out, new, trained, fitted) if new else ()
    places = np.cumsum(trained) - 1, np.cumsum(~trained) - 1
    known_part, new_part = test.at(known), test.at(~known)
    sources = {name: new_part, **others}
    return OpenWorldRecord(
        validation=0 if held_out is None else len(held_out.labels),
        validation_new=0 if new is None else len(new.labels),
        base=float((known_part.trained.argmax(1) == places[0][known_part.labels]).mean()),
        novel=float((new_part.new.argmax(1) == places[1][new_part.labels]).mean()),
        shipped=shipped,
        temperature=fitted and fitted.temperature,
        class_temperature=fitted and fitted.class_temperature,
        rules=tuple(_rule(rule, logits, test.labels, trained, fitted) for rule, logits in rules.items()),
        held_out=evidence,
        calibration=tuple(_calibration(test, known, places, fitted, reader)),
        rejection=tuple(_rejection(known_part.trained, sources, held_out, reader.method.logit_scale)),
        coverage=tuple(_coverage(test, known, places, held_out)),
    )


def _rule(rule: str, logits: Floats, labels: Labels, trained: Mask, fitted: Fitted | None) -> RuleScores:
    found = trust.open_world(logits, labels, trained)
    p = trust.calibrated_probabilities(logits)
    bins = trust.calibration_bins(p.max(1), p.argmax(1) == labels)
    bias = fitted.bias.get(rule.removesuffix(STACKED)) if fitted and rule.endswith(STACKED) else None
    return RuleScores(
        rule=rule, base=found.base_to_all, novel=found.novel_to_all, auc=found.openworld_auc, ece=trust.expected_calibration_error(bins),
        bias=bias,
    )  # fmt: skip


def _held_out(held_out: _Logits, new: _Logits, trained: Mask, fitted: Fitted) -> tuple[RuleScores, ...]:
    """Every rule on validation images: of trained classes with values fitted on other ones, and of new classes."""
    base = cross_fitted(held_out.mixed, held_out.labels, trained)
    novel = plain_rules(new.mixed, trained) | fitted_rules(new.mixed, trained, fitted)
    return tuple(
        RuleScores(rule=rule, base=_right(base[rule], held_out.labels), novel=_right(logits, new.labels))
        for rule, logits in novel.items()
        if rule in base
    )


def _right(logits: Floats, labels: Labels) -> float:
    return float((logits.argmax(1) == labels).mean())


def _calibration(
    test: _Logits, known: Mask, places: tuple[Labels, Labels], fitted: Fitted | None, reader: _Reader
) -> Iterator[ListCalibration]:
    """One temperature, that of the trained list, is tried on all lists; a classifier takes it to those of `temperature_among`."""
    lists: tuple[tuple[Literal["trained", "new", "mixed"], Floats, Labels], ...] = (
        ("trained", test.trained[known], places[0][test.labels[known]]),
        ("new", test.new[~known], places[1][test.labels[~known]]),
        ("mixed", test.mixed.own, test.labels),
    )
    for name, logits, labels in lists:
        yield _calibrated(name, "nothing", trust.calibrated_probabilities(logits), labels)
        if fitted:
            yield _calibrated(name, "temperature", trust.calibrated_probabilities(logits, temperature=fitted.temperature), labels)
        if fitted and name != "trained" and (factors := reader.factors(name)) is not None:
            p = trust.calibrated_probabilities(logits, temperature=fitted.temperature, factors=factors)
            yield _calibrated(name, "dac", p, labels)


def _calibrated(
    classes: Literal["trained", "new", "mixed"], after: Literal["nothing", "temperature", "dac"], p: Floats, labels: Labels
) -> ListCalibration:
    confidence, right = p.max(1), p.argmax(1) == labels
    bins = trust.calibration_bins(confidence, right)
    short = tuple(each.model_copy(update={"confidence": round(each.confidence, 6), "accuracy": round(each.accuracy, 6)}) for each in bins)
    adaptive = trust.adaptive_calibration_error(confidence, right)
    return ListCalibration(
        classes=classes, after=after, ece=trust.expected_calibration_error(bins), adaptive_ece=adaptive, bins=short
    )


def _rejection(known: Floats, sources: Mapping[str, _Logits], held_out: _Logits | None, scale: float) -> Iterator[Rejection]:
    """By scores among the trained classes. MCM has a temperature of 1 on cosines, which is the logit scale on logits."""

    def mcm(logits: Floats) -> Floats:
        return trust.mcm_scores(logits, scale)

    scores: tuple[tuple[Literal["mcm", "energy"], Any], ...] = (("mcm", mcm), ("energy", trust.energy_scores))
    for name, of in scores:
        mine = of(known)
        threshold = trust.threshold_at_recall(of(held_out.trained), RECALL) if held_out else None
        for source, found in sources.items():
            theirs = of(found.trained)
            at = {} if threshold is None else {
                "kept": float((mine >= threshold).mean()), "rejected": float((theirs < threshold).mean())
            }  # fmt: skip
            yield Rejection(
                unknown=source, count=len(theirs), score=name, auroc=trust.auroc(mine, theirs),
                fpr95=trust.fpr_at_recall(mine, theirs, RECALL), **at,
            )  # fmt: skip


def _coverage(test: _Logits, known: Mask, places: tuple[Labels, Labels], held_out: _Logits | None) -> Iterator[Coverage]:
    """Sets of uncalibrated probabilities, so that the held-out images are used for the quantile alone. The new list has no images of its
    own to go by, and takes the trained list's quantile."""
    if held_out is None:
        return
    among = _quantile(held_out.trained, places[0][held_out.labels])
    mixed = _quantile(held_out.mixed.own, held_out.labels)
    yield _covered("trained", test.trained[known], places[0][test.labels[known]], among)
    yield _covered("new", test.new[~known], places[1][test.labels[~known]], among)
    yield _covered("mixed", test.mixed.own, test.labels, mixed)


def _quantile(logits: Floats, labels: Labels) -> float:
    return trust.conformal_quantile(trust.conformal_scores(trust.calibrated_probabilities(logits), labels), COVERAGE)


def _covered(classes: Literal["trained", "new", "mixed"], logits: Floats, labels: Labels, quantile: float) -> Coverage:
    sets = trust.prediction_sets(trust.calibrated_probabilities(logits), quantile)
    return Coverage(classes=classes, coverage=float(sets[np.arange(len(labels)), labels].mean()), size=float(sets.sum(1).mean()))
