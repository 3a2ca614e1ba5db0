"""`mmrl eval`: score an adapter on a dataset, beside zero-shot CLIP."""

from __future__ import annotations

from pathlib import Path

import typer


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
    batch_size: int = typer.Option(64, "--batch-size", min=1),
    device: str = typer.Option("cpu", "--device"),
    workers: int = typer.Option(None, "--workers", min=0, help="Threads that prepare images; default: one a core, at most 8."),
    skip_broken: bool = typer.Option(False, "--skip-broken", help="Leave out images that are missing or broken, and say how many."),
    out: Path = typer.Option(None, "--out", help="Also write the scores to this JSON file."),
    as_json: bool = typer.Option(False, "--json", help="Print JSON."),
) -> None:
    """Score an adapter: top-1, top-5, per class, macro, calibration, confusion; classes it was trained on are recognised by name."""
    import json

    from rich.console import Console

    from mmrl import api
    from mmrl.cli.output import quiet_warnings, scores_table
    from mmrl.data import dataset_names, describe_broken, load_dataset, usual_workers
    from mmrl.engine import evaluate_dataset, trained_mask
    from mmrl.errors import UsageError, unknown
    from mmrl.files import write_json
    from mmrl.reports import RECORD_NAME, read_record

    if adapter == "zero-shot":
        classifier = api.zero_shot(backbone or "tiny", device=device)
    else:
        classifier = api.from_pretrained(adapter, backbone=backbone, device=device)
    prompt = tuple(template) or None
    if data is None:
        prompt = prompt or classifier.template
        if not (Path(adapter) / RECORD_NAME).is_file():
            raise UsageError(f"'{adapter}' has no run record that names a dataset; give --data.")
        data = read_record(Path(adapter)).dataset
        if data not in dataset_names():
            raise UsageError(f"'{adapter}' was trained on '{data}', which is no dataset known by name; give its folder with --data.")
    if split not in ("train", "val", "test"):
        raise unknown("split", split, ("train", "val", "test"))
    dataset = load_dataset(data, root=root).restrict(classes)
    seen = trained_mask(dataset.classes, classifier.trained)
    items = getattr(dataset, split)
    threads = usual_workers(dataset.read) if workers is None else workers
    with quiet_warnings():
        pair = evaluate_dataset(
            classifier.method, dataset, items, seen=seen, template=prompt,
            batch_size=batch_size, workers=threads, skip_broken=skip_broken,
        )  # fmt: skip
    if pair.skipped:
        typer.echo(f"warning: {describe_broken(pair.skipped, len(items), of=dataset.name)}", err=True)
    content = {
        "adapter": adapter, "dataset": dataset.name, "classes": classes, "split": split, "trained": seen.tolist(),
        "scores": pair.adapted.model_dump(mode="json"), "zero_shot": pair.zero_shot.model_dump(mode="json"),
        "skipped": [one.key for one in pair.skipped],
    }  # fmt: skip
    if out is not None:
        write_json(out, content)
    if as_json:
        typer.echo(json.dumps(content))
        return
    Console().print(scores_table([(f"{dataset.name}, {classes}", pair.adapted, pair.zero_shot)], classifier.method.name))
    Console().print(f"{int(seen.sum())} of {len(seen)} classes were trained on", highlight=False)
