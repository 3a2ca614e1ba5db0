"""`mmrl ablate`: the paper's ablations, and sweeps over any options."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from mmrl.cli.grid import Grid, carry_out, names, present, with_grid

if TYPE_CHECKING:
    from mmrl.protocols import Tower


@with_grid
def ablate(
    name: str = typer.Argument(None, help="variants, rep-dim, layers, tokens, alpha, lambda, regulariser, or all; nothing with --vary."),
    method: str = typer.Option("mmrl", "--method", help="The method to change."),
    values: str = typer.Option(None, "--values", help="Other values than the paper's, separated by commas."),
    vary: list[str] = typer.Option(
        [], "--vary", metavar="KEY=A,B,C", help="Any option of the method or of training at these values; several give all combinations."
    ),
    paired: bool = typer.Option(False, "--paired", help="Take the values of several --vary in pairs, not all combinations."),
    shots: int = typer.Option(16, "--shots", min=1, help="Images a class."),
    *,
    grid: Grid,
) -> None:
    """Run one of the paper's ablations, all of them, or one of your own (--vary): base-to-novel with something changed.

    Unchanged runs are shared with `bench`.
    """
    from mmrl import methods as registry
    from mmrl.cli.options import parse_seeds, parse_values, parse_vary
    from mmrl.errors import UsageError, unknown
    from mmrl.protocols import ABLATIONS, sweep
    from mmrl.protocols import ablate as plan

    if vary or name is None:
        if name is not None or values or not vary:
            raise UsageError(
                f"give one of the paper's ablations ({', '.join(ABLATIONS)}, all), or --vary KEY=VALUES for one of your own, "
                "without a name and --values."
            )
        registry.get(method)
        chosen = present(names(grid.datasets) or grid.suite.single, grid)
        seeds, varied, own = parse_seeds(grid.seeds), parse_vary(vary), grid.own_options([method])[method]
        carry_out(sweep(varied, chosen, seeds, method=method, shots=shots, overrides=own, paired=paired), grid)
        return
    if paired:
        raise UsageError("--paired is for several --vary.")
    if name not in (*ABLATIONS, "all"):
        raise unknown("ablation", name, (*ABLATIONS, "all"))
    if values and name == "all":
        raise UsageError("--values needs one ablation, not all of them.")
    registry.get(method)
    chosen = present(names(grid.datasets) or grid.suite.single, grid)
    tower = None if values or name not in ("layers", "all") else tower_of(method, grid.chosen_backbone)
    cells, own = [], grid.own_options([method])[method]
    for each in ABLATIONS if name == "all" else (name,):
        cells += plan(
            each, chosen, parse_seeds(grid.seeds), method=method, tower=tower, numbers=parse_values(values) if values else None,
            shots=shots, overrides=own,
        )  # fmt: skip
    carry_out(cells, grid)


def tower_of(method: str, backbone: str) -> Tower:
    """The image tower, and J of `method` there. Raises UsageError for a backbone or a method that has no such layer."""
    from mmrl import methods as registry
    from mmrl.clip import load_clip
    from mmrl.errors import UsageError
    from mmrl.protocols import Tower

    default = getattr(registry.get(method), "default_layer", None)
    if default is None:
        raise UsageError(f"method '{method}' has no first layer to change; `mmrl methods {method}` lists its options.")
    clip = load_clip(backbone)
    clip.require_staged(method)
    return Tower(clip.vision.depth, default(clip.vision.depth))
