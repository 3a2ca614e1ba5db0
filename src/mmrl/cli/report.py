"""`mmrl report`: a results folder as one HTML page and tables. Needs no torch."""

from __future__ import annotations

from pathlib import Path

import typer


def report(
    results: Path = typer.Argument(..., help="Results folder: the --out of `mmrl bench` or `mmrl ablate`; it may still be filling."),
    out: Path = typer.Option(Path("report"), "--out", help="Folder for index.html and tables/."),
    title: str = typer.Option(None, "--title", help="Heading of the page."),
) -> None:
    """Make a page of all results, with the paper's numbers where the setting is the paper's, and every table as Markdown, LaTeX and CSV."""
    from mmrl.reports.report import build_report

    page, *tables = build_report(results, out, title=title)
    typer.echo(f"{page}\n{len(tables)} tables in {out / 'tables'}")
