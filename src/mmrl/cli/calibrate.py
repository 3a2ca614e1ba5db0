"""`mmrl calibrate`: fit an adapter's probabilities, thresholds and prediction sets to labelled images."""

from __future__ import annotations

from pathlib import Path

import typer

from mmrl.cli.options import DEVICE


def calibrate(
    adapter: str = typer.Argument(..., help="Folder of a run or an adapter; the calibration is saved there."),
    data: str = typer.Argument(..., metavar="DATA", help="Folder with a subfolder of images a class, a list of them, or a dataset."),
    classes: str = typer.Option(None, "--classes", help="Names that compete: 'a,b,c' or a file. Default: the trained ones."),
    split: str = typer.Option(None, "--split", help="train, val or test; default: the validation images, or all of data without parts."),
    template: list[str] = typer.Option([], "--template", help="Prompt with one {}; default: the adapter's. Several are averaged."),
    root: Path = typer.Option(None, "--root", envvar="DATA", help="Folder with the downloaded datasets."),
    backbone: str = typer.Option(None, "--backbone", help="Backbone, if not the one the adapter names."),
    device: str = DEVICE,
    workers: int = typer.Option(None, "--workers", min=0, help="Threads that prepare images; default: one a core, at most 8."),
    skip_broken: bool = typer.Option(False, "--skip-broken", help="Leave out images that are missing or broken, and say how many."),
) -> None:
    """Calibrate an adapter on labelled images that it was not trained on and will not be measured on.

    Training does so by itself where images are left. Then `mmrl predict --reject` answers 'unknown', and --coverage gives sets of classes.
    """
    from mmrl.api import from_pretrained
    from mmrl.engine.adapter import read_config, write_trust
    from mmrl.errors import UsageError
    from mmrl.files import user_path
    from mmrl.reports.records import RECORD_NAME, read_record

    folder = user_path(adapter)
    if adapter == "zero-shot":
        raise UsageError("zero-shot CLIP has no folder to keep a calibration in; in Python: mmrl.zero_shot(...).calibrate(DATA).")
    read_config(folder)  # a name on a hub has no folder to write to
    classifier = from_pretrained(folder, backbone=backbone, device=device)
    found = classifier.calibrate(
        data, classes, split=split, template=tuple(template) or None, root=root, skip_broken=skip_broken, workers=workers
    )
    write_trust(folder, found, read_record(folder) if (folder / RECORD_NAME).is_file() else None)
    typer.echo(
        f"calibrated on {found.images} images among {len(found.classes)} classes ({found.accuracy:.1%} right): temperature "
        f"{found.temperature:.3g}, threshold {found.threshold('energy', 0.95):.4g} for a recall of 0.95; saved in {folder}"
    )
