"""The page of an evaluation: one file that needs no other, with scores, classes, confusions and small pictures of what was wrong."""

from __future__ import annotations

import html

from mmrl.classifier.apart import Apart
from mmrl.classifier.evaluation import Wrong, summary
from mmrl.classifier.html import charts, confused_table, page, per_class_table, scores_table, thumbnail

SHOWN = 300  # pictures, of a few kB each; those with the surest answers
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"  # names come from folders: whatever they hold, nothing of it runs
STYLE = """
:root{color-scheme:light dark}
body{max-width:60rem;margin:2rem auto;padding:0 1rem;font:15px/1.5 system-ui,sans-serif;overflow-wrap:anywhere}
h1{font-size:1.4rem}h2{font-size:1.1rem;margin-top:2rem}.wide{overflow-x:auto}
body .mmrl figure{width:150px;margin:6px 6px 14px 0}body .mmrl img{max-width:144px;max-height:144px}.mmrl figcaption{line-height:1.35}
.mmrl table{overflow-wrap:normal}.mmrl td:not(:first-child),.mmrl th{white-space:nowrap}
.file{opacity:.65;font-size:11px}
"""


def document(found: Apart) -> str:
    """The whole page, as HTML."""
    report = found.all
    name = html.escape(report.record.dataset)
    apart = [("new to it", found.new), ("used for it", found.trained)] if found.trained else []
    rows = [("all images", report), *apart]
    scores = [(title, part.scores, part.raw_ece) for title, part in rows if part]
    frozen = [(f"{title}, zero-shot CLIP", part.zero_shot, None) for title, part in rows if part]
    notes = "".join(f"<p>{html.escape(each)}</p>" for each in report.record.warnings)
    which = "On images that are new to it: " if found.trained and found.new else ""
    body = page(
        f"<h1>{name}</h1><p>{which}{html.escape(summary(found.counted))}</p>", notes,
        _wide(scores_table([*scores, *frozen])),
        "<h2>Classes</h2>", _wide(per_class_table(report.scores, report.zero_shot)),
        "<h2>Commonest mistakes</h2>", _wide(confused_table(report.scores) or "<p>none</p>"), _wide(charts(report.scores)),
        f"<h2>Wrong images ({len(report.wrong)} of {report.count})</h2>", _pictures(found),
    )  # fmt: skip
    head = (
        f'<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}"><title>{name}: evaluation</title><style>{STYLE}</style>'
    )
    return f'<!doctype html>\n<html lang="en"><head>{head}</head><body>{body}</body></html>\n'


def _wide(content: str) -> str:
    return f'<div class="wide">{content}</div>'


def _pictures(found: Apart) -> str:
    wrong = found.all.wrong
    more = f"<p>and {len(wrong) - SHOWN} more, with less sure answers</p>" if len(wrong) > SHOWN else ""
    return "".join(_picture(found, each) for each in wrong[:SHOWN]) + more


def _picture(found: Apart, wrong: Wrong) -> str:
    text = f"{wrong.true} taken for {wrong.predicted} ({wrong.probability:.0%}; {wrong.true}: {wrong.of_true:.0%})"
    text += ", used for it" if found.taught(wrong.image) else ""
    name = html.escape(wrong.image, quote=True)
    file = html.escape(wrong.image.replace("\\", "/").rpartition("/")[2])
    caption = f'<figcaption>{html.escape(text)}<br><span class="file">{file}</span></figcaption>'
    return f'<figure title="{name}">{thumbnail(found.all, wrong.image, 144)}{caption}</figure>'
