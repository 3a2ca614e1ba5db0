"""`mmrl cost`: what methods cost."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from mmrl.cli.grid import Grid, names, option
from mmrl.cli.preview import carried

if TYPE_CHECKING:
    from rich.table import Table

    from mmrl.reports.cost import CostRow


def cost(
    out: Path = option("out"),
    methods: str = typer.Option("zero-shot,mmrl,mmrlpp", "--methods", help="Names of `mmrl methods`, separated by commas, or 'all'."),
    data: str = typer.Option(None, "--data", help="A name of `mmrl data list`; default: imagenet; with --mini: mini:objects."),
    root: Path | None = option("root"),
    backbone: str | None = option("backbone"),
    mini: bool = option("mini"),
    shots: int = typer.Option(16, "--shots", min=1, help="Images a class."),
    steps: int = typer.Option(20, "--steps", min=1, help="Training steps to time, after two that are not."),
    batch: int = typer.Option(100, "--batch", min=1, help="Images a batch at test."),
    set_: list[str] = option("set_"),
    precision: str | None = option("precision"),
    device: str = option("device"),
    seed: int = typer.Option(1, "--seed", min=0, help="Of the draw and the order of training images."),
) -> None:
    """Measure trained parameters, times of training and test, and memory of methods trained on the base classes (Table 6).

    Each method has a fresh process of its own. A few steps are timed; the time of the whole training follows from them and the recipe's
    epochs. Images lie decoded in memory, so reading them is in no number. HM is that of `mmrl bench base-to-novel` in the same folder.
    """
    import torch
    from rich.console import Console

    from mmrl import methods as registry
    from mmrl.clip import load_clip
    from mmrl.engine import Bench, Context, FitConfig, bind
    from mmrl.engine.cost import Measurement, measure_apart
    from mmrl.engine.grid import CACHE, ResultsFolder
    from mmrl.engine.precision import check_precision
    from mmrl.errors import MmrlError
    from mmrl.files import user_path
    from mmrl.protocols import base_to_novel
    from mmrl.reports.cost import COST_FILE, CostTable, hm_of
    from mmrl.reports.results import Results, read_part

    grid = Grid(out=out, root=root, backbone=backbone, mini=mini, set_=set_, precision=precision, device=device)
    chosen = names(methods) or registry.names()
    for name in chosen:
        registry.get(name)
    data, backbone = data or ("mini:objects" if mini else "imagenet"), grid.chosen_backbone
    cells = base_to_novel(chosen, (data,), (seed,), shots=(shots,), own=grid.own_options(chosen))
    FitConfig(**({} if precision is None else {"precision": precision}))
    out = user_path(out)
    if out.exists():
        ResultsFolder(out)
    if (out / COST_FILE).exists():
        read_part(out / COST_FILE, CostTable, what="cost table")
    clip = load_clip(backbone, device=device)
    check_precision(precision or "fp32", clip.device)
    bench = Bench(backbone, root, (out / CACHE).resolve(), precision, batch_size=batch)
    context = Context(bench, clip)
    cells = cells if names(methods) else carried(cells, context)
    bind(cells, context)  # with this, all that is wrong is said before anything is measured
    store, results, rows, failed = ResultsFolder(out), Results(out), [], []
    for cell in (cell for cell in cells if cell.classes == "base"):
        what = Measurement(bench, data, cell.training, steps, device, torch.get_num_threads())
        try:
            row = measure_apart(what)
        except MmrlError as error:
            failed.append(f"{what.method} could not be measured: {error}")
            continue
        hm = hm_of(results, row.method, variant=row.variant, backbone=row.backbone, shots=row.shots)
        rows.append(row.model_copy(update={"hm": hm}))
        store.add_costs(rows[-1])
        typer.echo(f"{row.method}: measured")
    if rows:
        Console().print(_table(rows))
        typer.echo(
            f"medians of {steps} steps; minutes: of the recipe's whole training, extrapolated. Written to {store.folder / COST_FILE}"
        )
    if failed:
        raise MmrlError("\n".join(failed))


def _table(rows: Sequence[CostRow]) -> Table:
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, padding=(0, 1))
    views = ["ms/kept view", "GiB of views"] if any(row.views for row in rows) else []
    for head in ("method", "towers", "parameters", "ms/image", *views, "minutes", "images/s", "GiB", "HM"):
        table.add_column(head, justify="left" if head in ("method", "towers") else "right")
    for row in rows:
        name = (row.title or row.method) + (f" ({row.variant})" if row.variant else "")
        kept = (row.kept_ms_per_image, row.views_gib) if views else ()
        numbers = (row.train_ms_per_image, *kept, row.train_minutes, row.images_per_second, row.peak_memory_gib, row.hm and 100 * row.hm)
        shown = ("" if number is None else f"{number:.1f}" if number >= 10 else f"{number:.2f}" for number in numbers)
        table.add_row(escape(name), row.modality, f"{row.trained_parameters:,}", *shown)
    return table
