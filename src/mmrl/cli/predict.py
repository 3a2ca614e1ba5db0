"""`mmrl predict`: classify images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from mmrl.cli.options import DEVICE

if TYPE_CHECKING:
    from mmrl.classifier.judging import Judged
    from mmrl.cli.pictures import Picture
    from mmrl.cli.predictions import Answer


def predict(
    adapter: str = typer.Argument(..., help="Folder of a run or an adapter, a hub name, or 'zero-shot'."),
    images: list[str] = typer.Argument(..., help="Image files, folders of them, patterns such as 'photos/*.jpg', or URLs."),
    classes: str = typer.Option(
        None, "--classes", help="Names to choose from: 'a,b,c' or a file; trained or not. Default: the trained ones."
    ),
    template: list[str] = typer.Option([], "--template", help="Prompt with one {}; default: the adapter's. Several are averaged."),
    backbone: str = typer.Option(None, "--backbone", help="Backbone, if not the one the adapter names."),
    top: int = typer.Option(3, "--top", help="How many classes to show."),
    device: str = DEVICE,
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
    out: Path = typer.Option(None, "--out", help="Write the results to this file instead: .csv or .jsonl."),
) -> None:
    """Classify images among trained or new class names.

    An image that cannot be read is told on stderr, and takes nothing from the others; the exit code is then 1.
    """
    from rich.console import Console

    from mmrl.api import from_pretrained, zero_shot
    from mmrl.cli import predictions
    from mmrl.cli.output import quiet_warnings
    from mmrl.cli.pictures import pictures
    from mmrl.errors import UsageError
    from mmrl.files import user_path

    if as_json and as_csv:
        raise UsageError("--json and --csv are both given; use one of them.")
    if out is not None:
        out = user_path(out)
        predictions.file_format(out)
    found = pictures(images, allow_urls=allow_urls)
    if adapter == "zero-shot":
        classifier = zero_shot(backbone or "tiny", device=device)
    else:
        classifier = from_pretrained(adapter, backbone=backbone, device=device)
    with quiet_warnings():
        judged = classifier.judge(
            [each.source for each in found if not each.problem], classes, top=top, reject=reject, recall=recall, threshold=threshold,
            score=score, coverage=coverage, template=tuple(template) or None, skip_broken=True, calibrated=not raw,
        )  # fmt: skip
    rejects = reject or recall is not None or threshold is not None
    answers = list(_answers(found, judged, rejects, coverage is not None))
    for each in (each for each in answers if each.error):
        typer.echo(f"{'warning' if skip_broken else 'error'}: {each.error}", err=True)
    if out is not None:
        predictions.write(out, answers)
        typer.echo(f"written to {out} ({sum(not each.error for each in answers)} images)")
    elif as_json or as_csv:
        print(predictions.as_json_lines(answers) if as_json else predictions.as_csv(answers), end="")
    else:
        Console().print(predictions.as_table(answers))
    if not skip_broken and any(each.error for each in answers):
        raise typer.Exit(1)


def _answers(found: Sequence[Picture], judged: Sequence[Judged], rejects: bool, sets: bool) -> Iterator[Answer]:
    """An answer for each picture, in order; `judged` are the pictures without a problem, with no class where one could not be read."""
    from mmrl.cli.predictions import Answer

    rows = iter(judged)
    for each in found:
        own = None if each.problem else next(rows)
        if own is None or not own.ranked:
            yield Answer(each.name, [], each.problem or _problem(each))
        else:
            score, unknown = (own.score, own.unknown) if rejects else (None, None)
            yield Answer(each.name, own.ranked, "", score, unknown, own.within if sets else None)


def _problem(picture: Picture) -> str:
    """Why an image that was left out cannot be read."""
    from mmrl.data import to_rgb
    from mmrl.data.images import REMEDY
    from mmrl.errors import UsageError

    try:
        to_rgb(picture.source)
    except UsageError as error:
        said = str(error).removesuffix(REMEDY).rstrip()
        return said if picture.content is None else f"{picture.name}: {said}"
    return f"{picture.name} could not be read, and now can: run the command again."
