"""What `mmrl eval` prints: scores, the classes, the commonest mistakes and the photos that were wrong."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from mmrl.cli.output import percent, scores_table

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from mmrl.classifier.apart import Apart
    from mmrl.classifier.evaluation import EvaluationReport

CLASSES = 50  # of a table; of more, those with the lowest accuracy
CONFUSED = 8
WRONG = 20


def print_report(console: Console, found: Apart, what: str, method: str) -> None:
    """All of it; `what` was tested, by `method`."""
    from rich.text import Text

    parts = [(what, found.counted)] if found.trained is None else [(name, part) for name, part in _parts(found) if part]
    rows = [(name, part.scores, part.zero_shot) for name, part in parts]
    console.print(scores_table(rows, method, [part.raw_ece for _, part in parts]))
    for line in _lines(found):
        console.print(Text(line), soft_wrap=True)
    report = found.all
    if len(report.classes) > 1:
        console.print(class_table(report))
    for line in (*_confused(report), *_wrong(found, report)):
        console.print(Text(line), soft_wrap=True)


def _parts(found: Apart) -> list[tuple[str, EvaluationReport | None]]:
    return [("new to it", found.new), ("used for it", found.trained)]


def _lines(found: Apart) -> Iterator[str]:
    if found.counted.record.classifier:
        yield f"classifier: {found.counted.record.classifier}"
    if found.trained is None:
        return
    calibrated = f" and {found.calibrated} calibrated it" if found.calibrated else ""
    said = f"{found.trained.count - found.calibrated} images trained it{calibrated}"
    if found.new is not None:
        yield f"{said}; how good it is, the other {found.new.count} say"
    else:
        yield f"{said}, and no other is left, so this is what it remembers, not how good it is"


def class_table(report: EvaluationReport) -> Table:
    """Accuracy of each class, in the order of the names, or of those with the lowest where there are many."""
    from rich.table import Column, Table
    from rich.text import Text

    before = report.zero_shot.per_class if report.zero_shot else [None] * len(report.classes)
    counts = report.confusion.sum(1)
    every = zip(report.classes, counts, report.scores.per_class, before, strict=True)
    rows = [(name, int(count), own, frozen) for name, count, own, frozen in every if own is not None]
    if len(rows) > CLASSES:
        rows = sorted(rows, key=lambda row: row[2])[:CLASSES]
    some = f" (lowest {CLASSES})" if len(report.classes) > CLASSES else ""
    right: dict[str, Any] = {"justify": "right"}
    heads = (Column(f"class{some}", overflow="fold"), Column("images", **right), Column("accuracy", **right), Column("zero-shot", **right))
    table = Table(*heads, box=None, padding=(0, 2))
    for name, count, own, frozen in rows:
        table.add_row(Text(name), str(count), percent(own), percent(frozen))
    return table


def _confused(report: EvaluationReport) -> Iterator[str]:
    worst = report.confused(CONFUSED)
    if worst:
        yield "commonest mistakes:"
    for true, predicted, count, share in worst:
        yield f"  {count} of '{true}' taken for '{predicted}' ({share:.0%} of its images)"


def _wrong(found: Apart, report: EvaluationReport) -> Iterator[str]:
    wrong = report.wrong
    if not wrong:
        yield "no image is wrong"
        return
    yield f"wrong images, the surest answers first ({len(wrong)} of {report.count}):"
    for each in wrong[:WRONG]:
        taught = ", used for it" if found.taught(each.image) else ""
        yield f"  {each.image}: '{each.true}' taken for '{each.predicted}' ({each.probability:.0%}{taught})"
    if len(wrong) > WRONG:
        yield f"  and {len(wrong) - WRONG} more: --html PAGE.html shows them, --json lists them"
