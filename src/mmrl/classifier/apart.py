"""An evaluation on every image of a folder, in which those that a classifier was trained on are told apart from the others."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from mmrl.classifier import evaluation
from mmrl.classifier.evaluation import EvaluationReport, trained_images
from mmrl.data import Item
from mmrl.data.given import given_dataset
from mmrl.engine.metrics import Answers
from mmrl.engine.run import below_zero_shot
from mmrl.reports.diagnostics import pooled
from mmrl.reports.records import Scores
from mmrl.trust.calibration import expected_calibration_error

if TYPE_CHECKING:
    from mmrl.classifier.predictor import Classifier


@dataclass(frozen=True)
class Apart:
    """Reports on the images that a classifier has not seen, and on those that trained it, or of which `calibrated` calibrated it; one of
    them may be None."""

    new: EvaluationReport | None
    trained: EvaluationReport | None
    calibrated: int = 0

    @property
    def counted(self) -> EvaluationReport:
        """The report that says how good the classifier is: that on new images, where there are any."""
        found = self.new or self.trained
        assert found is not None
        return found

    @property
    def all(self) -> EvaluationReport:
        """On every image."""
        return joined(self.new, self.trained) if self.new and self.trained else self.counted

    def taught(self, image: str) -> bool:
        """Whether the image of that name trained or calibrated it."""
        return self.trained is not None and image in self.trained.images


def evaluate_apart(classifier: Classifier, data: Any, *, split: str, root: Any, **options: Any) -> Apart:
    """What `evaluate` says of every image of `data`, or of one part of data that has parts. Arguments and errors as there."""
    dataset = given_dataset(data, root=root)
    drawn = {item.key for item in trained_images(dataset, classifier.draw)} if dataset.rest_tests and split == "test" else set()
    if not drawn:  # what was given, as a data set known by name is another one than a folder called so
        given = dataset if dataset.rest_tests else data
        return Apart(evaluation.evaluate(classifier, given, split=split, include_trained=False, root=root, **options), None)
    used = drawn | ({*classifier.trust.keys} if classifier.trust else set())

    def report(items: list[Item]) -> EvaluationReport | None:
        part = replace(dataset, train=[], val=[], test=items, rest_tests=False)
        some = part.restrict(options.get("classes", "all")).test  # of the novel half, say, no image may have trained it
        return evaluation.evaluate(classifier, part, split="test", include_trained=False, root=root, **options) if some else None

    new, trained = (report([item for item in dataset.train if (item.key in used) == wanted]) for wanted in (False, True))
    calibrated = sum(item.key in used - drawn for item in dataset.train)
    if trained is not None:
        record = trained.record
        below = below_zero_shot(classifier.method.title, record) if new else None  # how good it is, the new ones say
        said = tuple(text for text in record.warnings if text != below)
        trained = replace(trained, record=record.model_copy(update={"split": "train", "warnings": said}))
    return Apart(new, trained, calibrated)


def joined(one: EvaluationReport, other: EvaluationReport) -> EvaluationReport:
    """The report on the images of both, which are of one data set, among the same classes."""
    frozen = merged(one.zero_shot, other.zero_shot) if one.zero_shot and other.zero_shot else None
    warnings = tuple(dict.fromkeys((*one.record.warnings, *other.record.warnings)))
    scores = merged(one.record.scores, other.record.scores)
    record = one.record.model_copy(update={"scores": scores, "zero_shot": frozen, "warnings": warnings})
    assert one.answers is not None and other.answers is not None  # both were just computed
    answers = Answers(*(np.concatenate(pair) for pair in zip(one.answers, other.answers, strict=True)))
    mine = frozenset(one.images)
    return EvaluationReport(
        record, one.images + other.images, answers, one.skipped + other.skipped,
        lambda name: (one if name in mine else other).image(name),
        one.temperature,
    )


def merged(one: Scores, other: Scores) -> Scores:
    """The scores on the images of both, as one list of images; the classes are the same."""
    count = one.count + other.count

    def mean(name: str) -> float | None:
        values = [(getattr(each, name), each.count) for each in (one, other)]
        return None if any(value is None for value, _ in values) else sum(value * n for value, n in values) / count

    confusion = np.asarray(one.confusion, np.int64) + np.asarray(other.confusion, np.int64)
    per_class = [float(hit / of) if of else None for hit, of in zip(confusion.diagonal(), confusion.sum(1), strict=True)]
    bins = pooled([one.bins, other.bins])
    return Scores(
        top1=float(confusion.trace() / count),
        top5=mean("top5"),
        macro=float(np.mean([value for value in per_class if value is not None])),
        ece=expected_calibration_error(bins) if bins else None,
        count=count,
        class_names=one.class_names,
        per_class=tuple(per_class),
        confusion=tuple(tuple(int(value) for value in row) for row in confusion),
        bins=bins,
    )
