"""One run: train on a draw, evaluate beside zero-shot CLIP, write the adapter and the record."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from mmrl.data import Dataset, Draw, describe_broken
from mmrl.engine.checkpoint import read_config, write_card
from mmrl.engine.config import FitConfig
from mmrl.engine.evaluate import BATCH, Evaluation, evaluate_dataset
from mmrl.engine.fit import FitResult, fit
from mmrl.engine.parallel import joined
from mmrl.engine.run_record import make_record
from mmrl.errors import Notice, UsageError
from mmrl.methods import Method
from mmrl.reports.records import RECORD_NAME, Metrics, Option, RunRecord
from mmrl.templates import Template


class UntestedWarning(UserWarning):
    """All images of some classes were drawn to train, and none is left to test on."""


class BelowZeroShotWarning(UserWarning):
    """Training ended with a lower accuracy than the frozen CLIP has."""


@dataclass(frozen=True)
class RunResult:
    """A finished run; `warnings` says where training ended below zero-shot, and which images were left out."""

    fitted: FitResult
    record: RunRecord
    warnings: tuple[str, ...]


def run(
    method: Method,
    dataset: Dataset,
    draw: Draw,
    config: FitConfig | Mapping[str, Any] | None = None,
    *,
    out: Path | str | None = None,
    resume: bool = False,
    progress: bool = True,
    protocol: str = "base-to-novel",
    options: Iterable[Option | Mapping[str, Any]] | None = None,
    template: Template | None = None,
    batch_size: int = BATCH,
    workers: int = 0,
    skip_broken: bool = False,
) -> RunResult:
    """Train `method` in place on `draw` and score it, with zero-shot CLIP beside it, on the test images.

    A draw of the base classes is tested on base classes (trained on) and novel ones (not), each among themselves, as in the paper; a draw
    of all classes on all. Where several processes train the run together, the main one evaluates and writes; the others wait for its
    record.

    Args:
        dataset: the whole set that `draw` comes from.
        out: folder for adapter, checkpoints, `draw.json` and `run.json`; None writes nothing.
        options: values and their sources for the record.
        batch_size: for evaluation.
        skip_broken: leave out images that are missing or broken; the record says how many, and names the first.

    Warns:
        BrokenImageWarning: images were left out.
        BelowZeroShotWarning: an accuracy is below that of zero-shot CLIP. The record says so too.
        Notice: how many images test, where they are those that were not drawn.
        UntestedWarning: of some classes none is left to. The record says so too.

    Raises:
        as `mmrl.engine.fit`; and UsageError, before training, if the set's own test part has no images of the classes to test.
    """
    started = datetime.now(timezone.utc)
    whole = dataset.source or dataset
    parts, untested = _tested(whole, draw)
    fitted = fit(
        method, whole.restrict(draw.classes), draw, config, out=out, resume=resume, progress=progress, template=template, workers=workers,
        skip_broken=skip_broken,
    )  # fmt: skip

    def scored() -> tuple[RunRecord, list[str]]:
        scores: dict[str, Evaluation] = {}
        for part, tested in parts.items():
            seen = part == draw.classes
            scores[part] = evaluate_dataset(
                method, tested, seen=seen, template=template, batch_size=batch_size, workers=workers, skip_broken=skip_broken
            )
        pairs = scores.items()
        below = [_below(method.name, part, pair) for part, pair in pairs if pair.adapted.top1 < pair.zero_shot.top1]
        left_out = [describe_broken(pair.skipped, len(parts[part].test), of=whole.name) for part, pair in pairs if pair.skipped]
        record = make_record(
            fitted,
            draw,
            protocol=protocol,
            metrics=Metrics.model_validate({part: pair.adapted for part, pair in scores.items()}),
            zero_shot=Metrics.model_validate({part: pair.zero_shot for part, pair in scores.items()}),
            started=started,
            options=options,
            warnings=[*untested, *fitted.warnings, *left_out, *below],
        )
        if fitted.folder is not None:
            draw.save(fitted.folder / "draw.json")
            record.write(fitted.folder / RECORD_NAME)
            write_card(fitted.folder, read_config(fitted.folder), record)
        return record, below

    with joined(fitted.processes) as peers:
        record, below = peers.on_main(scored)
    for text in below if peers.main else ():
        warnings.warn(text, BelowZeroShotWarning, stacklevel=2)
    return RunResult(fitted, record, record.warnings)


def _tested(dataset: Dataset, draw: Draw) -> tuple[dict[str, Dataset], list[str]]:
    """The parts of `dataset` that a run on `draw` is tested on, by name, and a sentence on classes that nothing is left to test of, if any.

    Warns:
        Notice, UntestedWarning: as `run`.

    Raises:
        UsageError: the set's own test part has none of the classes of a part.
    """
    names = ["all"] if draw.classes == "all" else ["base", "novel"] if len(dataset.classes) > 1 else ["base"]
    held_out = dataset.held_out(draw.train)
    parts = {name: held_out.restrict(name) for name in names}
    if not dataset.rest_tests:
        empty = next((name for name, part in parts.items() if not part.test), None)
        if empty:
            raise UsageError(f"'{dataset.name}' has no test images of its {empty} classes, so the run could not be scored; add some.")
        return parts, []
    said = f"{len(draw.train)} images of '{dataset.name}' train, and the {len(held_out.test)} that were not drawn test."
    warnings.warn(said, Notice, stacklevel=3)
    counts = Counter(item.label for item in held_out.test)
    bare = [name for label, name in enumerate(held_out.classes) if not counts[label]]
    tested = {name: part for name, part in parts.items() if part.test}
    if not bare:
        return tested, []
    some = ", ".join(bare[:5]) + (f" and {len(bare) - 5} more" if len(bare) > 5 else "")
    text = f"no image of '{dataset.name}' is left to test on of {some}: fewer shots, or a folder of test images, would leave some."
    warnings.warn(text, UntestedWarning, stacklevel=3)
    return tested, [text]


def _below(method: str, part: str, pair: Evaluation) -> str:
    where = "all" if part == "all" else f"the {part}"
    return (
        f"{method} ended below zero-shot CLIP on {where} classes: {pair.adapted.top1:.1%} against {pair.zero_shot.top1:.1%}. "
        "Use zero-shot there, or train with other values (a lower lr, fewer epochs, a higher lam)."
    )
