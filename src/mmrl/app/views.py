"""What the page shows, as HTML in which everything that a visitor wrote is text. Pictures are in it, so none lies at an address."""

from __future__ import annotations

import base64
import html
from collections.abc import Mapping, Sequence

from mmrl import methods
from mmrl.app.jobs import Errand
from mmrl.app.session import ADAPTER, Trained, Verdict, rejects
from mmrl.app.uploads import Photo
from mmrl.classifier.evaluation import EvaluationReport
from mmrl.engine.calibrate import LEAST as LEAST_TO_CALIBRATE
from mmrl.reports.svg import Chart

SHOWN = 6  # photos of a class that are shown
SMOOTH = 12  # parts of a curve that it is a mean over
FEW = 20  # photos held out, below which a score says little
STAGES = {"images": "Looking at the photos", "training": "Training", "testing": "Testing on held-out photos"}

CSS = """
.gradio-container .html-container { padding: 0; }
.gradio-container .block:has(> .html-container > .prose:empty) { display: none; }
.mm { font-size: 15px; line-height: 1.5; }
.mm .line { display: flex; flex-wrap: wrap; gap: 2px 14px; align-items: center; padding: 5px 0;
  border-bottom: 1px solid var(--border-color-primary); }
.mm .line > :first-child { flex: 1 1 180px; min-width: 0; overflow-wrap: anywhere; }
.mm .line > .n { flex: none; min-width: 76px; text-align: right; }
.mm .line > .w { flex: 2 1 200px; min-width: 0; overflow-wrap: anywhere; }
.mm .head { font-weight: 600; }
.mm img { display: inline-block; width: 44px; height: 44px; object-fit: cover; border-radius: 6px;
  margin: 0 4px 0 0; vertical-align: middle; }
.mm .said { padding: 8px 12px; border-radius: 8px; border-left: 4px solid #2f6fb3;
  background: var(--background-fill-secondary); margin: 2px 0; }
.mm .bad { border-left-color: #c0392b; }
.mm .soft { color: var(--body-text-color-subdued); }
.mm .track { background: var(--border-color-primary); border-radius: 6px; height: 10px; overflow: hidden; }
.mm .track i { display: block; height: 100%; background: #2f6fb3; border-radius: 6px; }
.mm .big { font-size: 30px; font-weight: 650; line-height: 1.2; }
.mm .scores { display: flex; gap: 36px; flex-wrap: wrap; margin: 6px 0 10px; }
.mm .cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(270px, 1fr)); gap: 14px; }
.mm .card { border: 1px solid var(--border-color-primary); border-radius: 10px; padding: 12px; display: flex; gap: 12px; min-width: 0; }
.mm .card img { width: 84px; height: 84px; flex: none; margin: 0; }
.mm .card > div { min-width: 0; flex: 1; }
.mm .card b { display: block; font-size: 17px; overflow-wrap: anywhere; }
.mm .row { display: grid; grid-template-columns: 1fr 46px; gap: 0 8px; align-items: center; font-size: 13px; margin-top: 5px; }
.mm .row span { overflow-wrap: anywhere; }
.mm .row .track { grid-column: 1 / 3; height: 5px; }
.mm .new { font-size: 11px; border: 1px solid currentColor; border-radius: 4px; padding: 0 4px; opacity: .75; white-space: nowrap; }
.mm pre { background: var(--background-fill-secondary); padding: 10px 12px; border-radius: 8px; overflow-x: auto; font-size: 13px; }
.mm svg.chart { max-width: 100%; height: auto; color: inherit; }
.mm svg text { fill: currentColor; font-size: 11.5px; }
.mm svg .grid { stroke: currentColor; opacity: .15; }
.mm svg .stroke { fill: none; stroke: #2f6fb3; stroke-width: 2; }
.mm h3 { margin: 14px 0 2px; font-size: 15px; font-weight: 600; }
"""


def said(sentences: Sequence[str], *, bad: bool = False) -> str:
    """A message under the step that it is about."""
    if not any(sentences):
        return ""
    kind, role = ("said bad", "alert") if bad else ("said", "status")
    return _box(f'<div class="{kind}" role="{role}">{"<br>".join(_text(each) for each in sentences)}</div>')


def classes_table(classes: Mapping[str, Sequence[Photo]]) -> str:
    """The classes with their photos."""
    if not classes:
        return _box('<div class="soft">No photos yet. Two classes with 10 to 20 photos each are a good start.</div>')
    rows = []
    for name, photos in classes.items():
        count = f'<span class="n">{_photos(len(photos))}</span>'
        pictures = "".join(_picture(photo.thumbnail, photo.title) for photo in photos[:SHOWN])
        rows.append(f'<div class="line"><span>{_text(name)}</span><span>{pictures}</span>{count}</div>')
    total = f"{len(classes)} class{'es' if len(classes) > 1 else ''}, {_photos(sum(map(len, classes.values())))}"
    return _box(f'{"".join(rows)}<div class="soft">{total}</div>')


def job_panel(job: Errand | None, ahead: int = 0) -> str:
    """How far a training is: a bar, the loss, the time that is left, and the curve."""
    if job is None or job.state == "done":
        return ""
    if job.state == "failed":
        return said([job.error], bad=True)
    if job.state == "cancelled":
        return said(["Cancelled. Nothing of this training is kept."])
    if job.state == "waiting":
        return said([f"Waiting: {ahead} other training{'s come' if ahead > 1 else ' comes'} first." if ahead else "Starting."])
    now = job.progress
    if now is None:
        what, share, rest = "Loading the model", 0.0, ""
    else:
        share = now.done / now.total if now.total else 0.0
        what = STAGES[now.stage]
        if now.stage == "training":
            left = job.seconds_left
            rest = f"pass {now.row['epoch']:.0f} of {now.epochs}, step {now.done} of {now.total}, loss {now.row['loss']:.3f}"
            rest += f", {_duration(left)} left" if left is not None else ""
        else:
            rest = f"{now.done} of {now.total}" if now.total else ""
    what = "Ending after this step" if job.stopping else what
    bar = f'<div class="track" role="progressbar" aria-valuenow="{100 * share:.0f}"><i style="width:{100 * share:.1f}%"></i></div>'
    return _box(f"<div><b>{what}</b> <span class='soft'>{rest}</span></div>{bar}{curve(job.curve)}")


def curve(points: Sequence[tuple[int, float]]) -> str:
    """The loss by step, as a mean over a few of them: that of one batch says little."""
    if len(points) < 2:
        return ""
    window = max(1, len(points) // SMOOTH)
    losses = [loss for _, loss in points]
    points = [(step, sum(some := losses[max(0, at + 1 - window) : at + 1]) / len(some)) for at, (step, _) in enumerate(points)]
    chart = Chart(640, 190, "Loss", "how the loss falls with the training steps", top=12, heading=False)
    chart.x_scale(points[0][0], points[-1][0], name="step")
    chart.y_scale(0, max(loss for _, loss in points) or 1.0, name="loss", count=4)
    chart.line([(float(step), loss) for step, loss in points], 0, marks=False)
    return chart.render()


def score_panel(trained: Trained | None) -> str:
    """The score on photos that were held out, beside that of zero-shot CLIP."""
    report = trained.classifier.report if trained else None
    held = report.held_out if report else None
    if trained is None or report is None or held is None:
        return ""
    before = held.zero_shot
    title = methods.get(trained.choice.method).title
    parts = [_number(held.top1, f"right with {title}", f"{held.count - held.mistakes} of {held.count} photos")]
    if before is not None:
        parts.append(_number(before.top1, "right without training (zero-shot CLIP)", f"of the same {held.count} photos"))
    told = [f"Measured on {_photos(held.count)} that were held out: not used for training in any way."]
    if held.count < FEW:
        told.append("So few tell little: one photo more or less right changes much. Add photos for a surer number.")
    if before is not None and held.top1 < before.top1:
        told.append("Training made it worse here. Try another method, or more photos.")
    training = f"Trained on {_photos(report.record.trained.images)} in {_duration(report.record.trained.seconds)}."
    body = f'<div class="scores">{"".join(parts)}</div><div>{_text(" ".join([*told, training]))}</div>'
    loss = curve([(int(row["step"]), row["loss"]) for row in report.curve])
    return _box(body + _by_class(held) + (f"<h3>Loss while it trained</h3>{loss}" if loss else ""))


def answers_panel(answers: Sequence[Verdict], trained: Trained, names: Sequence[str]) -> str:
    """What the classifier says of each photo."""
    classifier = trained.classifier
    cards = "".join(_card(each) for each in answers)
    note = "" if rejects(classifier, names) else _why_no_unknown(trained, names)
    return _box(f'<div class="cards">{cards}</div>' + (f'<div class="soft">{note}</div>' if note else ""))


def how_to_use(exported: bool) -> str:
    """What to do with what was downloaded."""
    lines = [f"unzip {ADAPTER}.zip", f"mmrl predict {ADAPTER} holiday/*.jpg"]
    python = ["import mmrl", f'clf = mmrl.from_pretrained("{ADAPTER}")', 'clf.predict("new.jpg")']
    more = "<div class='soft'>The ONNX folder runs without PyTorch.</div>" if exported else ""
    return _box(f"<pre>{_text(chr(10).join(lines))}</pre><pre>{_text(chr(10).join(python))}</pre>{more}")


def _card(answer: Verdict) -> str:
    if answer.judged is None or not answer.judged.ranked:
        return f'<div class="card"><div><b>{_text(answer.title)}</b>{_text(answer.problem)}</div></div>'
    judged = answer.judged
    best = "unknown" if judged.unknown else judged.ranked[0].name
    rows = []
    for each in judged.ranked:
        new = "" if each.trained else ' <span class="new">new</span>'
        bar = f'<div class="track"><i style="width:{100 * each.probability:.1f}%"></i></div>'
        rows.append(f'<div class="row"><span>{_text(each.name)}{new}</span><span>{each.probability:.0%}</span>{bar}</div>')
    none = '<div class="soft">It looks like none of the classes. The nearest:</div>' if judged.unknown else ""
    head = f"<b>{_text(best)}</b><div class='soft'>{_text(answer.title)}</div>"
    return f'<div class="card">{_picture(answer.thumbnail, answer.title)}<div>{head}{none}{"".join(rows)}</div></div>'


def _why_no_unknown(trained: Trained, names: Sequence[str]) -> str:
    if trained.classifier.trust is None:
        need = f"half of the held-out photos must be {LEAST_TO_CALIBRATE} or more, to calibrate on"
        return f"It cannot answer “unknown”: for that, {need}. Add photos, or hold out a larger share, and train again."
    return "“Unknown” is answered only among the classes that were trained, all of them: for others it is not known when to say so."


def _by_class(held: EvaluationReport) -> str:
    right, rows = held.confusion, []
    for at, name in enumerate(held.classes):
        own = right[at]
        wrong = sorted(((int(own[i]), other) for i, other in enumerate(held.classes) if i != at and own[i]), reverse=True)
        taken = ", ".join(f"{count} as {other}" for count, other in wrong[:3])
        cells = f'<span class="n">{own[at]} of {own.sum()}</span><span class="w soft">{_text(taken)}</span>'
        rows.append(f'<div class="line"><span>{_text(name)}</span>{cells}</div>')
    head = '<div class="line head"><span>Class</span><span class="n">right</span><span class="w">wrong</span></div>'
    return f"{head}{''.join(rows)}"


def _number(share: float, what: str, of: str) -> str:
    return f'<div><div class="big">{share:.0%}</div><div>{_text(what)}</div><div class="soft">{_text(of)}</div></div>'


def _picture(jpeg: bytes, title: str) -> str:
    name = html.escape(title, quote=True)
    return f'<img src="data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}" alt="{name}" title="{name}">'


def _photos(count: int) -> str:
    return f"{count} photo{'s' if count != 1 else ''}"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(max(1, round(seconds)), 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _text(written: str) -> str:
    return html.escape(written, quote=True)


def _box(inside: str) -> str:
    return f'<div class="mm">{inside}</div>'
