"""Grids of cells: from a plan to results in a folder, wherever they are computed."""

from mmrl.engine.grid.attempt import Outcome, missing_cells
from mmrl.engine.grid.binding import Bench, Context, Group, bind
from mmrl.engine.grid.local import run_here
from mmrl.engine.grid.store import CACHE, ResultsFolder
from mmrl.engine.grid.work import run_group

__all__ = ["CACHE", "Bench", "Context", "Group", "Outcome", "ResultsFolder", "bind", "missing_cells", "run_group", "run_here"]
