"""`mmrl bench`: the paper's evaluations."""

from __future__ import annotations

from pathlib import Path

import typer

from mmrl.cli import grid
from mmrl.cli.options import DEVICE


def bench(
    study: str = typer.Argument(..., help="base-to-novel, cross-dataset, domain-generalisation, few-shot, or all."),
    out: Path = grid.OUT,
    methods: str = typer.Option("zero-shot,mmrl,mmrlpp", "--methods", help="Names of `mmrl methods`, separated by commas."),
    datasets: str = grid.DATASETS,
    source: str = typer.Option(None, "--source", help="For cross-dataset and domain-generalisation: train on this one."),
    seeds: str = grid.SEEDS,
    shots: str = typer.Option(None, "--shots", help="Images a class, separated by commas; default: 16, few-shot: 1,2,4,8,16."),
    root: Path = grid.ROOT,
    backbone: str = grid.BACKBONE_OPTION,
    mini: bool = grid.IS_MINI,
    set_: list[str] = grid.SET,
    paper_compat: bool = typer.Option(
        False, "--paper-compat", help="Test MMRL++ with the authors' beta for each target data set, which is tuning on the target."
    ),
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
    """Run one of the paper's evaluations, or all four, and print the table. What is there is kept; what is missing is computed."""
    from mmrl import methods as registry
    from mmrl.cli.options import parse_seeds, parse_shots
    from mmrl.errors import UsageError, unknown
    from mmrl.protocols import EVALUATIONS, evaluation

    if study not in (*EVALUATIONS, "all"):
        raise unknown("protocol", study, (*EVALUATIONS, "all"))
    if study == "all" and (source or grid.names(datasets)):
        raise UsageError("--datasets and --source mean something else in each protocol: give one protocol with them, not 'all'.")
    suite = grid.suite_of(mini)
    chosen = grid.names(methods) or registry.names()
    for name in chosen:
        registry.get(name)
    given = grid.names(datasets)
    cells = []
    for each in EVALUATIONS if study == "all" else (study,):
        wanted = given or {"cross-dataset": suite.targets, "domain-generalisation": suite.shifted}.get(each, suite.single)
        cells += evaluation(
            each, suite, chosen, parse_seeds(seeds), datasets=grid.present(wanted, root, skip_missing), source=source,
            shots=parse_shots(shots) if shots else None, overrides=grid.overrides(set_),
            paper_compat=paper_compat and (study != "all" or each in ("cross-dataset", "domain-generalisation")),
        )  # fmt: skip
    grid.carry_out(
        cells, suite=grid.suite_name(cells, mini), out=out, backbone=backbone or ("tiny" if mini else grid.BACKBONE), root=root,
        precision=precision, jobs=jobs, engine=engine, address=address, gpu_fraction=gpu_fraction, device=device, workers=workers,
        skip_broken=skip_broken, dry_run=dry_run,
        draws=draws, test_share=test_share,
    )  # fmt: skip
