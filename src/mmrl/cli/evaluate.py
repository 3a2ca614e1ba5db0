"""`mmrl eval`: score an adapter on one's own photos or a dataset, beside zero-shot CLIP."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from mmrl.cli.options import DEVICE

if TYPE_CHECKING:
    from mmrl.classifier.apart import Apart
    from mmrl.classifier.predictor import Classifier
    from mmrl.data import Dataset
    from mmrl.reports.records import RunRecord


def evaluate(
    adapter: str = typer.Argument(..., help="Folder of a run or an adapter, or 'zero-shot'."),
    photos: str = typer.Argument(None, metavar="[DATA]", help="Folder with a subfolder of images a class, a list of them, or a dataset."),
    data: str = typer.Option(None, "--data", help="The same, as an option; default: the dataset that the run was trained on."),
    among: str = typer.Option(
        None, "--among", help="Which classes compete: trained (default for own photos), data (those of DATA), 'a,b,c', or a file of names."
    ),
    root: Path = typer.Option(None, "--root", envvar="DATA", help="Folder with the downloaded datasets."),
    classes: str = typer.Option("all", "--classes", help="Test among 'all', the 'base' or the 'novel' classes."),
    split: str = typer.Option("test", "--split", help="train, val or test."),
    template: list[str] = typer.Option(
        [], "--template", help="Prompt with one {}; several are averaged. Default: the run's, or that of a dataset given by its name."
    ),
    backbone: str = typer.Option(None, "--backbone", help="Backbone, if not the one the adapter names."),
    classifier: str = typer.Option(
        "auto",
        "--classifier",
        help="Of MMRL's two: auto (fused on classes trained on, the class token alone on new ones and other data sets), fused, or class.",
    ),
    test: Path = typer.Option(None, "--test", help="For a folder or list without test images: a folder of such, one subfolder a class."),
    batch_size: int = typer.Option(64, "--batch-size", min=1),
    device: str = DEVICE,
    workers: int = typer.Option(None, "--workers", min=0, help="Threads that prepare images; default: one a core, at most 8."),
    skip_broken: bool = typer.Option(False, "--skip-broken", help="Leave out images that are missing or broken, and say how many."),
    out: Path = typer.Option(None, "--out", help="Also write the scores to this JSON file."),
    html: Path = typer.Option(None, "--html", help="Also write a page with thumbnails of the wrong images to this file."),
    as_json: bool = typer.Option(False, "--json", help="Print JSON."),
) -> None:
    """Score an adapter: top-1, top-5, per class, macro, calibration, confusions, wrong images, beside zero-shot CLIP.

    Of a folder or list that does not say which images test, every image counts; those that trained the adapter are told apart.
    """
    import warnings

    from rich.console import Console

    from mmrl.classifier.apart import evaluate_apart
    from mmrl.cli.evaluated import print_report
    from mmrl.cli.output import print_json
    from mmrl.errors import UsageError
    from mmrl.files import user_path, write_text

    if photos is not None and data is not None:
        raise UsageError(f"data is given twice, as '{photos}' and with --data '{data}'; give it once.")
    model, described = _loaded(adapter, backbone, device)
    given, prompt = _data(model, described, adapter, data or photos, tuple(template))
    chosen = _among(model, given, classes, among)
    images = given if test is None else _tested(given, root, test)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what is to be known stands in the report
        found = evaluate_apart(
            model, images, split=split, root=root, among=chosen, classes=classes, classifier_rule=classifier, template=prompt,
            skip_broken=skip_broken, beside_zero_shot=True, batch_size=batch_size, workers=workers,
        )  # fmt: skip
    report = found.all
    for warning in report.record.warnings:
        typer.echo(f"warning: {warning}", err=True)
    record = _record(model, described, found)
    if out is not None:
        record.write(out)
    if html is not None:
        from mmrl.classifier.page import document

        write_text(user_path(html), document(found))
    if as_json:
        trained = found.trained.record.scores.model_dump(mode="json") if found.new and found.trained else None
        wrong = [{**each._asdict(), "used_for_it": found.taught(each.image)} for each in report.wrong]
        counted = found.counted
        calibration = {"ece": counted.ece, "raw_ece": counted.raw_ece, "temperature": counted.temperature}
        of_record = record.model_dump(mode="json", by_alias=True)
        print_json({**of_record, "calibration": calibration, "on_used_images": trained, "wrong": wrong})
        return
    print_report(Console(highlight=False), found, f"{report.record.dataset}, {classes}", model.method.name)
    if html is not None:
        typer.echo(f"page written to {html}")


def _loaded(adapter: str, backbone: str | None, device: str) -> tuple[Classifier, RunRecord | None]:
    """The classifier, and the record of its run where there is one."""
    from mmrl import api
    from mmrl.files import user_path
    from mmrl.reports.records import RECORD_NAME, read_record

    if adapter == "zero-shot":
        return api.zero_shot(backbone or "tiny", device=device), None
    model, home = api.from_pretrained(adapter, backbone=backbone, device=device), user_path(adapter)
    return model, read_record(home) if (home / RECORD_NAME).is_file() else None


def _data(
    model: Classifier, described: RunRecord | None, adapter: str, data: str | None, template: tuple[str, ...]
) -> tuple[str, tuple[str, ...] | None]:
    """What to test on, and the prompt to do it with; None for the usual one."""
    from mmrl.data import dataset_names
    from mmrl.errors import UsageError
    from mmrl.templates import template_list

    if data is not None:
        return data, template or None
    if described is None or described.training is None:
        raise UsageError(f"'{adapter}' has no run record that names a dataset; give a folder, a list of images or the name of one.")
    data = described.trained.dataset
    if data not in dataset_names():
        raise UsageError(f"'{adapter}' was trained on '{data}', which is no dataset known by name; give its folder.")
    return data, template or template_list(model.template)


def _tested(data: str, root: Path | None, test: Path) -> Dataset:
    from mmrl.data import load_dataset

    return load_dataset(data, root=root, test=test)


def _among(model: Classifier, data: str, classes: str, among: str | None) -> str:
    """The classes that compete: those that were asked for; of a published set its own, as in the paper; else the trained ones."""
    from mmrl.data import dataset_names
    from mmrl.errors import UsageError

    if among is not None and classes != "all":
        raise UsageError(f"--classes {classes} says which classes compete, so --among '{among}' cannot hold as well; leave one out.")
    if among is not None:
        return among
    return "data" if data in dataset_names() or classes != "all" or not model.trained else "trained"


def _record(model: Classifier, described: RunRecord | None, found: Apart) -> RunRecord:
    """As `run.json`; its test is that on images which the adapter was not trained on, where there are any."""
    from mmrl.reports.records import SCHEMA, RunRecord

    clip, method = model.method.clip, model.method
    return RunRecord(
        schema=SCHEMA, key=described.key if described else "", method=method.name, title=method.title, backbone=clip.name,
        backbone_hash=clip.identity, training=described.training if described else None, tests=(found.counted.record,),
    )  # fmt: skip
