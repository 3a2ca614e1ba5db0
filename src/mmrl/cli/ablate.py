"""`mmrl ablate`: the paper's ablations."""

from __future__ import annotations

from pathlib import Path

import typer

from mmrl.cli import grid
from mmrl.cli.options import DEVICE


def ablate(
    name: str = typer.Argument(..., help="variants, rep-dim, layers, tokens, alpha, lambda, regulariser, or all."),
    out: Path = grid.OUT,
    method: str = typer.Option("mmrl", "--method", help="The method to change."),
    values: str = typer.Option(None, "--values", help="Other values than the paper's, separated by commas."),
    datasets: str = grid.DATASETS,
    seeds: str = grid.SEEDS,
    shots: int = typer.Option(16, "--shots", min=1, help="Images a class."),
    root: Path = grid.ROOT,
    backbone: str = grid.BACKBONE_OPTION,
    mini: bool = grid.IS_MINI,
    set_: list[str] = grid.SET,
    precision: str = grid.PRECISION,
    jobs: int | None = grid.JOBS,
    engine: str = grid.ENGINE,
    address: str = grid.ADDRESS,
    gpu_fraction: float = grid.GPU_FRACTION,
    device: str = DEVICE,
    workers: int = grid.WORKERS,
    skip_broken: bool = grid.SKIP_BROKEN,
    skip_missing: bool = grid.SKIP_MISSING,
    draws: Path | None = grid.DRAWS,
    test_share: float = grid.TEST_SHARE,
    dry_run: bool = grid.DRY_RUN,
) -> None:
    """Run one of the paper's ablations, or all of them: base-to-novel with one thing changed. Unchanged runs are shared with `bench`."""
    from mmrl import methods as registry
    from mmrl.cli.options import parse_seeds, parse_values
    from mmrl.errors import UsageError, unknown
    from mmrl.protocols import ABLATIONS
    from mmrl.protocols import ablate as plan

    if name not in (*ABLATIONS, "all"):
        raise unknown("ablation", name, (*ABLATIONS, "all"))
    if values and name == "all":
        raise UsageError("--values needs one ablation, not all of them.")
    registry.get(method)
    suite, backbone = grid.suite_of(mini), backbone or ("tiny" if mini else grid.BACKBONE)
    chosen = grid.present(grid.names(datasets) or suite.single, root, skip_missing)
    depth = None if values or name not in ("layers", "all") else grid.depth_of(backbone)
    cells = []
    for each in ABLATIONS if name == "all" else (name,):
        cells += plan(
            each, chosen, parse_seeds(seeds), method=method, depth=depth, numbers=parse_values(values) if values else None,
            shots=shots, overrides=grid.overrides(set_),
        )  # fmt: skip
    grid.carry_out(
        cells, suite=grid.suite_name(cells, mini), out=out, backbone=backbone, root=root, precision=precision, jobs=jobs, engine=engine,
        address=address, gpu_fraction=gpu_fraction, device=device, workers=workers, skip_broken=skip_broken, dry_run=dry_run,
        draws=draws, test_share=test_share,
    )  # fmt: skip
