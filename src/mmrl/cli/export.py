"""`mmrl export`: a classifier as files that other programs run."""

from __future__ import annotations

from pathlib import Path

import typer


def export(
    adapter: str = typer.Argument(..., help="Folder of a run or an adapter, a hub name, or 'zero-shot'."),
    out: Path = typer.Option(..., "--out", help="Folder to write: a new one, or an earlier export, which is replaced."),
    to: str = typer.Option("onnx", "--to", help="What to write: onnx (ONNX Runtime, no torch), pt2 (torch.export) or web (a page)."),
    backbone: str = typer.Option(None, "--backbone", help="Backbone, if not the one the adapter names."),
    precision: str = typer.Option("float32", "--precision", help="Of the weights: float32, or int8, which --check must allow."),
    check: str = typer.Option(None, "--check", metavar="DATA", help="Labelled images or a data set to measure int8's accuracy on."),
    root: Path = typer.Option(None, "--root", help="Folder with the downloaded data sets, for --check."),
    max_loss: float = typer.Option(1.0, "--max-loss", help="Points of accuracy that int8 may lose there; more, and nothing is written."),
    opset: int = typer.Option(18, "--opset", help="Of ONNX: 18 to 22."),
    no_text: bool = typer.Option(False, "--no-text", help="Leave the text tower out: smaller, and no new classes."),
    ort: Path = typer.Option(
        None, "--ort", metavar="FOLDER", help="With --to web: the npm package onnxruntime-web, or its .tgz; default: npm is asked once."
    ),
) -> None:
    """Write a classifier as files that other programs run, after comparing them with torch at several batch sizes."""
    from mmrl.api import zero_shot
    from mmrl.cli.output import quiet_warnings
    from mmrl.export import export_adapter

    made_here = adapter == "zero-shot"
    given = zero_shot(backbone or "tiny", device="cpu") if made_here else adapter
    with quiet_warnings():
        made = export_adapter(
            given, out, to=to, backbone=None if made_here else backbone, precision=precision, check=check, root=root, max_loss=max_loss,
            opset=opset, text=not no_text, ort=ort,
        )  # fmt: skip
    for note in made.notes:
        typer.echo(f"note: {note}", err=True)
    typer.echo(f"written to {made.folder} ({made.bytes / 1e6:.1f} MB); largest difference from torch: {made.largest_difference:.1g}")
