"""`mmrl data check`: which data sets of the benchmark are complete, and what the others lack."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from rich.table import Table

    from mmrl.data.benchmark.check import Progress, Report

_SHOWN = 5  # paths of each kind, before "and ... more"


def check(
    names: list[str] = typer.Argument(None, metavar="[NAME]...", help="Data sets; default: all of the benchmark."),
    root: Path = typer.Option(None, "--root", envvar="DATA", help="Folder with the data sets."),
    deep: bool = typer.Option(False, "--deep", help="Also decode every image."),
    workers: int = typer.Option(None, "--workers", min=1, help="Decoding threads; default: one per core, at most 8."),
    cache: Path = typer.Option(None, "--cache", envvar="MMRL_CACHE", help="Folder in which to cache the listing of ImageNet's files."),
    as_json: bool = typer.Option(False, "--json", help="Print JSON."),
) -> None:
    """Check which data sets are complete and whether their split is the published one, and list what is missing and how to get it.

    The exit code is 0 if all the named data sets are ready; without names, if there are any and all of them are ready.
    """
    import json
    from dataclasses import asdict

    from rich.console import Console

    from mmrl.data.benchmark.check import check_dataset, data_root
    from mmrl.data.benchmark.entries import ENTRIES
    from mmrl.errors import unknown

    place = data_root(root)
    for name in names or ():
        if name not in ENTRIES:
            raise unknown("data set", name, ENTRIES)
    with _progress(deep) as progress:
        entries = [ENTRIES[name] for name in dict.fromkeys(names or ENTRIES)]
        reports = [check_dataset(entry, place, deep=deep, workers=workers, cache=cache, progress=progress(entry.name)) for entry in entries]
    if as_json:
        typer.echo(json.dumps([asdict(report) for report in reports], indent=2))
    else:
        Console(highlight=False).print(_table(reports))
        for report in reports:
            if names or report.state != "absent":
                details(report)
        if any(report.state == "absent" for report in reports) and not names:
            typer.echo("`mmrl data check NAME` says which files to get for an absent one.")
    present = [report for report in reports if names or report.state != "absent"]
    if not present or not all(report.ready for report in present):
        raise typer.Exit(1)


def details(report: Report) -> None:
    """Print everything about one data set that is not in its line of the table."""
    lines = [f"    {line}" for line in _lines(report)]
    lines += [f"    {'-> ' if at == 0 else '   '}{fix}" for at, fix in enumerate(report.fixes)]
    if lines:
        typer.echo("\n".join([f"{report.name}: {report.state}", *lines]))


def _lines(report: Report) -> Iterator[str]:
    for what, paths in (("missing", report.missing), ("cannot be read", report.unreadable)):
        yield from (f"{what}: {path}" for path in paths[:_SHOWN])
        if len(paths) > _SHOWN:
            yield f"{what}: and {len(paths) - _SHOWN:,} more (--json names all)"
    if report.split is not None:
        yield f"split: {report.split}"
    yield from (f"problem: {text}" for text in report.problems)
    yield from (f"note: {text}" for text in report.notes)


def _table(reports: list[Report]) -> Table:
    from rich.table import Table

    table = Table(box=None, padding=(0, 2, 0, 0))
    for heading in ("data set", "state"):
        table.add_column(heading, no_wrap=True)
    for heading in ("classes", "train", "val", "test"):
        table.add_column(heading, justify="right")
    table.add_column("folder", overflow="fold")
    for report in reports:
        cells = [f"{report.counts[kind][0]:,}" if kind in report.counts else "" for kind in ("classes", "train", "val", "test")]
        table.add_row(report.name, report.state, *cells, report.folder)
    return table


@contextmanager
def _progress(shown: bool) -> Iterator[Callable[[str], Progress]]:
    """Progress bars on stderr, one per data set, if `shown`."""
    from rich.console import Console
    from rich.progress import Progress as RichProgress

    with RichProgress(console=Console(stderr=True), transient=True, disable=not shown) as bars:

        def of(name: str) -> Progress:
            task = bars.add_task(name, total=None)
            return lambda done, total: bars.update(task, completed=done, total=total)

        yield of
