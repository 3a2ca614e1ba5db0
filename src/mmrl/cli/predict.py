"""`mmrl predict`: classify images."""

from __future__ import annotations

import typer

from mmrl.cli.options import DEVICE


def predict(
    adapter: str = typer.Argument(..., help="Folder of a run or an adapter, a hub name, or 'zero-shot'."),
    images: list[str] = typer.Argument(..., help="Image files, or folders of them."),
    classes: str = typer.Option(
        None, "--classes", help="Names to choose from: 'a,b,c' or a file; trained or not. Default: the trained ones."
    ),
    template: list[str] = typer.Option([], "--template", help="Prompt with one {}; default: the adapter's. Several are averaged."),
    backbone: str = typer.Option(None, "--backbone", help="Backbone, if not the one the adapter names."),
    top: int = typer.Option(3, "--top", help="How many classes to show."),
    device: str = DEVICE,
    skip_broken: bool = typer.Option(False, "--skip-broken", help="Skip images that cannot be read, with a warning."),
    as_json: bool = typer.Option(False, "--json", help="Print one JSON object per image."),
) -> None:
    """Classify images among trained or new class names."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from mmrl.api import from_pretrained, zero_shot
    from mmrl.cli.options import image_paths
    from mmrl.cli.output import print_json, quiet_warnings

    files = image_paths(images)
    if adapter == "zero-shot":
        classifier = zero_shot(backbone or "tiny", device=device)
    else:
        classifier = from_pretrained(adapter, backbone=backbone, device=device)
    with quiet_warnings():
        ranked = classifier.rank(files, classes, top=top, template=tuple(template) or None, skip_broken=skip_broken)
    for file in (file for file, predictions in zip(files, ranked) if not predictions):
        typer.echo(f"warning: {file} is broken and was left out", err=True)
    if as_json:
        for file, predictions in zip(files, ranked):
            print_json({"image": file, "predictions": [each._asdict() for each in predictions]})
        return
    table = Table("image", "class", "probability", "trained", box=None, padding=(0, 2))
    for file, predictions in zip(files, ranked):
        for i, each in enumerate(predictions):
            place = Text(file if i == 0 else "")  # as Text, since rich would read brackets in names as markup
            table.add_row(place, Text(each.name), f"{each.probability:.1%}", "yes" if each.trained else "no")
    Console().print(table)
