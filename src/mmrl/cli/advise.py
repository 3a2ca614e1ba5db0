"""`mmrl advise`: which method to take for one's own images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from mmrl.cli.options import BATCH_SIZE, DEVICE, EPOCHS, LR

if TYPE_CHECKING:
    from rich.table import Table

    from mmrl.engine.advise import Advice


def advise(
    data: str = typer.Argument(..., help="A name of `mmrl data list`, a folder with one subfolder of images a class, or a list of images."),
    methods: str = typer.Option(None, "--methods", help="Names of `mmrl methods`, separated by commas; zero-shot is always among them."),
    minutes: float = typer.Option(10.0, "--minutes", min=0.0, help="For everything; methods that would take longer are left out."),
    folds: int = typer.Option(4, "--folds", min=2, help="Parts of the images; each is left out and tested in turn."),
    new_classes: bool = typer.Option(False, "--new-classes", help="Only methods that can classify among new classes too."),
    shots: int = typer.Option(0, "--shots", min=0, help="Training images a class; 0 takes all."),
    backbone: str = typer.Option(None, "--backbone", help="As for `mmrl train`; default: tiny, which is for trying."),
    root: Path = typer.Option(None, "--root", envvar="DATA", help="Folder with the downloaded datasets."),
    seed: int = typer.Option(1, "--seed", min=0, help="Of the draw, the parts and the trainings."),
    template: list[str] = typer.Option([], "--template", help="Prompt with one {}; default: the dataset's. Several are averaged."),
    allow_fewer: bool = typer.Option(False, "--allow-fewer", help="Take all images of a class that has fewer than --shots."),
    epochs: int = EPOCHS,
    lr: float = LR,
    batch_size: int = BATCH_SIZE,
    set_: list[str] = typer.Option([], "--set", help="KEY=VALUE, as for `mmrl bench`; may be repeated."),
    device: str = DEVICE,
    skip_broken: bool = typer.Option(False, "--skip-broken", help="Leave out images that are missing or broken."),
    workers: int = typer.Option(None, "--workers", min=0, help="Threads that prepare images; default: one a core, at most 8."),
    as_json: bool = typer.Option(False, "--json", help="Print JSON."),
) -> None:
    """Say which method to take, without test images: each is trained without a part of the training images and tested on that part."""
    from rich.console import Console

    from mmrl import api
    from mmrl.cli.grid import names
    from mmrl.cli.options import training_settings
    from mmrl.cli.output import print_json, quiet_warnings

    images = api.Data(data, root=root, shots=shots, template=tuple(template) or None, allow_fewer=allow_fewer, skip_broken=skip_broken)
    options = training_settings(set_, epochs=epochs, lr=lr, batch_size=batch_size)
    chosen = api.ADVISED if methods is None else names(methods) or api.ADVISED
    with quiet_warnings():
        found = api.advise(
            images, methods=chosen, folds=folds, minutes=minutes, new_classes=new_classes, backbone=backbone, seed=seed, device=device,
            workers=workers, overrides=options, source="command line", say=lambda line: typer.echo(line, err=True),
        )  # fmt: skip
    if as_json:
        print_json(found.as_json())
        return
    Console().print(_table(found))
    typer.echo(f"{found.images} training images of {found.classes} classes, {found.folds} parts left out in turn")
    for each in found.entrants:
        if each.why_not:
            typer.echo(f"{each.title} is left out: {each.why_not}.")
    typer.echo(_verdict(found))


def _table(found: Advice) -> Table:
    from rich.markup import escape
    from rich.table import Column, Table

    table = Table(Column("method", no_wrap=True), box=None, padding=(0, 2))
    for head in ("top-1", "95% interval", "new classes", "s a training", "GiB"):
        table.add_column(head, justify="right", no_wrap=head not in ("new classes", "s a training"))
    for each in (each for each in found.entrants if each.count):
        low, high = each.interval
        numbers = (f"{100 * each.accuracy:.1f}", f"{100 * low:.1f} to {100 * high:.1f}")
        cost = (f"{each.seconds:.1f}", f"{each.memory_gib:.2f}") if each.seconds else ("", "")
        table.add_row(escape(each.title), *numbers, "yes" if each.open_vocabulary else "no", *cost)
    return table


def _verdict(found: Advice) -> str:
    first, others = found.entrants[0], found.as_good
    apart = f" These images do not tell it apart from {', '.join(others)}." if others else ""
    if not first.seconds:
        return f"Take zero-shot CLIP: nothing that was trained here is above it.{apart}"
    return f"Take {first.title} (--method {found.best}).{apart}"
