"""Reports in notebooks: tables, charts and the wrong images as one piece of HTML."""

from __future__ import annotations

import base64
import contextlib
import html
import io
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from mmrl.errors import MmrlError
from mmrl.reports import diagnostics
from mmrl.reports.records import Scores

if TYPE_CHECKING:
    from mmrl.classifier.evaluation import EvaluationReport, Wrong
    from mmrl.classifier.predictor import Classifier
    from mmrl.classifier.report import FitReport

SHOWN = 12  # wrong images with a thumbnail
SIDE = 96  # px
STYLE = """<style>
.mmrl{font:14px system-ui,sans-serif;--ink:currentColor;--line:#8886}
.mmrl table{border-collapse:collapse;margin:.5em 0}.mmrl th,.mmrl td{padding:.15em .7em;text-align:right}
.mmrl th,.mmrl td{border-bottom:1px solid var(--line)}.mmrl th:first-child,.mmrl td:first-child{text-align:left}
.mmrl figure{display:inline-block;width:112px;margin:4px;vertical-align:top;font-size:12px}
.mmrl img{max-width:96px;max-height:96px}.mmrl svg text{font:11.5px system-ui,sans-serif;fill:currentColor}.mmrl .fine{font-size:9px}
.mmrl .s0{color:#2a6fb0}.mmrl .s1{color:#c2571a}.mmrl .s2{color:#3a7d44}.mmrl .s3{color:#8a4f9e}.mmrl .s4{color:#777}.mmrl .s5{color:#a33}
.mmrl .mark{fill:currentColor}.mmrl .stroke{fill:none;stroke:currentColor;stroke-width:1.6}.mmrl .grid{stroke:var(--line)}
.mmrl .box{fill:none;stroke:var(--line)}.mmrl .diagonal{stroke:currentColor;stroke-dasharray:4 3}.mmrl .heading{font-weight:600}
</style>"""


def page(*parts: str) -> str:
    return f'{STYLE}<div class="mmrl">{"".join(parts)}</div>'


def percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f} %"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """All cells are text."""
    cells = "".join(f"<th>{html.escape(each)}</th>" for each in head)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(each)}</td>" for each in row) + "</tr>" for row in rows)
    return f"<table><tr>{cells}</tr>{body}</table>"


def scores_table(rows: Iterable[tuple[str, Scores | None, float | None]]) -> str:
    """Of each row its name, its scores, and the calibration error before a calibration, for which there is a column where one has it."""
    head = ["", "images", "top-1", "top-5", "macro", "calibration error", "before calibration"]
    shown = [
        [name, str(each.count), *map(percent, (each.top1, each.top5, each.macro, each.ece, raw))] for name, each, raw in rows if each
    ]
    if not any(row[-1] for row in shown):
        head, shown = head[:-1], [row[:-1] for row in shown]
    return table(head, shown)


def beside(name: str, report: EvaluationReport, frozen: str) -> list[tuple[str, Scores | None, float | None]]:
    """Rows of `scores_table`: of the report, called `name`, and of zero-shot CLIP, called `frozen`."""
    return [(name, report.scores, report.raw_ece), (frozen, report.zero_shot, None)]


def per_class_table(scores: Scores, zero_shot: Scores | None) -> str:
    before = zero_shot.per_class if zero_shot and zero_shot.class_names == scores.class_names else [None] * len(scores.per_class)
    counts = [sum(row) for row in scores.confusion] or [0] * len(scores.per_class)
    rows = [
        (name, str(count), percent(own), percent(frozen))
        for name, count, own, frozen in zip(scores.class_names, counts, scores.per_class, before)
    ]
    return table(("class", "images", "accuracy", "zero-shot"), rows)


def charts(scores: Scores) -> str:
    return diagnostics.confusion("Confusion", scores) + diagnostics.reliability("Calibration", scores.bins)


def confused_table(scores: Scores) -> str:
    rows = [(true, guess, str(count), percent(share)) for true, guess, count, share in diagnostics.confused(scores)]
    return table(("true", "predicted", "images", "share of the class"), rows) if rows else ""


def evaluation_html(report: EvaluationReport) -> str:
    about = f"<b>{html.escape(report.record.dataset)}</b>: {report.mistakes} of {report.count} images wrong"
    notes = "".join(f"<p>{html.escape(each)}</p>" for each in report.record.warnings)
    return page(
        f"<p>{about}</p>", notes, scores_table(beside("this classifier", report, "zero-shot CLIP")),
        per_class_table(report.scores, report.zero_shot), confused_table(report.scores), charts(report.scores), wrong_images(report),
    )  # fmt: skip


def report_html(report: FitReport) -> str:
    record, trained = report.record, report.record.trained
    about = f"{record.title or record.method} on {record.backbone}, {trained.images} images of {trained.dataset}, {trained.seconds:.1f} s"
    shown = [("held out", report.held_out), ("new classes", report.new_classes), ("trained on", report.train)]
    rows = [row for name, test in shown if test for row in beside(name, test, f"{name}, zero-shot")]
    held = report.held_out
    parts = [per_class_table(held.scores, held.zero_shot), confused_table(held.scores), charts(held.scores)] if held else []
    curve = "".join(diagnostics.training("Training", report.curve)[0])
    notes = "".join(f"<p>{html.escape(each)}</p>" for each in report.warnings)
    return page(f"<p>{html.escape(about)}</p>", notes, scores_table(rows), *parts, curve, wrong_images(held) if held else "")


def classifier_html(classifier: Classifier) -> str:
    names = ", ".join(classifier.classes[:20]) + (f" and {len(classifier.classes) - 20} more" if len(classifier.classes) > 20 else "")
    lines = [repr(classifier), f"classes: {names or 'none of its own'}"]
    held = classifier.report.held_out if classifier.report else None
    rows = beside("held out", held, "zero-shot CLIP") if held else []
    return page(*(f"<p>{html.escape(line)}</p>" for line in lines), scores_table(rows) if rows else "")


def wrong_images(report: EvaluationReport, most: int = SHOWN) -> str:
    """The wrong images with the surest answers, with thumbnails where they can still be read."""
    wrong = [] if report.answers is None else report.wrong
    more = f"<p>and {len(wrong) - most} more</p>" if len(wrong) > most else ""
    return f"<div>{''.join(_figure(report, each) for each in wrong[:most])}</div>{more}" if wrong else ""


def _figure(report: EvaluationReport, wrong: Wrong) -> str:
    text = f"{wrong.true} taken for {wrong.predicted} ({wrong.probability:.0%}; {wrong.true}: {wrong.of_true:.0%})"
    name = html.escape(wrong.image, quote=True)
    return f'<figure title="{name}">{thumbnail(report, wrong.image)}<figcaption>{html.escape(text)}</figcaption></figure>'


def thumbnail(report: EvaluationReport, image: str, side: int = SIDE) -> str:
    """An <img> with the picture in it, or nothing where it cannot be read any more."""
    if report.read is None:
        return ""
    content = io.BytesIO()
    with contextlib.suppress(MmrlError):
        picture = report.read(image).copy()  # a data set in memory keeps its own
        picture.thumbnail((side, side))
        picture.save(content, "JPEG", quality=85)
        return f'<img alt="" src="data:image/jpeg;base64,{base64.b64encode(content.getvalue()).decode()}">'
    return ""
