"""How the training of a classifier went: scores on what it was trained on and on what was held out, beside zero-shot CLIP."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mmrl.classifier.evaluation import EvaluationReport, summary
from mmrl.reports.records import RECORD_NAME, RunRecord, read_record


class FitReport:
    """The score that a classifier keeps of its training.

    Args:
        record: of the run, as in `run.json`: options with their sources, seed, draw, curve, tests.
        tests: on the images held out: among the classes trained on, and where half of the classes were, among the new ones.
        measure: evaluates on the images trained on, when `train` is first asked for.
    """

    def __init__(
        self, record: RunRecord, tests: Sequence[EvaluationReport], measure: Callable[[], EvaluationReport] | None = None
    ) -> None:
        self.record = record
        self.tests = tuple(tests)
        self._measure = measure
        self._train: EvaluationReport | None = None

    @classmethod
    def read(cls, folder: Path) -> FitReport | None:
        """That of a run's folder; None where it has no record of one. Which images were wrong is not in a record.

        Raises:
            MmrlError: the record is damaged.
        """
        if not (folder / RECORD_NAME).is_file():
            return None
        record = read_record(folder)
        return cls(record, [EvaluationReport(test) for test in record.tests]) if record.training else None

    @property
    def held_out(self) -> EvaluationReport | None:
        """On the images held out of the classes trained on; None where none was."""
        return next((test for test in self.tests if test.record.classes != "novel"), None)

    @property
    def new_classes(self) -> EvaluationReport | None:
        """On images of the classes that were not trained on, among these, where one half was trained on."""
        return next((test for test in self.tests if test.record.classes == "novel"), None)

    @property
    def train(self) -> EvaluationReport | None:
        """On the images trained on, computed when first asked for; None where they were not kept (of a classifier that was loaded)."""
        if self._train is None and self._measure is not None:
            self._train = self._measure()
        return self._train

    @property
    def curve(self) -> tuple[dict[str, float], ...]:
        """Step, epoch, learning rate, loss with its terms, and accuracy on the batch, every few steps; empty for a closed form."""
        return self.record.trained.history

    @property
    def warnings(self) -> tuple[str, ...]:
        return self.record.warnings

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for JSON; the scores on the images trained on are in it if they were asked for before."""
        tests = {"held_out": self.held_out, "new_classes": self.new_classes, "train": self._train}
        return {
            **{name: test.to_dict() if test else None for name, test in tests.items()},
            "curve": [dict(row) for row in self.curve],
            "record": self.record.model_dump(mode="json", by_alias=True),
        }

    def __repr__(self) -> str:
        trained = self.record.trained
        shown = [("held out", self.held_out), ("new classes", self.new_classes), ("trained on", self._train)]
        parts = [f"{name}: {summary(test)}" for name, test in shown if test] or ["nothing held out, so no score"]
        return f"FitReport({self.record.method} on {trained.images} images of {trained.dataset}; {'; '.join(parts)})"

    def _repr_html_(self) -> str:
        from mmrl.classifier.html import report_html

        return report_html(self)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_measure": None}  # the images need not be there where this is read
