"""Computing one group: the training, if there is one, then every cell that tests it."""

from __future__ import annotations

import shutil
import time
import warnings
from collections.abc import Callable
from datetime import datetime, timezone
from functools import partial
from pathlib import Path

from mmrl import methods
from mmrl.data import Broken, BrokenImageWarning, describe_broken, test_batches
from mmrl.engine.checkpoint import CONFIG
from mmrl.engine.evaluate import evaluate, preprocess_of
from mmrl.engine.fit import FitResult, fit
from mmrl.engine.folder import STATE
from mmrl.engine.grid.binding import Context, Group, options_at_test
from mmrl.engine.grid.store import Kind
from mmrl.engine.run_record import environment, thin
from mmrl.engine.setup import Prepared
from mmrl.errors import DamagedError, MmrlError
from mmrl.methods import Method
from mmrl.protocols import Cell, Training
from mmrl.reports.cells import CellRecord, TrainingRecord
from mmrl.reports.records import Option, Part

HISTORY_ROWS = 60  # a results folder holds hundreds of trainings
Save = Callable[[Kind, str, Part], None]


def run_group(group: Group, context: Context, work: Path | None, save: Save, *, missing: set[str]) -> None:
    """Compute the cells of `group` whose keys are in `missing`; its training is described anew if it is made anew, or its key is.

    Args:
        work: folder for the adapter and checkpoints; a training that was interrupted there goes on.
        save: called with every result as soon as it is there.

    Raises:
        MmrlError: something failed; what was saved is kept.
    """
    ready, method = None, methods.build("zero-shot", context.clip)
    if group.training is not None:
        ready = context.prepare(group.training)
        if context.training_key(group.training, ready) != group.key:
            raise MmrlError(f"the data of {group.training.dataset} changed since the plan was made; start the command again.")
        method = methods.build(group.training.method, context.clip, ready.resolved.method, seed=group.training.seed)
        started = datetime.now(timezone.utc)
        fitted = _fit(method, group.training, ready, context, work)
        if group.key in missing or not fitted.loaded:
            save("trainings", group.key, _training_record(group.training, group.key, fitted, ready, context, started))
    for cell, key in group.cells:
        if key in missing:
            save("cells", key, _score(cell, key, group, method, ready, context))


def _fit(method: Method, training: Training, ready: Prepared, context: Context, work: Path | None) -> FitResult:
    dataset = context.dataset(training.dataset).restrict(training.classes)
    if work is not None:
        if (work / CONFIG).exists() and not (work / STATE).exists():  # half deleted: nothing to go on from
            shutil.rmtree(work)
        ready.draw.save(work / "draw.json")
    with warnings.catch_warnings():  # the record keeps them
        warnings.simplefilter("ignore", BrokenImageWarning)
        again = partial(
            fit, method, dataset, ready.draw, ready.config, out=work, resume=True, progress=False, workers=context.bench.workers,
            skip_broken=context.bench.skip_broken,
        )  # fmt: skip
        try:
            return again()
        except DamagedError:
            if work is None:
                raise
            shutil.rmtree(work)
            ready.draw.save(work / "draw.json")
            return again()


def _training_record(
    training: Training, key: str, fitted: FitResult, ready: Prepared, context: Context, started: datetime
) -> TrainingRecord:
    clip = context.clip
    return TrainingRecord(
        schema="mmrl.training/1",
        key=key,
        method=training.method,
        backbone=clip.name,
        backbone_hash=context.identity,
        dataset=training.dataset,
        data=context.dataset(training.dataset).fingerprint,
        classes=training.classes,
        shots=training.shots,
        seed=training.seed,
        draw_hash=ready.draw.hash,
        images=len(ready.draw.train),
        protocol=training.recipe,
        options=tuple(Option.model_validate(option) for option in ready.resolved.to_json()),
        seconds=fitted.seconds,
        trained_parameters=sum(parameter.numel() for parameter in fitted.method.parameters()),
        history=tuple({name: float(f"{value:.5g}") for name, value in row.items()} for row in thin(fitted.history, HISTORY_ROWS)),
        environment=environment(clip.device, started),
        warnings=fitted.warnings,
    )


def _score(cell: Cell, key: str, group: Group, method: Method, ready: Prepared | None, context: Context) -> CellRecord:
    started, began = datetime.now(timezone.utc), time.monotonic()
    options = options_at_test(cell, ready)
    if cell.options:  # the trained tensors in a method that differs at test only
        other = methods.build(cell.method, context.clip, options)
        other.load_state_dict(method.state_dict(), strict=True)
        method = other
    dataset = context.dataset(cell.dataset).restrict(cell.classes)
    bench = context.bench
    skipped: list[Broken] | None = [] if bench.skip_broken else None
    batches = test_batches(
        dataset, dataset.test, preprocess_of(context.clip), bench.batch_size, bench.workers, device=context.clip.device, skipped=skipped
    )
    scores = evaluate(method, method.class_list(dataset.classes, dataset.template), batches, cell.seen, precision=bench.precision)
    return CellRecord(
        schema="mmrl.cell/1",
        key=key,
        training=group.key if group.training else None,
        method=cell.method,
        backbone=context.clip.name,
        backbone_hash=context.identity,
        dataset=cell.dataset,
        data=context.dataset(cell.dataset).fingerprint,
        own_split=dataset.own_split,
        classes=cell.classes,
        seen=cell.seen,
        options=options,
        template=dataset.template,
        scores=scores,
        seconds=time.monotonic() - began,
        environment=environment(context.clip.device, started),
        warnings=(describe_broken(skipped, len(dataset.test), of=dataset.name),) if skipped else (),
    )
