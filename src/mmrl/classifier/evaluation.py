"""How a classifier does on labelled images: scores, and what it answered for each."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mmrl.class_lists import class_names
from mmrl.clip import naming
from mmrl.data import Broken, Dataset, Draw, Item, dataset_names, usual_workers
from mmrl.data.folder import ImagesBelow
from mmrl.data.given import given_dataset
from mmrl.engine import Bench, seen_classes
from mmrl.engine.calibrate import temperature_among
from mmrl.engine.metrics import Answers
from mmrl.engine.run import Tested, examine
from mmrl.errors import Notice, UsageError, unknown
from mmrl.names import check_names, listed, name_key
from mmrl.protocols.plan import Classes
from mmrl.reports.diagnostics import confused
from mmrl.reports.records import Scores, TestRecord
from mmrl.templates import Template, check_template
from mmrl.trust.calibration import calibration_bins, expected_calibration_error

if TYPE_CHECKING:
    from mmrl.classifier.predictor import Classifier

TRAINED, OF_DATA = "trained", "data"
SPLITS = ("train", "val", "test")
BATCH = 64


class Wrong(NamedTuple):
    """An image that got another class than its own: what it is called, both classes, and their probabilities in [0, 1]."""

    image: str
    true: str
    predicted: str
    probability: float
    of_true: float


@dataclass(frozen=True, eq=False)
class EvaluationReport:
    """How a classifier did on a list of images. Accuracies, probabilities and calibration errors are fractions.

    Probabilities are those that `Classifier.predict_proba` gives, at the temperature of the calibration where that serves these classes.

    Attributes:
        record: of the test, as in `run.json`: scores, those of zero-shot CLIP on the same images, prompt, warnings. What it tells of
            probabilities is of softmax(logits).
        images: what the N images are called: paths, or keys of their data set.
        answers: for each of them, in the same order; None, and no images, of a test that only its record is left of.
        skipped: images that were left out, as they are missing or broken.
        read: gives an image of `images`; None where it was not kept (after pickling).
        temperature: what the logits of the answers were divided by; None where they are as they are.
    """

    record: TestRecord
    images: tuple[str, ...] = ()
    answers: Answers | None = None
    skipped: tuple[Broken, ...] = ()
    read: Callable[[str], Image.Image] | None = field(default=None, repr=False)
    temperature: float | None = None

    @classmethod
    def of(cls, tested: Tested) -> EvaluationReport:
        broken, read = {each.key for each in tested.found.skipped}, tested.dataset.read
        folder = read.root if isinstance(read, ImagesBelow) else None
        keys = [item.key for item in tested.items if item.key not in broken]
        names = tuple(str(folder / key) if folder else key for key in keys)
        key_of = dict(zip(names, keys, strict=True))
        return cls(tested.record, names, tested.found.answers, tested.found.skipped, lambda name: read(key_of[name]), tested.temperature)

    @cached_property
    def scores(self) -> Scores:
        """Those of the record, but with the calibration error and bins of the probabilities of the answers."""
        if self.temperature is None or self.answers is None:
            return self.record.scores
        labels, predicted, confidence, _ = self.answers
        bins = calibration_bins(confidence, predicted == labels)
        return self.record.scores.model_copy(update={"bins": bins, "ece": expected_calibration_error(bins)})

    @property
    def zero_shot(self) -> Scores | None:
        """Scores of zero-shot CLIP on the same images, among the same classes."""
        return self.record.zero_shot

    @property
    def classes(self) -> tuple[str, ...]:
        """Names, C, among which each image was classified."""
        return self.scores.class_names

    @property
    def count(self) -> int:
        """Images."""
        return self.scores.count

    @property
    def top1(self) -> float:
        return self.scores.top1

    @property
    def top5(self) -> float | None:
        return self.scores.top5

    @property
    def macro(self) -> float | None:
        """Mean over classes of the class's accuracy; classes without images do not count."""
        return self.scores.macro

    @property
    def ece(self) -> float | None:
        """Expected calibration error of the probabilities of `predict_proba`, over 15 bins; the bins are `scores.bins`. Of a report that
        only a record is left of, it is that of softmax(logits)."""
        return self.scores.ece

    @property
    def raw_ece(self) -> float | None:
        """That of softmax(logits), where `ece` is of calibrated probabilities; else None."""
        return None if self.temperature is None else self.record.scores.ece

    @property
    def per_class(self) -> dict[str, float | None]:
        """Accuracy of each class; None for one without images."""
        return dict(zip(self.classes, self.scores.per_class, strict=True))

    @property
    def confusion(self) -> NDArray[np.int64]:
        """Images (C, C) by true class (row) and predicted class (column)."""
        return np.asarray(self.scores.confusion, np.int64)

    @property
    def mistakes(self) -> int:
        """Images that got another class than their own."""
        return self.count - int(self.confusion.trace())

    def confused(self, limit: int = 8) -> list[tuple[str, str, int, float]]:
        """The commonest mistakes: true class, predicted class, images, and their share of the true class's images."""
        return confused(self.scores, limit)

    @property
    def wrong(self) -> list[Wrong]:
        """Images that got another class than their own, those with the surest answers first.

        Raises:
            UsageError: the report is of a record, which does not say which.
        """
        if self.answers is None:
            raise UsageError("which images were wrong is not in the record of a run; evaluate them again.")
        labels, predicted, confidence, of_true = self.answers
        at = np.flatnonzero(labels != predicted)
        at = at[np.argsort(-confidence[at], kind="stable")]
        names = self.classes
        return [Wrong(self.images[i], names[labels[i]], names[predicted[i]], float(confidence[i]), float(of_true[i])) for i in at]

    def image(self, name: str) -> Image.Image:
        """The image called `name`, RGB.

        Raises:
            UsageError: none is, it cannot be read any more, or images were not kept.
        """
        if name not in self.images or self.read is None:
            why = "was not among the images" if name not in self.images else "is not kept with this report"
            raise UsageError(f"image '{name}' {why}.")
        return self.read(name)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return {
            "dataset": self.record.dataset,
            "count": self.count,
            "scores": self.scores.model_dump(mode="json"),
            "zero_shot": self.zero_shot.model_dump(mode="json") if self.zero_shot else None,
            "raw_ece": self.raw_ece,
            "temperature": self.temperature,
            "classifier": self.record.classifier,
            "mistakes": self.mistakes,
            "wrong": None if self.answers is None else [each._asdict() for each in self.wrong],
            "skipped": [each._asdict() for each in self.skipped],
            "warnings": list(self.record.warnings),
        }

    def __repr__(self) -> str:
        return f"EvaluationReport({self.record.dataset}: {summary(self)}, {self.mistakes} wrong)"

    def _repr_html_(self) -> str:
        from mmrl.classifier.html import evaluation_html

        return evaluation_html(self)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "read": None}  # where images came from need not be there where this is read


def summary(report: EvaluationReport) -> str:
    """'top-1 92.5% of 40 images (zero-shot 80.0%), macro 91.0%, calibration error 4.0% (raw 9.0%)'."""
    scores, zero_shot = report.scores, report.zero_shot
    beside = f" (zero-shot {zero_shot.top1:.1%})" if zero_shot else ""
    error = "calibration error" if report.answers is not None else "raw calibration error"  # a record does not tell of a calibration
    more = [f", {name} {value:.1%}" for name, value in (("macro", scores.macro), (error, scores.ece)) if value is not None]
    raw = "" if report.raw_ece is None else f" (raw {report.raw_ece:.1%})"
    return f"top-1 {scores.top1:.1%} of {scores.count} images{beside}{''.join(more)}{raw}"


def evaluate(
    classifier: Classifier,
    data: Any,
    *,
    among: str | Sequence[str],
    split: str,
    include_trained: bool,
    classifier_rule: str,
    template: Template | None,
    root: Any,
    skip_broken: bool,
    beside_zero_shot: bool,
    batch_size: int,
    workers: int | None,
    classes: Classes = "all",
) -> EvaluationReport:
    """What `Classifier.evaluate` does; of the `classes` of the data, "all", the "base" or the "novel" half."""
    dataset = given_dataset(data, root=root)
    named = dataset.name if not isinstance(data, Dataset) and dataset.name in dataset_names() else None
    dataset = _tested_part(classifier, dataset, split, include_trained).restrict(classes)
    dataset = _competing(dataset, _names(classifier, dataset, among))
    own = template or (dataset.template if named else classifier.template)
    dataset = replace(dataset, template=check_template(own))
    seen, rule = seen_classes(
        dataset.classes, classifier.trained, dataset=named, trained_on=classifier.trained_on, classifier=classifier_rule,
        two=classifier.method.two_classifiers,
    )  # fmt: skip
    threads = usual_workers(dataset.read) if workers is None else workers
    bench = Bench(
        classifier.method.clip.name, skip_broken=skip_broken, workers=threads, batch_size=batch_size, beside_zero_shot=beside_zero_shot
    )
    with naming(dataset.classes, dataset.template):
        temperature = temperature_among(
            classifier.trust, classifier.method, dataset.classes, dataset.template, trained=classifier.trained
        )
        return EvaluationReport.of(
            examine(classifier.method, dataset, bench, seen=seen, classes=classes, rule=rule, temperature=temperature)
        )


def _names(classifier: Classifier, dataset: Dataset, among: str | Sequence[str]) -> tuple[str, ...]:
    """The classes that compete."""
    if among == TRAINED:
        names = classifier.trained or dataset.classes
    else:
        names = dataset.classes if among == OF_DATA else check_names(class_names(among), of="among")
    known = set(map(name_key, names))
    labels = {item.label for item in dataset.test}
    missing = [name for label, name in enumerate(dataset.classes) if label in labels and name_key(name) not in known]
    if missing:
        which = "the classes that this classifier was trained on" if among == TRAINED else "the classes that compete"
        raise UsageError(
            f"images of '{dataset.name}' are of {listed(missing)}, which {'is' if len(missing) == 1 else 'are'} not among {which}, so they "
            f"could not be right. Let the data's own classes compete (among='data', --among data), or give a list of names that has them."
        )
    return tuple(names)


def _competing(dataset: Dataset, names: Sequence[str]) -> Dataset:
    """The test images of `dataset`, labelled among `names`."""
    place = {name_key(name): at for at, name in enumerate(names)}
    test = [Item(item.key, place[name_key(dataset.classes[item.label])]) for item in dataset.test]
    return replace(dataset, classes=tuple(names), train=[], val=[], test=test, rest_tests=False)


def _tested_part(classifier: Classifier, dataset: Dataset, split: str, include_trained: bool) -> Dataset:
    """`dataset` with the images that are to be tested as its test images."""
    if split not in SPLITS:
        raise unknown("split", split, SPLITS)
    if not dataset.rest_tests:
        items = getattr(dataset, split)
        if not items:
            raise UsageError(f"'{dataset.name}' has no {split} images to evaluate on.")
        return replace(dataset, test=items)
    drawn = trained_images(dataset, classifier.draw)
    if split == "train" and drawn:
        taken = {item.key for item in drawn}
        return dataset.held_out(item for item in dataset.train if item.key not in taken)
    if split == "train" or include_trained or not drawn:
        return dataset.held_out(())
    if len(drawn) == len(dataset.train):
        raise UsageError(
            f"every image of '{dataset.name}' was drawn to train this classifier, so none is left to evaluate on. Give other images, or "
            "include_trained=True, which measures what it remembers."
        )
    kept = {*classifier.trust.keys} if classifier.trust else set()
    calibrated = [item for item in dataset.train if item.key in kept]
    dataset = dataset.held_out([*drawn, *calibrated])
    left = f"the {len(drawn)} that it was trained on {f'and the {len(calibrated)} that calibrated it ' if calibrated else ''}are left out"
    warnings.warn(f"{len(dataset.test)} images of '{dataset.name}' test ({left})", Notice, stacklevel=4)
    return dataset


def trained_images(dataset: Dataset, draw: Draw | None) -> list[Item]:
    """Images of `dataset` that `draw` has to train on; none where it is of another set."""
    if draw is None or draw.dataset != dataset.name:
        return []
    taken = {item.key for item in draw.train}
    found = [item for item in dataset.train if item.key in taken]
    return found if len(found) == len(taken) else []
