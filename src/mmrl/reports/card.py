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
NEW = "a class of yours"
SOURCES = {  # of the images of a calibration
    "validation": "of the validation part",
    "not drawn": "not drawn to train",
    "held out": "held out from the test",
    "given": "given later",
}


def _value(value: object) -> str:
    """A value in a table."""
    return md("none" if value is None else str(value))


def _yaml(value: object) -> str:
    """Plain data on one line of YAML: JSON, with what YAML would not read as it is in escapes of its own."""
    return "".join(letter if " " <= letter <= "~" else f"\\U{ord(letter):08x}" for letter in json.dumps(value, ensure_ascii=False))


def _typed(names: Sequence[str], new: Sequence[str]) -> str:
    """What --classes takes, for a POSIX shell: two of the names that can be written in it, and the new ones."""
    fit = [name for name in names if name and name == name.strip() and name.isprintable() and "," not in name]
    return shlex.quote(",".join([*fit[:2], *new]))


def _scores(record: RunRecord) -> tuple[list[tuple[str, str, str]], list[str]]:
    """Rows (classes, zero-shot, adapted) and the names of those on which the adapter is worse."""
    rows, below = [], []
    for name in ("base", "novel", "all"):
        after = getattr(record.metrics, name)
        before = getattr(record.zero_shot, name)
        if after is None:
            continue
        rows.append((name, f"{100 * before.top1:.2f}" if before else "", f"{100 * after.top1:.2f}"))
        if before and after.top1 < before.top1:
            below.append(name)
    if record.metrics.hm is not None:
        before_hm = record.zero_shot.hm
        rows.append(("harmonic mean", "" if before_hm is None else f"{100 * before_hm:.2f}", f"{100 * record.metrics.hm:.2f}"))
    return rows, below


PARTS = {"base": "the classes trained on", "novel": "classes not trained on", "all": "all classes"}


def _index(title: str, record: RunRecord) -> list[dict[str, Any]]:
    """The scores as model hubs read them; empty where there are none."""
    task = {"type": "zero-shot-image-classification", "name": "Zero-shot image classification"}
    results = [
        {
            "task": task,
            "dataset": {"type": test.dataset, "name": test.dataset, "split": test.split},
            "metrics": [{"type": "accuracy", "value": round(test.scores.top1, 4), "name": f"Top-1 accuracy, {PARTS[test.classes]}"}],
        }
        for test in record.tests
    ]
    return [{"name": title, "results": results}] if results else []


def model_card(
    config: Mapping[str, Any], record: RunRecord | None = None, *, title: str | None = None, base_model: str = "", licence: str = ""
) -> str:
    """The card as Markdown with the front matter that model hubs read.

    Args:
        config: content of adapter_config.json: method, backbone, class_names, template, version; title (of the method) and options if
            there are any; open_vocabulary: false for a method that classifies among the classes it was trained on alone; trust: its
            calibration, if it has one.
        record: the run that trained it; without one the card has no scores.
        base_model: name of the backbone on a model hub, ORG/NAME, if it has one.
        licence: of the adapter, as model hubs name it, such as "mit"; if known.

    Raises:
        MmrlError: `config` lacks a field.
    """
    missing = [key for key in NEEDED if key not in config]
    if missing:
        raise MmrlError(f"cannot write a model card: the adapter's configuration has no {', '.join(missing)}")
    method = config.get("title") or config["method"]
    scores, below = _scores(record) if record else ([], [])
    training = record.training if record else None
    data = f" on {training.dataset}" if training else ""
    names = [str(name) for name in config["class_names"]]
    new = [NEW] if config.get("open_vocabulary", True) else []
    # No HTML escaping: the output is Markdown, and `md` and `code` guard what users name. trim_blocks: tags leave no empty lines.
    loader = PackageLoader("mmrl.reports", "")
    environment = Environment(loader=loader, undefined=StrictUndefined, trim_blocks=True, keep_trailing_newline=True)
    environment.filters |= {"md": _value, "code": code}
    environment.globals["SOURCES"] = SOURCES
    title = title or f"{method} for {config['backbone']}{data}"
    index = _index(title, record) if record else []
    card = environment.get_template("card.md.j2")
    return card.render(
        title=title,
        index=_yaml(index) if index else "",
        base_model=_yaml(base_model) if base_model else "",
        licence=_yaml(licence) if licence else "",
        method=method,
        tag=_yaml(config["method"]),
        backbone=config["backbone"],
        templates=template_list(config["template"]),
        version=config["version"],
        options=config.get("options") or {},
        trust=config.get("trust"),
        classes=names,
        others=bool(new),
        written=repr([*names[:2], *new]),
        typed=_typed(names, new),
        training=training,
        scores=scores,
        below=below,
    )
