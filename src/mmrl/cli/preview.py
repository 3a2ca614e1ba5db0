"""What `mmrl bench` and `mmrl ablate` are going to compute; with `--dry-run`, each run and about how long it takes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from mmrl.engine import Bench, Context, Job
    from mmrl.engine.grid import ResultsFolder
    from mmrl.protocols import Cell
    from mmrl.reports.pace import Pace


@dataclass
class _Row:
    """Jobs that differ in their seeds alone."""

    seeds: list[int] = field(default_factory=list)
    scores: int = 0
    done: int = 0
    seconds: float = 0.0
    unknown: int = 0


def preview(cells: Sequence[Cell], bench: Bench, store: ResultsFolder | None, *, processes: int, device: str, every: bool = False) -> None:
    """Print the jobs, what of them is done, and an estimate; `every` as in `carry_out`.

    Keys hold a hash of the weights. Without weights it is taken from the records that the folder has of this backbone; where there are
    none, nothing can be done yet.
    """
    import torch
    from rich.console import Console
    from rich.table import Column, Table

    from mmrl.clip import outline
    from mmrl.engine import Context, bind
    from mmrl.engine.grid import missing_tests
    from mmrl.engine.record import hardware
    from mmrl.reports.pace import Pace
    from mmrl.reports.results import Results
    from mmrl.reports.status import duration

    records = Results(store.folder).runs.values() if store else ()
    clip = outline(bench.backbone, {run.backbone: run.backbone_hash for run in records})
    context = Context(bench, clip)
    jobs, slots = bind(carried(cells, context) if every else cells, context)
    pace = Pace(records, hardware(torch.device(device)))
    rows: dict[tuple[str, ...], _Row] = {}
    for job in jobs:
        row = rows.setdefault(_kind(job), _Row())
        missing = missing_tests(job, store) if store else {key for _, key in job.tests}
        row.seeds += [job.training.seed] if job.training else []
        row.scores += len(job.tests)
        row.done += len(job.tests) - len(missing)
        if missing:
            seconds = _seconds(job, missing, context, pace, trained=len(missing) < len(job.tests))
            row.seconds += seconds or 0.0
            row.unknown += seconds is None
    heads = ("method", "options", "trained on", "shots", "seeds", "scores", "done", "time")
    table = Table(*(Column(name, overflow="fold") for name in heads), box=None, padding=(0, 1, 0, 0))
    for kind, row in rows.items():
        time = "unknown" if row.unknown else duration(row.seconds) if row.done < row.scores else ""
        table.add_row(*kind, ",".join(map(str, row.seeds)), str(row.scores), str(row.done or ""), time)
    console = Console(highlight=False, markup=False)
    console.print(table)
    say_draws(context)
    announce(jobs, store)
    for note in _views(jobs, context, pace):
        console.print(note)
    out = sum(not slot.applicable for slot in slots)
    if out:
        console.print(f"{out} more are not applicable: a closed vocabulary has no scores on new classes")
    left = [row for row in rows.values() if row.done < row.scores]
    total, unknown = sum(row.seconds for row in left), sum(row.unknown for row in left)
    if not left:
        return
    if total:
        more = f", and {unknown} trainings and zero-shot passes that nothing here tells the time of" if unknown else ""
        by = f" with {processes} processes" if processes > 1 else ""
        console.print(f"about {duration(total / processes)}{by}{more}, by {pace.runs} runs recorded on this machine")
    else:
        console.print("no run of these methods is recorded here for this machine and backbone, so there is no estimate")


def _views(jobs: Sequence[Job], context: Context, pace: Pace) -> Iterator[str]:
    """What trainings with a pool of views keep of them, at most, and whether their time is known."""
    from mmrl.engine.memory import GIB
    from mmrl.engine.pool import most_kept
    from mmrl.reports.pace import pool_of

    most, unknown = dict[str, tuple[float, float, float]](), set[str]()
    for training in dict.fromkeys(job.training for job in jobs if job.training):
        config, images = context.prepare(training).config, len(context.prepare(training).draw.train)
        if config.pool is not None:
            size = most_kept(config, images, context.clip, states=not context.build(training).frozen_images) / GIB
            most[training.method] = max(most.get(training.method, (0.0, 0.0, 0.0)), (size, config.views_gib, config.views_disk_gib))
            unknown |= set() if pace.knows(context.clip.name, training.method, pool_of(config.model_dump())) else {training.method}
    for method, (size, memory, disk) in most.items():
        beyond = "" if size <= memory + disk else "; there is no room for all of it, and the rest is computed again whenever it is shown"
        times = "; its time is that without views, and so the most that it may be" if method in unknown else ""
        yield f"views of {method} take up to {size:.2g} GiB a data set (in memory {memory:g}, in a file {disk:g} more){beyond}{times}"


def carried(cells: Sequence[Cell], context: Context) -> list[Cell]:
    """The cells of the methods that the backbone can carry; why it cannot carry others, which nobody asked for by name, is said.

    Raises:
        UsageError: it can carry none.
    """
    from mmrl.engine.jobs import carried as found
    from mmrl.errors import UsageError

    kept, problems = found(cells, context)
    for problem in problems:
        typer.echo(f"left out: {problem}", err=True)
    if not kept:
        raise UsageError(f"'{context.clip.name}' can carry none of these methods.")
    return kept


def say_draws(context: Context) -> None:
    """Say which draws were given, and of which data sets classes have fewer images than the shots asked for."""
    from mmrl.names import listed

    if context.bench.draws:
        found = ", ".join(sorted(context.given)) or "none of these data sets"
        typer.echo(f"draws of {context.bench.draws}: {found}; the others are drawn here")
    for dataset, (shots, images) in context.fewer.items():
        classes = listed([f"{name} ({count})" for name, count in images.items()], 5)
        few = counted(len(images), "class", "classes")
        typer.echo(f"note: {few} of {dataset} train on all images there are, fewer than {shots}: {classes}", err=True)


def counted(number: int, one: str, more: str = "") -> str:
    """`number` of what is called `one`, or `more` (by default with an s) where it is not one."""
    return f"{number} {one if number == 1 else more or one + 's'}"


def announce(jobs: Sequence[Job], store: ResultsFolder | None) -> int:
    """Say how much there is to do; all of it where there is no folder yet. Returns the number of jobs with missing tests."""
    from mmrl.engine.grid import missing_tests

    missing = [missing_tests(job, store) if store else {key for _, key in job.tests} for job in jobs]
    lacking = [job for job, keys in zip(jobs, missing, strict=True) if keys]
    every = sum(len(job.tests) for job in jobs)
    trainings = sum(job.training is not None for job in lacking)
    typer.echo(
        f"{counted(every, 'score')}, {every - sum(map(len, missing))} of them computed already; {counted(trainings, 'training')} and "
        f"{counted(len(lacking) - trainings, 'zero-shot pass', 'zero-shot passes')} to do"
    )
    return len(lacking)


def _kind(job: Job) -> tuple[str, ...]:
    t = job.training
    if t is None:
        return job.tests[0][0].method, "", job.tests[0][0].dataset, ""
    return t.method, ", ".join(f"{key}={value}" for key, value in t.overrides), f"{t.dataset} ({t.classes})", str(t.shots or "all")


def _seconds(job: Job, missing: set[str], context: Context, pace: Pace, *, trained: bool) -> float | None:
    """Of the training, unless it is done, and the missing tests; None where no record tells."""
    from mmrl.reports.pace import images_seen, pool_of

    parts: list[float | None] = []
    backbone = context.clip.name
    if job.training and not trained:
        ready = context.prepare(job.training)
        fit: Mapping[str, Any] = ready.config.model_dump()
        seen = images_seen(fit, len(ready.draw.train))
        parts.append(pace.training(backbone, job.training.method, job.training.dataset, seen, pool_of(fit)))
    for cell, key in job.tests:
        if key in missing:
            parts.append(pace.test(backbone, cell.method, cell.dataset, len(context.tested(cell).test)))
    return None if None in parts else sum(part for part in parts if part is not None)
