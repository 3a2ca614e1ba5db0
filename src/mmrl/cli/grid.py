"""What `mmrl bench` and `mmrl ablate` share: their options, and the way from cells to results in a folder."""

from __future__ import annotations

import inspect
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_type_hints

import typer

from mmrl.errors import MmrlError, UsageError, unknown
from mmrl.files import user_path

if TYPE_CHECKING:
    from mmrl.engine.grid import ResultsFolder
    from mmrl.protocols import Cell, Suite
    from mmrl.reports.plans import Plan, Slot

TUNED_NOTE = "tuned by target: tested with the options that the authors chose for each target data set (--paper-compat)."
SELECTED = "selection=authors"
SELECTED_NOTE = f"{SELECTED}: selected as the authors did, on test images among others, which flatters the score (--paper-compat)."
BACKBONE = "ViT-B-16-quickgelu/openai"
ENGINES = ("local", "ray")
OWN_SHARE = 0.5


def _option(default: Any, *names: str, **about: Any) -> Any:
    about_it = {"option": typer.Option(default, *names, **about)}
    if default is ...:
        return field(metadata=about_it)
    return field(default_factory=lambda: [*default] if isinstance(default, list) else default, metadata=about_it)


@dataclass(frozen=True)
class Grid:
    """The options that `bench`, `ablate` and `cost` share: which runs, with what, and where."""

    out: Path = _option(..., "--out", help="Results folder; what it has already is not computed again.")
    datasets: str = _option("all", "--datasets", help="Names separated by commas, or 'all' of the paper's.")
    seeds: str = _option("1,2,3", "--seeds", help="Seeds, separated by commas.")
    root: Path | None = _option(None, "--root", envvar="DATA", help="Folder of the data sets.")
    backbone: str | None = _option(None, "--backbone", help=f"Default: {BACKBONE}; with --mini: tiny.")
    mini: bool = _option(False, "--mini", help="The same on the embedded model and the mini benchmark.")
    set_: list[str] = _option(
        [], "--set", help="KEY=VALUE, an option of training or of the methods that have it; METHOD.KEY=VALUE for one; may be repeated."
    )
    epochs: int | None = _option(None, "--epochs", min=1, help="Passes over the training images; the same as --set epochs=N.")
    lr: float | None = _option(None, "--lr", help="Learning rate; the same as --set lr=X.")
    batch_size: int | None = _option(None, "--batch-size", min=1, help="Training images a batch; the same as --set batch_size=N.")
    precision: str | None = _option(
        None, "--precision", help="Of training: fp32, bf16, fp16 or auto; default: as the recipe says. Tests are in float32."
    )
    jobs: int | None = _option(
        None, "--jobs", min=1, help="Processes on this machine; they share the GPUs out. Default: one, with --device cuda one a GPU."
    )
    engine: str = _option("local", "--engine", help="Where runs are computed: local, or ray.")
    address: str | None = _option(None, "--address", help="With --engine ray: of the cluster, or 'auto'; default: start one here.")
    gpu_fraction: float = _option(0.0, "--gpu-fraction", min=0.0, help="With --engine ray: GPUs a task, such as 0.25.")
    device: str = _option("auto", "--device", help="auto (a GPU where there is one), cpu, cuda, cuda:1, ...")
    workers: int | None = _option(None, "--workers", min=0, help="Threads that prepare images; default: by the number of cores.")
    cache_gib: float = _option(
        4.0, "--cache-gib", min=0.0, help="Most that features and pixels of images take in the folder, in GiB; 0 keeps none. Same scores."
    )
    alone: bool = _option(
        False, "--alone", help="Train each run by itself; by default those that take the same images share them. Same numbers, less memory."
    )
    skip_broken: bool = _option(False, "--skip-broken", help="Leave broken images out, and say how many.")
    skip_missing: bool = _option(False, "--skip-missing", help="Leave out data sets that are not there.")
    draws: Path | None = _option(
        None, "--draws", help="Folder of draws to train on: draw.json files, CoOp's pickles or its preprocessed.pkl; others are drawn here."
    )
    test_share: float = _option(
        OWN_SHARE, "--test-share", help="Share of each class that tests, for own folders and lists without test images."
    )
    template: list[str] = _option(
        [], "--template", help="Prompt with one {} for all data sets; default: each one's own. Several are averaged."
    )
    dry_run: bool = _option(
        False, "--dry-run", help="List what would be computed and for about how long, and stop. Needs no weights of a named backbone."
    )

    @property
    def suite(self) -> Suite:
        from mmrl.protocols import MINI, PAPER

        return MINI if self.mini else PAPER

    @property
    def chosen_backbone(self) -> str:
        return self.backbone or ("tiny" if self.mini else BACKBONE)

    def own_options(self, methods: Sequence[str]) -> dict[str, dict[str, Any]]:
        """Options from --set, --epochs, --lr and --batch-size for each of `methods`.

        Raises:
            UsageError: one has another option of its own here, or is given twice.
        """
        from mmrl.cli.options import training_settings
        from mmrl.engine.overrides import own_options

        found = training_settings(self.set_, epochs=self.epochs, lr=self.lr, batch_size=self.batch_size)
        for key, own in (("seed", "--seeds"), ("precision", "--precision")):
            if key in found:
                raise UsageError(f"--set {key}={found[key]}: use {own}, which holds for all runs.")
        return own_options(found, methods)


def option(name: str) -> Any:
    """The option of `Grid` called `name`, for a verb that has some of them."""
    return next(each for each in fields(Grid) if each.name == name).metadata["option"]


def with_grid(verb: Callable[..., None]) -> Callable[..., None]:
    """`verb(own options, grid)` as a command that has the options of `Grid` among its own."""
    hints, own = get_type_hints(Grid), inspect.signature(verb, eval_str=True).parameters
    kept = [each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for name, each in own.items() if name != "grid"]
    shared = [
        inspect.Parameter(each.name, inspect.Parameter.KEYWORD_ONLY, default=each.metadata["option"], annotation=hints[each.name])
        for each in fields(Grid)
    ]

    @wraps(verb)
    def command(**given: Any) -> None:
        taken = {each.name: given.pop(each.name) for each in fields(Grid)}
        verb(**given, grid=Grid(**taken))

    command.__signature__ = inspect.Signature([*kept, *shared])  # type: ignore[attr-defined]
    command.__annotations__ = {each.name: each.annotation for each in (*kept, *shared)}
    return command


def suite_name(cells: Sequence[Cell], grid: Grid) -> Literal["paper", "mini", "own"]:
    """'paper' or 'mini' where all data sets, and for the paper the prompts, are that suite's, else 'own'."""
    used = {cell.dataset for cell in cells} | {cell.training.dataset for cell in cells if cell.training}
    if not used <= set(grid.suite.names):
        return "own"
    return "mini" if grid.mini else "own" if grid.template else "paper"


def names(value: str) -> list[str] | None:
    """Names from 'a,b,c'; None for 'all'. Raises UsageError for a blank or repeated one."""
    if value.strip() == "all":
        return None
    found = [name.strip() for name in value.split(",")]
    if not all(found) or len(set(found)) < len(found):
        raise UsageError(f"'{value}': give names separated by commas, each once, or 'all'.")
    return found


def present(chosen: Sequence[str], grid: Grid) -> list[str]:
    """Those of `chosen` that can be read; without --skip-missing, all. Raises UsageError if none is left."""
    from mmrl.data import load_dataset

    if not grid.skip_missing:
        return list(chosen)
    kept = []
    for name in chosen:
        try:
            load_dataset(name, root=grid.root)
            kept.append(name)
        except MmrlError as error:
            typer.echo(f"left out: {error}", err=True)
    if not kept:
        raise UsageError("none of the data sets is there; see `mmrl data check`.")
    return kept


def carry_out(cells: Sequence[Cell], grid: Grid, *, every: bool = False) -> None:
    """Bind, note the plans, compute what is missing, print the tables. Exits with 1 where runs failed or are left.

    Args:
        every: whether all methods there are were asked for: those that the backbone cannot carry are left out.
    """
    from mmrl.cli.preview import announce, carried, preview, say_draws
    from mmrl.clip import load_clip
    from mmrl.clip.device import AUTO, best_device
    from mmrl.engine import Bench, Context, bind
    from mmrl.engine.context import TOGETHER
    from mmrl.engine.grid import CACHE, FEATURES, ResultsFolder, missing_tests, run_here
    from mmrl.engine.jobs import require_images

    _check_places(grid)
    ray = grid.engine == "ray"
    device = best_device().type if grid.device == AUTO and not ray else grid.device
    processes, out, suite = grid.jobs or _gpus(device), user_path(grid.out), suite_name(cells, grid)
    known = ResultsFolder(out) if out.exists() else None  # a wrong name below must not leave a new folder behind
    threads = _threads(grid.workers, suite, (os.cpu_count() or 1) if ray else processes)
    bench = Bench(
        grid.chosen_backbone, grid.root, (out / CACHE).resolve(), grid.precision, grid.skip_broken, threads,
        draws=grid.draws and grid.draws.resolve(), test_share=grid.test_share, template=tuple(grid.template) or None,
        features=(out / FEATURES).resolve() if grid.cache_gib else None, cache_gib=grid.cache_gib,
        together=1 if grid.alone else TOGETHER,
    )  # fmt: skip
    if grid.dry_run:
        preview(cells, bench, known, processes=processes, device="cpu" if ray else device, every=every)
        return
    context = Context(bench, load_clip(bench.backbone, device="cpu" if processes > 1 or ray else device))
    jobs, slots = bind(carried(cells, context) if every else cells, context)
    say_draws(context)
    require_images([job for job in jobs if known is None or missing_tests(job, known)], context)
    store = known or ResultsFolder(out)
    for plan in _plans(slots, suite, grid.template):
        store.add_plan(plan)
    if not announce(jobs, store):
        _tables(store, slots)
        return
    if ray:
        from mmrl.engine.grid.cluster import run_on_ray

        outcome = run_on_ray(jobs, bench, store, address=grid.address, gpu_fraction=grid.gpu_fraction, say=typer.echo)
    else:
        try:
            outcome = run_here(jobs, context, store, processes=processes, device=device, say=typer.echo)
        except KeyboardInterrupt:
            typer.echo("what is done is kept; the same command again does what is missing", err=True)
            raise
    _tables(store, slots)
    if outcome.failed or outcome.left:
        raise MmrlError(
            f"{len(outcome.failed)} of {len(jobs)} trainings and zero-shot passes failed, {len(outcome.left)} were left undone. "
            f"`mmrl status {out}` says why; the same command again does what is missing."
        )


def _check_places(grid: Grid) -> None:
    """Raises UsageError for options that do not go together, and for a precision that cannot be had where runs are computed."""
    from mmrl.clip.device import checked_device
    from mmrl.engine import FitConfig
    from mmrl.engine.precision import check_precision

    engine = grid.engine
    if engine not in ENGINES:
        raise unknown("engine", engine, ENGINES)
    if engine == "ray" and (grid.device not in ("auto", "cpu") or grid.jobs is not None):
        raise UsageError("--engine ray takes neither --device nor --jobs: --gpu-fraction 0.25 puts four runs on each GPU of the cluster.")
    if engine == "local" and (grid.address is not None or grid.gpu_fraction):
        raise UsageError("--address and --gpu-fraction are for --engine ray; here, --device and --jobs say where runs are computed.")
    if grid.precision is not None:
        FitConfig(precision=grid.precision)
        if engine == "local" or not grid.gpu_fraction:
            check_precision(grid.precision, checked_device(grid.device))


def _gpus(device: str) -> int:
    """One process for each GPU, where all of them are asked for; else one."""
    import torch

    return max(1, torch.cuda.device_count()) if device == "cuda" else 1


def _threads(workers: int | None, suite: str, jobs: int) -> int:
    """Threads that read images, for each process; the mini sets lie in memory."""
    if workers is not None:
        return workers
    return 0 if suite == "mini" else max(1, min(8, (os.cpu_count() or 1) // jobs))


def _plans(slots: Sequence[Slot], suite: Literal["paper", "mini", "own"], template: Sequence[str]) -> list[Plan]:
    from mmrl.protocols.evaluations import TUNED
    from mmrl.reports.plans import Plan

    command, plans = shlex.join(["mmrl", *sys.argv[1:]]), []
    for study in dict.fromkeys(slot.study for slot in slots):
        mine = tuple(slot for slot in slots if slot.study == study)
        tuned = any(TUNED in slot.variant for slot in mine)
        prompts = (f"Prompt of all data sets: {' | '.join(template)}",) if template else ()
        selected = any(SELECTED in slot.variant for slot in mine)
        notes = ((TUNED_NOTE,) if tuned else ()) + ((SELECTED_NOTE,) if selected else ()) + prompts
        plans.append(
            Plan(schema="mmrl.plan/2", study=study, suite=suite, slots=mine, paper_compat=tuned or selected, command=command, notes=notes)
        )
    return plans


def _tables(store: ResultsFolder, slots: Sequence[Slot]) -> None:
    """Print the tables of the studies just done, with the values of every seed."""
    from rich.console import Console

    from mmrl.cli.output import sheet_table
    from mmrl.reports.measures import StudyScores
    from mmrl.reports.plans import OPEN_WORLD
    from mmrl.reports.results import Results
    from mmrl.reports.tables import study_sheets

    results, console = Results(store.folder), Console()
    for study in dict.fromkeys(slot.study for slot in slots):
        made = study_sheets(StudyScores(results, results.plans[study]))
        for sheet in made[:2] if study == OPEN_WORLD else made:  # its other tables are wide, and for the page
            console.print(sheet_table(sheet))
    typer.echo(f"`mmrl report {store.folder}` makes a page of all tables and figures")
