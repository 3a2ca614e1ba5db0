"""`mmrl import-checkpoint`: the authors' files."""

from __future__ import annotations

from pathlib import Path

import typer


def import_checkpoint(
    checkpoint: Path = typer.Argument(..., help="The authors' file, such as model.pth.tar-10."),
    out: Path = typer.Option(..., "--out", help="Folder for the adapter."),
    classes: str = typer.Option(..., "--classes", help="Names it was trained on, in the order of the labels: 'a,b,c' or a file."),
    method: str = typer.Option(None, "--method", help="Whose it is, where several methods' files are alike (coop, prograd)."),
    template: list[str] = typer.Option(
        ["a photo of a {}."], "--template", help="Prompt it was trained with; several if it was with their mean."
    ),
    data: str = typer.Option(None, "--data", help="Name of the data set it was trained on (`mmrl data list`); `mmrl eval` asks for it."),
    backbone: str = typer.Option("ViT-B-16-quickgelu/openai", "--backbone", help="The CLIP it was trained on."),
    set_: list[str] = typer.Option([], "--set", help="KEY=VALUE, for what the file does not say, such as alpha or ctx_init."),
) -> None:
    """Turn a checkpoint of the authors' code into an adapter. Nothing in the file is executed."""
    from mmrl.class_lists import class_names
    from mmrl.cli.options import parse_settings
    from mmrl.data import dataset_info
    from mmrl.engine import import_authors

    if data is not None:
        dataset_info(data)
    made, config = import_authors(
        checkpoint,
        out,
        classes=class_names(classes),
        method=method,
        template=tuple(template),
        dataset=data,
        clip=backbone,
        options=parse_settings(set_),
    )
    count = sum(p.numel() for p in made.parameters())
    typer.echo(f"{config.method}: {count} trained parameters, {len(config.class_names)} classes, written to {out}")
