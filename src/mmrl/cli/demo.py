"""`mmrl demo`: base-to-novel on the embedded model, then predictions for a few photos with unseen class names."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from mmrl.cli import grid

if TYPE_CHECKING:
    from mmrl.classifier.predictor import Classifier
    from mmrl.data import Dataset
    from mmrl.trust.answers import Prediction

STUDY, BACKBONE = "base-to-novel", "tiny"
DATASETS = ("mini:digits", "mini:textures", "mini:glyphs")  # zero-shot can be improved on these; hardly on mini:objects
METHODS = ("zero-shot", "gda", "mmrl", "mmrlpp")
SHOWN = "mmrl"  # whose adapter classifies the photos
PHOTOS = 8
STRANGERS = ("mini:digits", "mini:textures")  # where --data names no other: photos of none of the classes
ASKED = 40  # of these, and of the trained classes


def demo(
    out: Path = typer.Option(Path("demo"), "--out", help="Folder for results, report, adapter and classified photos."),
    datasets: str = typer.Option(",".join(DATASETS), "--data", help="Datasets, separated by commas, or 'all' of the mini benchmark."),
    seeds: str = grid.option("seeds"),
    shots: int = typer.Option(16, "--shots", min=1, help="Training images per class."),
    jobs: int = typer.Option(1, "--jobs", min=1, help="Processes on this machine."),
) -> None:
    """Base-to-novel with zero-shot, GDA, MMRL and MMRL++ on the embedded CLIP; table, report, adapter, photos. Results there are kept."""
    import time

    from mmrl.cli.options import parse_seeds
    from mmrl.data import load_dataset
    from mmrl.protocols import MINI, evaluation
    from mmrl.reports.report import build_report

    began, results = time.monotonic(), out / "results"
    names, numbers = grid.names(datasets) or MINI.single, parse_seeds(seeds)
    first, *_ = [load_dataset(name, cache=results / "cache") for name in names]  # before any folder is created
    first = first.divided(grid.OWN_SHARE) if first.rest_tests else first
    cells = evaluation(STUDY, MINI, METHODS, numbers, datasets=names, shots=[shots])
    grid.carry_out(cells, grid.Grid(out=results, mini=True, jobs=jobs, device="cpu"))
    page = build_report(results, out / "report", title="mmrl demo: base-to-novel on the embedded CLIP")[0]
    stranger = next(name for name in (*names[1:], *STRANGERS) if name != names[0])
    _photos(_trained(results, names[0], numbers[0], shots), first, out, lambda: load_dataset(stranger, cache=results / "cache"))
    minutes = (time.monotonic() - began) / 60
    typer.echo(f"{minutes:.1f} minutes. The report is {page}; results, adapter and photos are in {out}/ too")
    typer.echo(f"Try: mmrl predict {out / 'adapter'} {out / 'photos'}, with --classes and names of your own, or --reject")


def _trained(results: Path, data: str, seed: int, shots: int) -> Path:
    """Folder of the adapter of one training of the plan. Raises UsageError if it was deleted."""
    from mmrl.errors import UsageError
    from mmrl.reports.results import Results

    place = (SHOWN, "", BACKBONE, data, seed, shots)  # `mmrl bench` may have put others there
    slots = Results(results).plans[STUDY].slots
    key = next(s.run for s in slots if (s.method, s.variant, s.backbone, s.dataset, s.seed, s.shots) == place)
    folder = results / "work" / str(key)
    if not folder.is_dir():
        raise UsageError(f"{folder} is gone, and with it the adapter to classify photos with. Delete {results} to train again.")
    return folder


def _photos(trained: Path, dataset: Dataset, out: Path, stranger: Callable[[], Dataset]) -> None:
    """Copy the adapter, and classify a few test images among all classes of the set, half of which were never trained; then some of
    another set among the trained ones."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from mmrl import api
    from mmrl.reports.plots import predictions_plot

    classifier = api.from_pretrained(trained)
    known = dataset.restrict("base")
    calibrated = bool(known.val)
    if calibrated:
        classifier.calibrate(known)
    classifier.save_pretrained(out / "adapter")
    chosen = [next(item for item in dataset.test if item.label == label) for label in range(len(dataset.classes))]
    chosen = (chosen[: PHOTOS // 2] + chosen[::-1][: PHOTOS // 2])[:PHOTOS]
    folder = out / "photos"
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for item in chosen:
        files.append(folder / f"{dataset.classes[item.label].replace(' ', '_')}.png")
        dataset.image(item).save(files[-1])
    ranked: list[list[Prediction]] = classifier.rank(files, dataset.classes, top=3)
    table = Table("photo", "first", "second", "third", title="Photos classified among trained and new class names (* never trained)")
    for file, predictions in zip(files, ranked):
        table.add_row(Text(file.name), *(Text(f"{p.name}{'' if p.trained else '*'} {p.probability:.0%}") for p in predictions))
    Console().print(table)
    captions = [[(p.name, p.probability, p.trained) for p in predictions] for predictions in ranked]
    truths = [dataset.classes[item.label] for item in chosen]
    if calibrated and (found := _rejected(classifier, known, stranger(), folder)):
        files.append(found[0])
        captions.append([(p.name, p.probability, p.trained) for p in found[1]])
        truths.append("none: unknown")
    predictions_plot(files, captions, truths, out / "predictions.png")


def _rejected(classifier: Classifier, known: Dataset, other: Dataset, folder: Path) -> tuple[Path, list[Prediction]] | None:
    """Say how many of both sets are answered "unknown"; put the photo that looks least known into `folder`, and return its classes."""
    counts = []
    for each in (known, other):
        some = each.test[:: max(1, len(each.test) // ASKED)][:ASKED]
        pictures = [each.image(item) for item in some]
        judged = classifier.judge(pictures, top=3)
        counts.append(f"{sum(one.unknown for one in judged)} of {len(judged)} of {each.name}")
    typer.echo(f"Answered 'unknown', at a threshold that keeps 95 % of held-out photos: {counts[1]}, {counts[0]}")
    least, picture = min(zip(judged, pictures), key=lambda pair: pair[0].score)
    if not least.unknown:
        return None
    path = folder / "none_of_them.png"
    picture.save(path)
    typer.echo(f"{path} is one of them: unknown, although {least.ranked[0].name} is the likeliest of the trained classes")
    return path, least.ranked
