"""`mmrl train`: one run."""

from __future__ import annotations

from pathlib import Path

import typer

from mmrl.cli.options import BATCH_SIZE, DEVICE, EPOCHS, LR


def train(
    data: str = typer.Option(..., "--data", help="A name of `mmrl data list`, a folder of images, or a file that lists them."),
    out: Path = typer.Option(..., "--out", help="Folder for the adapter, checkpoints and the record."),
    root: Path = typer.Option(None, "--root", envvar="DATA", help="Folder with the downloaded datasets."),
    method: str = typer.Option("mmrl", "--method", help="See `mmrl methods`."),
    backbone: str = typer.Option(
        None, "--backbone", help="ARCH/TAG, hf-hub:ORG/NAME, local-dir:FOLDER, a file with OpenAI's weights, or tiny (default; for trying)."
    ),
    shots: int = typer.Option(16, "--shots", min=0, help="Training images a class; 0 takes all."),
    classes: str = typer.Option("all", "--classes", help="Train on 'all' classes, or on the 'base' half."),
    seed: int = typer.Option(1, "--seed", help="Decides the draw, the initial values, order and augmentation."),
    template: list[str] = typer.Option([], "--template", help="Prompt with one {}; default: the dataset's. Several are averaged."),
    protocol: str = typer.Option(
        None, "--protocol", help="Whose published values to use; default: few-shot for all classes of a known dataset, else base-to-novel."
    ),
    epochs: int = EPOCHS,
    lr: float = LR,
    batch_size: int = BATCH_SIZE,
    set_: list[str] = typer.Option([], "--set", help="KEY=VALUE, an option of the method or of training; may be repeated."),
    resume: bool = typer.Option(False, "--resume", help="Go on with the run in --out."),
    allow_fewer: bool = typer.Option(False, "--allow-fewer", help="Take all images of a class that has fewer than --shots."),
    draw: Path = typer.Option(None, "--draw", help="Take the images of this draw: a run's draw.json, or CoOp's shot_16-seed_1.pkl."),
    test: Path = typer.Option(None, "--test", help="Folder of images to test on, one subfolder a class; default: those not drawn."),
    test_share: float = typer.Option(None, "--test-share", help="Instead, set this share of each class apart to test, such as 0.3."),
    device: str = DEVICE,
    skip_broken: bool = typer.Option(False, "--skip-broken", help="Leave out images that are missing or broken; the record names them."),
    workers: int = typer.Option(None, "--workers", min=0, help="Threads that prepare images; default: one a core, at most 8."),
    quiet: bool = typer.Option(False, "--quiet", help="No progress bar."),
) -> None:
    """Train on a few images a class, and score the result beside zero-shot CLIP.

    On several devices: torchrun --nproc-per-node 2 -m mmrl train ..., or accelerate launch -m mmrl train ...
    """
    from rich.console import Console

    from mmrl import api
    from mmrl.cli.options import training_settings
    from mmrl.cli.output import quiet_warnings, scores_table
    from mmrl.console.launcher import process
    from mmrl.engine.checkpoint import STATE
    from mmrl.engine.parallel import leave
    from mmrl.errors import UsageError
    from mmrl.files import user_path

    out = user_path(out)
    if resume and not out.exists() and not process():
        typer.echo(f"note: there is no run in {out} to go on with; starting one", err=True)
    if test is not None and test_share is not None:
        raise UsageError("--test and --test-share are both given; use one of them.")
    if test_share is not None and not 0 < test_share < 1:
        raise UsageError(f"--test-share is {test_share:g}; it must be above 0 and below 1, such as 0.3.")
    holdout = test or test_share
    images = api.Data(
        data, root=root, shots=shots, classes=classes, allow_fewer=allow_fewer, draw=draw, template=tuple(template) or None,
        holdout=holdout, skip_broken=skip_broken,
    )  # fmt: skip
    options = training_settings(set_, epochs=epochs, lr=lr, batch_size=batch_size)
    what = api.What(method, backbone, seed, protocol, options, source="command line")
    try:
        with quiet_warnings():
            result = api.train(images, what, api.Where(out, resume, device, workers, progress=not quiet))
    except KeyboardInterrupt:
        if (out / STATE).is_file() and not process():
            typer.echo(f"what is trained so far is kept in {out}; the same command with --resume goes on", err=True)
        raise
    leave()
    if process():
        return  # the main one prints
    console = Console()
    record = result.record
    if record.tests:
        console.print(scores_table([(f"{test.classes} classes", test.scores, test.zero_shot) for test in record.tests], record.method))
    if record.metrics.hm is not None and record.zero_shot.hm is not None:
        console.print(f"harmonic mean {record.metrics.hm:.1%}, zero-shot {record.zero_shot.hm:.1%}", highlight=False)
    for warning in record.warnings:
        typer.echo(f"warning: {warning}", err=True)
    typer.echo(f"written to {out} ({record.trained.seconds:.0f} s of training)")
