"""`mmrl report`: results folders as one HTML page and tables. Needs no torch."""

from __future__ import annotations

from pathlib import Path

import typer


def report(
    results: list[Path] = typer.Argument(
        ..., help="Results folder: the --out of `mmrl bench` or `mmrl ablate`; it may still be filling. Several: side by side."
    ),
    out: Path = typer.Option(Path("report"), "--out", help="Folder for index.html and tables/."),
    title: str = typer.Option(None, "--title", help="Heading of the page."),
    claim: list[str] = typer.Option(
        [], "--claim", help="'METHOD > METHOD on METRIC [in STUDY]': a claim of yours, held against the results. May be repeated."
    ),
) -> None:
    """Make a page of all results, with the paper's numbers where the setting is the paper's, and every table as Markdown, LaTeX and CSV."""
    from mmrl.reports.folders import open_folders
    from mmrl.reports.own_claims import own_claims
    from mmrl.reports.report import write_report

    folders = open_folders(results)
    own = own_claims(claim, folders)
    page, *tables = write_report(folders, out, title=title, own=own)
    for each in own:
        typer.echo("\n  ".join([f"{each.verdict}: {each.text}", *each.evidence]))
    typer.echo(f"{page}\n{len(tables)} tables in {out / 'tables'}")
