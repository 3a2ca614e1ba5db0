"""`mmrl demo`: base-to-novel on the embedded model, then a few photos with class names it never saw."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from mmrl.clip import Clip
    from mmrl.reports import RunRecord
    from mmrl.serve.predictor import Classifier, Guess

DATASETS = ("mini:digits", "mini:textures", "mini:glyphs")  # zero-shot leaves room on these; on mini:objects it hardly does
METHODS = ("mmrl", "mmrlpp")
SEEDS = (1, 2, 3)
PHOTOS = 8


def demo(
    out: Path = typer.Option(Path("demo"), "--out", help="Folder for tables, plots, adapters and predictions."),
    datasets: str = typer.Option(",".join(DATASETS), "--data", help="Datasets, separated by commas."),
    seeds: str = typer.Option(",".join(map(str, SEEDS)), "--seeds", help="Seeds, separated by commas."),
    shots: int = typer.Option(16, "--shots", min=1, help="Training images a class."),
) -> None:
    """Base-to-novel with zero-shot, MMRL and MMRL++ on the embedded CLIP; table, plots, adapters, predictions. What is there is kept."""
    import time

    from rich.console import Console

    from mmrl.cli.options import parse_seeds
    from mmrl.clip import load_clip
    from mmrl.files import write_text
    from mmrl.reports import summarise, to_csv, to_markdown, to_rich

    began, console = time.monotonic(), Console()
    names, numbers = [name.strip() for name in datasets.split(",")], parse_seeds(seeds)
    clip = load_clip("tiny")
    records = [_run(clip, out, data, method, seed, shots, console) for data in names for method in METHODS for seed in numbers]
    summary = summarise(records)
    console.print(
        to_rich(summary, title=f"Base-to-novel on the embedded CLIP, {shots} shots, seeds {', '.join(map(str, numbers))}: accuracy in %")
    )
    write_text(out / "table.md", to_markdown(summary))
    write_text(out / "table.csv", to_csv(summary))
    _plots(records, out)
    _photos(clip, out, names[0], numbers[0], console)
    minutes = (time.monotonic() - began) / 60
    console.print(f"{minutes:.1f} minutes. Tables, plots, adapters and photos are in {out}/", highlight=False)
    run = _folder(out, names[0], METHODS[0], numbers[0])
    console.print(f"Try: mmrl predict {run} {out}/photos, with --classes and names of your own", highlight=False)


def _folder(out: Path, data: str, method: str, seed: int) -> Path:
    return out / "runs" / f"{data.replace(':', '-')}-{method}-seed{seed}"


def _run(clip: Clip, out: Path, data: str, method: str, seed: int, shots: int, console: Console) -> RunRecord:
    """Train and score one run, or take the record of one that is finished."""
    from mmrl import api
    from mmrl.cli.output import quiet_warnings
    from mmrl.reports import RECORD_NAME, read_record

    folder = _folder(out, data, method, seed)
    if (folder / RECORD_NAME).is_file():
        record = read_record(folder)
        if record.shots == shots and record.fingerprint == clip.fingerprint:
            return record
    with quiet_warnings():
        record = api.train(
            data, method=method, backbone=clip, shots=shots, classes="base", seed=seed, out=folder, resume=folder.exists(), source="demo"
        ).record
    m, z = record.metrics, record.zero_shot
    assert m.base and m.novel and z and z.base and z.novel
    console.print(
        f"{data} {method} seed {seed}: base {m.base.top1:.1%}, novel {m.novel.top1:.1%} (zero-shot {z.base.top1:.1%}, {z.novel.top1:.1%})",
        highlight=False,
    )
    return record


def _plots(records: list[RunRecord], out: Path) -> None:
    from mmrl.reports import summarise
    from mmrl.reports.plots import accuracy_plot, confusion_plot, reliability_diagram, training_curves

    accuracy_plot(summarise(records), out / "plots" / "accuracy.png")
    first = records[0]
    training_curves(first.history, out / "plots" / "training.png")
    for part in ("base", "novel"):
        scores = getattr(first.metrics, part)
        title = f"{first.method} on {first.dataset}, {part} classes"
        reliability_diagram(scores, out / "plots" / f"reliability-{part}.png", title=title)
        confusion_plot(scores, out / "plots" / f"confusion-{part}.png", title=title)


def _photos(clip: Clip, out: Path, data: str, seed: int, console: Console) -> None:
    """Classify a few test images among all classes of the set, half of which were never trained."""
    from rich.table import Table

    from mmrl import api
    from mmrl.data import load_dataset
    from mmrl.reports.plots import predictions_plot

    dataset = load_dataset(data)
    chosen = [next(item for item in dataset.test if item.label == label) for label in range(len(dataset.classes))]
    chosen = (chosen[: PHOTOS // 2] + chosen[::-1][: PHOTOS // 2])[:PHOTOS]
    folder = out / "photos"
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for item in chosen:
        files.append(folder / f"{dataset.classes[item.label].replace(' ', '_')}.png")
        dataset.image(item).save(files[-1])
    classifier: Classifier = api.from_pretrained(_folder(out, data, "mmrl", seed), backbone=clip)
    ranked: list[list[Guess]] = classifier.rank(files, dataset.classes, top=3)
    table = Table("photo", "first guess", "second", "third", title="Photos classified among trained and new class names (* never trained)")
    for file, guesses in zip(files, ranked):
        table.add_row(file.name, *(f"{g.name}{'' if g.trained else '*'} {g.probability:.0%}" for g in guesses))
    console.print(table)
    captions = [[(g.name, g.probability, g.trained) for g in guesses] for guesses in ranked]
    predictions_plot(files, captions, [dataset.classes[item.label] for item in chosen], out / "plots" / "predictions.png")
