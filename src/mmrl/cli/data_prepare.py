"""`mmrl data prepare`: build the layout of a data set from downloaded archives."""

from __future__ import annotations

from pathlib import Path

import typer


def prepare(
    name: str = typer.Argument(..., help="Data set, as in `mmrl data check`."),
    root: Path = typer.Option(None, "--root", envvar="DATA", help="Folder with the data sets."),
    source: Path = typer.Option(
        None, "--from", metavar="FOLDER", help="Folder with the archives; the data set's own folder is searched, too."
    ),
    download: bool = typer.Option(False, "--download", help="Let torchvision download it, if it can."),
) -> None:
    """Unpack the authors' archives into the expected layout, then check it. Existing files are never replaced."""
    from mmrl.cli.data_check import details
    from mmrl.data.benchmark.check import data_root
    from mmrl.data.benchmark.entries import ENTRIES
    from mmrl.data.benchmark.prepare import prepare_dataset
    from mmrl.errors import unknown

    if name not in ENTRIES:
        raise unknown("data set", name, ENTRIES)
    report = prepare_dataset(ENTRIES[name], data_root(root), source=source, download=download, say=typer.echo)
    details(report)
    if not report.ready:
        raise typer.Exit(1)
    typer.echo(f"{name} is ready in {report.folder}")
