"""The model card of an adapter: a README.md from its configuration and, where there is one, its run record."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from mmrl.errors import MmrlError
from mmrl.reports.records import RunRecord
from mmrl.reports.sheets import code, md
from mmrl.templates import template_list

NEEDED = ("method", "backbone", "class_names", "template", "version")
TITLES = {"mmrl": "MMRL", "mmrlpp": "MMRL++"}
NEW = "a class of yours"


def _told(value: object) -> str:
    """A value in a table."""
    return md("none" if value is None else str(value))


def _typed(names: Sequence[str]) -> str:
    """What --classes takes, for a POSIX shell: two of the names that can be told in it, and one more."""
    fit = [name for name in names if name and name == name.strip() and name.isprintable() and "," not in name]
    return shlex.quote(",".join([*fit[:2], NEW]))


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
    # No HTML escaping: the output is Markdown, and `md` and `code` guard what users name. trim_blocks: tags leave no empty lines.
    loader = PackageLoader("mmrl.reports", "")
    environment = Environment(loader=loader, undefined=StrictUndefined, trim_blocks=True, keep_trailing_newline=True)
    environment.filters |= {"md": _told, "code": code}
    return environment.get_template("card.md.j2").render(
        title=title or f"{method} for {config['backbone']}{data}",
        method=method,
        tag=config["method"] if config["method"] in TITLES else json.dumps(config["method"]),  # YAML reads JSON's strings
        backbone=config["backbone"],
        templates=template_list(config["template"]),
        version=config["version"],
        options=config.get("options") or {},
        classes=names,
        written=repr([*names[:2], NEW]),
        typed=_typed(names),
        record=record,
        scores=scores,
        below=below,
    )
