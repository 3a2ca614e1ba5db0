"""`mmrl bench`: the paper's evaluations, and the open world."""

from __future__ import annotations

import typer

from mmrl.cli.grid import Grid, carry_out, names, present, with_grid


@with_grid
def bench(
    study: str = typer.Argument(..., help="base-to-novel, cross-dataset, domain-generalisation, few-shot, all (of these); or open-world."),
    methods: str = typer.Option("zero-shot,mmrl,mmrlpp", "--methods", help="Names of `mmrl methods`, separated by commas, or 'all'."),
    source: str = typer.Option(None, "--source", help="For cross-dataset and domain-generalisation: train on this one."),
    shots: str = typer.Option(None, "--shots", help="Images a class, separated by commas; default: 16, few-shot: 1,2,4,8,16."),
    paper_compat: bool = typer.Option(
        False,
        "--paper-compat",
        help="As the authors chose: options for each target, and selection on test images where theirs was. Marked in every table.",
    ),
    *,
    grid: Grid,
) -> None:
    """Run one of the paper's evaluations, all four, or open-world (trained and new classes in one list), and print the tables. What is done
    is kept; what is missing is computed."""
    from mmrl import methods as registry
    from mmrl.cli.options import parse_seeds, parse_shots
    from mmrl.engine.overrides import as_authors
    from mmrl.errors import UsageError, unknown
    from mmrl.names import listed
    from mmrl.protocols import BENCHES, EVALUATIONS, evaluation

    if study not in (*BENCHES, "all"):
        raise unknown("protocol", study, (*BENCHES, "all"))
    given = names(grid.datasets)
    if study == "all" and (source or given):
        raise UsageError("--datasets and --source mean something else in each protocol: give one protocol with them, not 'all'.")
    suite, chosen = grid.suite, names(methods) or registry.names()
    for name in chosen:
        registry.get(name)
    cells, own = [], grid.own_options(chosen)
    if paper_compat:
        selecting = as_authors(chosen)
        if not selecting and study not in ("all", "cross-dataset", "domain-generalisation"):
            able = listed(list(as_authors(registry.names())))
            raise UsageError(f"--paper-compat changes nothing of these methods in {study}; it is for those that select: {able}.")
        own = {name: {**selecting.get(name, {}), **options} for name, options in own.items()}
    for each in EVALUATIONS if study == "all" else (study,):
        wanted = given or {"cross-dataset": suite.targets, "domain-generalisation": suite.shifted}.get(each, suite.single)
        cells += evaluation(
            each, suite, chosen, parse_seeds(grid.seeds), datasets=present(wanted, grid), source=source,
            shots=parse_shots(shots) if shots else None, own=own, paper_compat=paper_compat,
        )  # fmt: skip
    carry_out(cells, grid, every=names(methods) is None)
