"""The model card of an adapter: a README.md from its configuration and, where there is one, its run record."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from mmrl.errors import MmrlError
from mmrl.reports.records import RunRecord
from mmrl.templates import template_list

NEEDED = ("method", "backbone", "class_names", "template", "version")
TITLES = {"mmrl": "MMRL", "mmrlpp": "MMRL++"}


def _cell(value: object) -> str:
    """Text that can neither end a table's cell nor start a tag: class names are the user's."""
    text = "none" if value is None else str(value)
    for mark, safe in (("&", "&amp;"), ("<", "&lt;"), ("|", "\\|"), ("\r", " "), ("\n", " "), ("`", "'")):
        text = text.replace(mark, safe)
    return text


def _scores(record: RunRecord) -> tuple[list[tuple[str, str, str]], list[str]]:
    """Rows (classes, zero-shot, adapted) and the names of those on which the adapter is worse."""
    rows, below = [], []
    for name in ("base", "novel", "all"):
        after = getattr(record.metrics, name)
        before = getattr(record.zero_shot, name) if record.zero_shot else None
        if after is None:
            continue
        rows.append((name, f"{100 * before.top1:.2f}" if before else "", f"{100 * after.top1:.2f}"))
        if before and after.top1 < before.top1:
            below.append(name)
    if record.metrics.hm is not None:
        before_hm = record.zero_shot.hm if record.zero_shot else None
        rows.append(("harmonic mean", "" if before_hm is None else f"{100 * before_hm:.2f}", f"{100 * record.metrics.hm:.2f}"))
    return rows, below


def model_card(config: Mapping[str, Any], record: RunRecord | None = None, *, title: str | None = None) -> str:
    """The card as Markdown with the front matter that model hubs read.

    Args:
        config: content of adapter_config.json: method, backbone, class_names, template, version, and options if there are any.
        record: the run that trained it; without one the card has no scores.

    Raises:
        MmrlError: `config` lacks a field.
    """
    missing = [key for key in NEEDED if key not in config]
    if missing:
        raise MmrlError(f"cannot write a model card: the adapter's configuration has no {', '.join(missing)}")
    method = TITLES.get(config["method"], config["method"])
    scores, below = _scores(record) if record else ([], [])
    data = f" on {record.dataset}" if record else ""
    names = [str(name) for name in config["class_names"]]
    # No HTML escaping: the output is Markdown, and `cell` guards what users name. trim_blocks: tags leave no empty lines.
    loader = PackageLoader("mmrl.reports", "")
    environment = Environment(loader=loader, undefined=StrictUndefined, trim_blocks=True, keep_trailing_newline=True)
    environment.filters["cell"] = _cell
    return environment.get_template("card.md.j2").render(
        title=title or _cell(f"{method} for {config['backbone']}{data}"),
        method=method,
        tag=config["method"],
        backbone=config["backbone"],
        templates=template_list(config["template"]),
        version=config["version"],
        options=config.get("options") or {},
        classes=names,
        example=[*(name for name in names[:2] if name.isprintable() and not set(name) & set('",`')), "a class of yours"],
        record=record,
        scores=scores,
        below=below,
    )
