"""`mmrl eval`: score an adapter on a dataset, beside zero-shot CLIP."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from mmrl.cli.options import DEVICE

if TYPE_CHECKING:
    from mmrl.data import Dataset


def evaluate(
    adapter: str = typer.Argument(..., help="Folder of a run or an adapter, or 'zero-shot'."),
    data: str = typer.Option(None, "--data", help="Dataset to test on; default: the one the run was trained on."),
    root: Path = typer.Option(None, "--root", envvar="DATA", help="Folder with the downloaded datasets."),
    classes: str = typer.Option("all", "--classes", help="Test among 'all', the 'base' or the 'novel' classes."),
    split: str = typer.Option("test", "--split", help="train, val or test."),
    template: list[str] = typer.Option(
        [], "--template", help="Prompt with one {}; several are averaged. Default: the run's, or that of the dataset given by --data."
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
    as_json: bool = typer.Option(False, "--json", help="Print JSON."),
) -> None:
    """Score an adapter: top-1, top-5, per class, macro, calibration, confusion, beside zero-shot CLIP.

    A folder or list that does not say which images test is tested on those that the adapter was not trained on.
    """
    from rich.console import Console

    from mmrl import api
    from mmrl.cli.output import print_json, quiet_warnings, scores_table
    from mmrl.data import dataset_names, load_dataset, usual_workers
    from mmrl.engine import Bench, seen_classes
    from mmrl.engine.run import test as test_of
    from mmrl.errors import UsageError, unknown
    from mmrl.files import user_path
    from mmrl.reports.records import RECORD_NAME, SCHEMA, RunRecord, read_record
    from mmrl.templates import check_template, template_list

    if adapter == "zero-shot":
        model = api.zero_shot(backbone or "tiny", device=device)
    else:
        model = api.from_pretrained(adapter, backbone=backbone, device=device)
    home = user_path(adapter)
    if data is None:
        template = template or list(template_list(model.template))
        if not (home / RECORD_NAME).is_file():
            raise UsageError(f"'{adapter}' has no run record that names a dataset; give --data.")
        data = read_record(home).trained.dataset
        if data not in dataset_names():
            raise UsageError(f"'{adapter}' was trained on '{data}', which is no dataset known by name; give its folder with --data.")
    if split not in ("train", "val", "test"):
        raise unknown("split", split, ("train", "val", "test"))
    dataset = _undrawn(load_dataset(data, root=root, test=test), home, bool(model.trained)).restrict(classes)
    dataset = replace(dataset, template=check_template(template)) if template else dataset
    named = data if data in dataset_names() else None
    seen, rule = seen_classes(
        dataset.classes, model.trained, dataset=named, trained_on=model.trained_on, classifier=classifier, two=model.method.two_classifiers
    )
    threads = usual_workers(dataset.read) if workers is None else workers
    bench = Bench(model.method.clip.name, skip_broken=skip_broken, workers=threads, batch_size=batch_size, beside_zero_shot=True)
    with quiet_warnings():
        tested = test_of(model.method, dataset, bench, seen=seen, classes=classes, split=split, rule=rule)  # type: ignore[arg-type]  # checked above
    for warning in tested.warnings:
        typer.echo(f"warning: {warning}", err=True)
    described = read_record(home) if (home / RECORD_NAME).is_file() else None
    clip, method = model.method.clip, model.method
    record = RunRecord(
        schema=SCHEMA, key=described.key if described else "", method=method.name, title=method.title, backbone=clip.name,
        backbone_hash=clip.identity, training=described.training if described else None, tests=(tested,),
    )  # fmt: skip
    if out is not None:
        record.write(out)
    if as_json:
        print_json(record.model_dump(mode="json", by_alias=True))
        return
    Console().print(scores_table([(f"{dataset.name}, {classes}", tested.scores, tested.zero_shot)], method.name))
    if rule:
        typer.echo(f"classifier: {rule}")


def _undrawn(dataset: Dataset, adapter: Path, trained: bool) -> Dataset:
    """`dataset`; where it does not say which images test, with those that the adapter in the folder `adapter` was not trained on."""
    from mmrl.data import Draw
    from mmrl.errors import UsageError

    if not dataset.rest_tests:
        return dataset
    record = adapter / "draw.json"
    draw = Draw.load(record) if trained and record.is_file() else None
    known = draw is not None and draw.dataset == dataset.name and {item.key for item in draw.train} <= {item.key for item in dataset.train}
    if known and draw is not None:
        if len(draw.train) == len(dataset.train):
            raise UsageError(
                f"every image of '{dataset.name}' was drawn to train this adapter, so none is left to test it on. Give other images with "
                "--data, or a folder of them with --test."
            )
        dataset, why = dataset.held_out(draw.train), f"the {len(draw.train)} that it was trained on are left out"
    else:
        dataset = dataset.held_out(())
        why = "all there are: the adapter does not say which it was trained on" if trained else "all there are"
    typer.echo(f"note: {len(dataset.test)} images of '{dataset.name}' test ({why})", err=True)
    return dataset
