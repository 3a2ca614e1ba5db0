"""What `mmrl bench` and `mmrl ablate` share: from cells to results in a folder, and what is said meanwhile."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import typer

from mmrl.errors import MmrlError, UsageError, unknown
from mmrl.files import user_path

if TYPE_CHECKING:
    from mmrl.clip import Clip
    from mmrl.engine.grid import Bench, Group, Outcome, ResultsFolder
    from mmrl.protocols import Cell, Suite
    from mmrl.reports.cells import Plan, Slot

TUNED_NOTE = "beta by target: MMRL++ tested with the authors' beta for each target data set (--paper-compat): tuned on the target."
BACKBONE = "ViT-B-16-quickgelu/openai"
ENGINES = ("local", "ray")

OUT = typer.Option(..., "--out", help="Results folder; what is there already is not computed again.")
DATASETS = typer.Option("all", "--datasets", help="Names separated by commas, or 'all' of the paper's.")
SEEDS = typer.Option("1,2,3", "--seeds", help="Seeds, separated by commas.")
ROOT = typer.Option(None, "--root", envvar="DATA", help="Folder of the data sets.")
BACKBONE_OPTION = typer.Option(None, "--backbone", help=f"Default: {BACKBONE}; with --mini: tiny.")
IS_MINI = typer.Option(False, "--mini", help="The same on the embedded model and the mini benchmark.")
SET = typer.Option([], "--set", help="KEY=VALUE, an option of the method or of training for every run; may be repeated.")
PRECISION = typer.Option("fp32", "--precision", help="fp32, bf16 or fp16.")
JOBS = typer.Option(
    None, "--jobs", min=1, help="Processes on this machine; they share the GPUs out. Default: one, with --device cuda one a GPU."
)
ENGINE = typer.Option("local", "--engine", help="Where cells run: local, or ray.")
ADDRESS = typer.Option(None, "--address", help="With --engine ray: of the cluster, or 'auto'; default: start one here.")
GPU_FRACTION = typer.Option(0.0, "--gpu-fraction", min=0.0, help="With --engine ray: GPUs a task, such as 0.25.")
WORKERS = typer.Option(None, "--workers", min=0, help="Threads that prepare images; default: by the number of cores.")
SKIP_BROKEN = typer.Option(False, "--skip-broken", help="Leave broken images out, and say how many.")
SKIP_MISSING = typer.Option(False, "--skip-missing", help="Leave out data sets that are not there.")
DRAWS = typer.Option(
    None, "--draws", help="Folder of draws to train on: draw.json files, CoOp's pickles or its preprocessed.pkl; others are drawn here."
)
OWN_SHARE = 0.5
TEST_SHARE = typer.Option(OWN_SHARE, "--test-share", help="Share of each class that tests, for own folders and lists without test images.")
DRY_RUN = typer.Option(False, "--dry-run", help="Say what would be computed, and stop.")


def suite_of(mini: bool) -> Suite:
    from mmrl.protocols import MINI, PAPER

    return MINI if mini else PAPER


def suite_name(cells: Sequence[Cell], mini: bool) -> Literal["paper", "mini", "own"]:
    """'paper' or 'mini' where all data sets are that suite's, else 'own'."""
    suite = suite_of(mini)
    used = {cell.dataset for cell in cells} | {cell.training.dataset for cell in cells if cell.training}
    if not used <= set(suite.names):
        return "own"
    return "mini" if mini else "paper"


def depth_of(backbone: str) -> int:
    """Layers of the image tower. Raises UsageError for a backbone whose layers cannot be edited."""
    from mmrl.clip import load_clip

    clip = load_clip(backbone)
    clip.require_staged("mmrl")
    return clip.vision.depth


def names(value: str) -> list[str] | None:
    """Names from 'a,b,c'; None for 'all'. Raises UsageError for a blank or repeated one."""
    if value.strip() == "all":
        return None
    found = [name.strip() for name in value.split(",")]
    if not all(found) or len(set(found)) < len(found):
        raise UsageError(f"'{value}': give names separated by commas, each once, or 'all'.")
    return found


def overrides(pairs: Sequence[str]) -> dict[str, Any]:
    """Options from --set. Raises UsageError for those that have an option of their own here."""
    from mmrl.cli.options import parse_settings

    found = parse_settings(pairs)
    for key, own in (("seed", "--seeds"), ("precision", "--precision")):
        if key in found:
            raise UsageError(f"--set {key}={found[key]}: use {own}, which holds for training and testing alike.")
    return found


def present(chosen: Sequence[str], root: Path | None, skip_missing: bool) -> list[str]:
    """Those of `chosen` that can be read; without `skip_missing`, all. Raises UsageError if none is left."""
    from mmrl.data import load_dataset

    if not skip_missing:
        return list(chosen)
    kept = []
    for name in chosen:
        try:
            load_dataset(name, root=root)
            kept.append(name)
        except MmrlError as error:
            typer.echo(f"left out: {error}", err=True)
    if not kept:
        raise UsageError("none of the data sets is there; see `mmrl data check`.")
    return kept


def carry_out(
    cells: Sequence[Cell],
    *,
    suite: Literal["paper", "mini", "own"],
    out: Path,
    backbone: str,
    root: Path | None,
    precision: str,
    jobs: int | None,
    engine: str,
    address: str | None,
    gpu_fraction: float,
    device: str,
    workers: int | None,
    skip_broken: bool,
    dry_run: bool,
    draws: Path | None = None,
    test_share: float = OWN_SHARE,
) -> None:
    """Bind, note the plans, compute what is missing, print the tables. Exits with 1 where cells failed or are left."""
    from mmrl.clip import load_clip
    from mmrl.clip.device import AUTO, best_device
    from mmrl.engine.grid import CACHE, Bench, Context, ResultsFolder, bind

    _check_places(engine, jobs, device, address, gpu_fraction, precision)
    device = best_device().type if device == AUTO and engine == "local" else device
    jobs, out = jobs or _gpus(device), user_path(out)
    known = ResultsFolder(out) if out.exists() else None  # a wrong name below must not leave a new folder behind
    threads = _threads(workers, suite, (os.cpu_count() or 1) if engine == "ray" else jobs)
    cache = (out / CACHE).resolve()
    bench = Bench(backbone, root, cache, precision, skip_broken, threads, draws=draws and draws.resolve(), test_share=test_share)
    clip = load_clip(backbone, device="cpu" if jobs > 1 or engine == "ray" else device)
    context = Context(bench, clip)
    groups, slots = bind(cells, context)
    if draws:
        typer.echo(f"draws of {draws}: {', '.join(sorted(context.given)) or 'none of these data sets'}; the others are drawn here")
    if dry_run:
        _announce(groups, slots, known)
        return
    store = known or ResultsFolder(out)
    for plan in _plans(slots, suite):
        store.add_plan(plan)
    if not _announce(groups, slots, store):
        _tables(store, slots)
        return
    if engine == "ray":
        from mmrl.engine.grid.cluster import run_on_ray

        outcome = run_on_ray(groups, bench, store, address=address, gpu_fraction=gpu_fraction, say=typer.echo)
    else:
        outcome = _run_here(groups, bench, store, jobs, device, clip)
    _tables(store, slots)
    if outcome.failed or outcome.left:
        raise MmrlError(
            f"{len(outcome.failed)} of {len(groups)} trainings and zero-shot passes failed, {len(outcome.left)} were left undone. "
            f"`mmrl status {out}` says why; the same command again does what is missing."
        )


def _run_here(groups: Sequence[Group], bench: Bench, store: ResultsFolder, jobs: int, device: str, clip: Clip) -> Outcome:
    from mmrl.engine.grid import run_here

    return run_here(groups, bench, store, jobs=jobs, device=device, clip=clip, say=typer.echo)


def _check_places(engine: str, jobs: int | None, device: str, address: str | None, gpu_fraction: float, precision: str) -> None:
    """Raises UsageError for options that do not go together, and for a precision that there is not where cells run."""
    from mmrl.clip.device import checked_device
    from mmrl.engine import FitConfig
    from mmrl.engine.precision import check_precision

    if engine not in ENGINES:
        raise unknown("engine", engine, ENGINES)
    if engine == "ray" and (device not in ("auto", "cpu") or jobs is not None):
        raise UsageError("--engine ray takes neither --device nor --jobs: --gpu-fraction 0.25 puts four runs on each GPU of the cluster.")
    if engine == "local" and (address is not None or gpu_fraction):
        raise UsageError("--address and --gpu-fraction are for --engine ray; here, --device and --jobs say where cells run.")
    FitConfig(precision=precision)
    if engine == "local" or not gpu_fraction:
        check_precision(precision, checked_device(device))


def _gpus(device: str) -> int:
    """One process for each GPU, where all of them are asked for; else one."""
    import torch

    return max(1, torch.cuda.device_count()) if device == "cuda" else 1


def _threads(workers: int | None, suite: str, jobs: int) -> int:
    """Threads that read images, for each process; the mini sets lie in memory."""
    if workers is not None:
        return workers
    return 0 if suite == "mini" else max(1, min(8, (os.cpu_count() or 1) // jobs))


def _plans(slots: Sequence[Slot], suite: Literal["paper", "mini", "own"]) -> list[Plan]:
    from mmrl.protocols.evaluations import TUNED
    from mmrl.reports.cells import Plan

    command, plans = shlex.join(["mmrl", *sys.argv[1:]]), []
    for study in dict.fromkeys(slot.study for slot in slots):
        mine = tuple(slot for slot in slots if slot.study == study)
        tuned = any(TUNED in slot.variant for slot in mine)
        notes = (TUNED_NOTE,) if tuned else ()
        plans.append(Plan(schema="mmrl.plan/1", study=study, suite=suite, slots=mine, paper_compat=tuned, command=command, notes=notes))
    return plans


def _announce(groups: Sequence[Group], slots: Sequence[Slot], store: ResultsFolder | None) -> int:
    """Say how much there is to do; all of it where there is no folder yet. Gives the number of groups with missing cells."""
    from mmrl.engine.grid import missing_cells

    missing = [missing_cells(group, store) if store else {key for _, key in group.cells} for group in groups]
    lacking = [group for group, keys in zip(groups, missing, strict=True) if keys]
    keys = {slot.key for slot in slots}
    there = len(keys) - sum(map(len, missing))
    trainings = sum(group.training is not None for group in lacking)
    passes = len(lacking) - trainings
    typer.echo(f"{len(keys)} cells, {there} of them there already; {trainings} trainings and {passes} zero-shot passes to do")
    return len(lacking)


def _tables(store: ResultsFolder, slots: Sequence[Slot]) -> None:
    """Print the tables of the studies just done, with the values of every seed."""
    from rich.console import Console

    from mmrl.cli.output import sheet_table
    from mmrl.reports.aggregate import study_sheets
    from mmrl.reports.measures import StudyScores
    from mmrl.reports.results import Results

    results, console = Results(store.folder), Console()
    for study in dict.fromkeys(slot.study for slot in slots):
        for sheet in study_sheets(StudyScores(results, results.plans[study])):
            console.print(sheet_table(sheet))
    typer.echo(f"`mmrl report {store.folder}` makes a page of all tables and figures")
