"""`mmrl predict`: classify images, a few or millions."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from mmrl.cli.options import DEVICE

if TYPE_CHECKING:
    from mmrl.bulk.answers import Answer
    from mmrl.bulk.listed import WantedImages
    from mmrl.bulk.predict import Engine, Target
    from mmrl.bulk.stream import BlockJudge


def predict(
    adapter: str = typer.Argument(..., help="Folder of a run or an adapter, a hub name, or 'zero-shot'."),
    images: list[str] = typer.Argument(None, help="Image files, folders of them, patterns such as 'photos/*.jpg', or URLs."),
    classes: str = typer.Option(
        None, "--classes", help="Names to choose from: 'a,b,c' or a file; trained or not. Default: the trained ones."
    ),
    template: list[str] = typer.Option([], "--template", help="Prompt with one {}; default: the adapter's. Several are averaged."),
    backbone: str = typer.Option(None, "--backbone", help="Backbone, if not the one the adapter names."),
    top: int = typer.Option(3, "--top", help="How many classes to show."),
    device: str = DEVICE,
    from_list: list[str] = typer.Option(
        [], "--from-list", metavar="FILE", help="More images: a path or URL a line; column 'image' of .csv, .jsonl, .parquet; - for stdin."
    ),
    recursive: bool = typer.Option(False, "--recursive", help="Folders stand for the images in their subfolders, too."),
    skip_broken: bool = typer.Option(False, "--skip-broken", help="End with exit code 0 although some images could not be read."),
    allow_urls: bool = typer.Option(False, "--allow-urls", help="Fetch images that are given as URLs, of up to 20 MB and 10 s each."),
    reject: bool = typer.Option(False, "--reject", help="Answer 'unknown' for images of none of the classes, at a recall of 0.95."),
    recall: float = typer.Option(None, "--recall", help="The same, at another: the share of images of the classes that is to be kept."),
    threshold: float = typer.Option(None, "--threshold", help="The same, below a score of your own; needs no calibration."),
    score: str = typer.Option("energy", "--score", help="What tells unknown images: energy or mcm."),
    coverage: float = typer.Option(None, "--coverage", help="Also give the classes that hold the right one with this probability, as 0.9."),
    raw: bool = typer.Option(False, "--raw", help="Probabilities as they are, not calibrated."),
    as_json: bool = typer.Option(False, "--json", help="Print one JSON object per image."),
    as_csv: bool = typer.Option(False, "--csv", help="Print CSV: a line for each image and class that is shown."),
    out: Path = typer.Option(None, "--out", help="Write the results to this file instead, as they come: .csv, .jsonl or .parquet."),
    resume: bool = typer.Option(False, "--resume", help="Go on with --out where a run ended that was interrupted."),
    overwrite: bool = typer.Option(False, "--overwrite", help="Replace --out."),
    sort_into: Path = typer.Option(None, "--sort-into", metavar="FOLDER", help="Copy each image into a folder of its class in FOLDER."),
    link: bool = typer.Option(False, "--link", help="With --sort-into: symbolic links to the images instead of copies."),
    engine: str = typer.Option("local", "--engine", help="Where images are judged: local, or ray."),
    address: str = typer.Option(None, "--address", help="With --engine ray: of the cluster, or 'auto'; default: start one here."),
    gpu_fraction: float = typer.Option(0.0, "--gpu-fraction", min=0.0, help="With --engine ray: GPUs a worker, such as 0.25."),
    workers: int = typer.Option(None, "--workers", min=0, help="Threads that decode images; default: one a core, at most 8."),
    quiet: bool = typer.Option(False, "--quiet", help="Show no progress."),
) -> None:
    """Classify images among trained or new class names.

    An image that cannot be read is told on stderr, and takes nothing from the others; the exit code is then 1.
    """
    from mmrl.api import from_pretrained, zero_shot
    from mmrl.bulk.answers import AskedOfEach
    from mmrl.bulk.listed import WantedImages
    from mmrl.bulk.predict import Engine, Target
    from mmrl.bulk.stream import BlockJudge
    from mmrl.cli.output import quiet_warnings
    from mmrl.errors import UsageError

    if as_json and as_csv:
        raise UsageError("--json and --csv are both given; use one of them.")
    if not images and not from_list:
        raise UsageError("no images are given. Name files, folders or patterns, or give --from-list FILE.")
    wanted = WantedImages(tuple(images or ()), tuple(from_list), recursive)
    wanted.require_some()
    target = Target.of(out, resume=resume, overwrite=overwrite, sort_into=sort_into, links=link)
    if target is not None and (as_json or as_csv):
        form = "--json" if as_json else "--csv"
        raise UsageError(f"{form} prints the answers, and --out or --sort-into writes them: leave {form} out; the ending of --out decides.")
    where = Engine(engine, workers, address, gpu_fraction)
    where.check()
    if engine == "ray" and device not in ("auto", "cpu"):
        raise UsageError("--engine ray takes no --device: --gpu-fraction 0.25 puts four workers on each GPU of the cluster.")
    asked = AskedOfEach(classes, top, reject, recall, threshold, score, coverage, tuple(template) or None, not raw, allow_urls)
    if adapter == "zero-shot":
        classifier = zero_shot(backbone or "tiny", device=device)
    else:
        classifier = from_pretrained(adapter, backbone=backbone, device=device)

    def problem(text: str) -> None:
        typer.echo(f"{'warning' if skip_broken else 'error'}: {text}", err=True)

    with quiet_warnings():
        judge = BlockJudge(classifier, asked)
        if target is not None:
            bad = _written(judge, wanted, target, where, problem, progress=not quiet)
        else:
            bad = _printed(judge, wanted, where, problem, "json" if as_json else "csv" if as_csv else "", progress=not quiet)
    if bad and not skip_broken:
        raise typer.Exit(1)


def _written(
    judge: BlockJudge, wanted: WantedImages, target: Target, where: Engine, problem: Callable[[str], None], *, progress: bool
) -> int:
    """Write into a file; how many images are bad."""
    from mmrl.bulk.predict import write

    try:
        found = write(judge, wanted, target, where, problem=problem, progress=progress)
    except KeyboardInterrupt:
        typer.echo(f"what is answered so far is kept in {target.out}; the same command with --resume goes on", err=True)
        raise
    before = f", {found.before} of them before" if found.before else ""
    typer.echo(f"written to {found.out} ({found.answered} images{before})")
    return found.unreadable + found.not_copied


def _printed(judge: BlockJudge, wanted: WantedImages, where: Engine, problem: Callable[[str], None], form: str, *, progress: bool) -> int:
    """Print; how many images are bad."""
    from mmrl.bulk.predict import answers
    from mmrl.bulk.progress import shown

    bad = 0

    def told() -> Iterator[list[Answer]]:
        nonlocal bad
        for block in answers(judge, iter(wanted), where):
            for each in block:
                if each.error:
                    bad += 1
                    problem(each.error)
            bar.update(len(block))
            yield block

    show = progress and not (form and sys.stdout.isatty())
    with shown(wanted.count() if show else None, 0, show=show) as bar:
        _print(judge, told(), form)
    return bad


def _print(judge: BlockJudge, found: Iterator[list[Answer]], form: str) -> None:
    from mmrl.bulk.forms import CsvAnswers, JsonAnswers
    from mmrl.cli.predictions import print_lines, print_tables

    if form:
        asked = judge.asked
        lines = JsonAnswers() if form == "json" else CsvAnswers(min(asked.top, len(judge.judging.head.names)), asked.columns)
        print_lines(lines, found)
    else:
        print_tables(found)
