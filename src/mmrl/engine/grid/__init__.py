"""Where jobs run: in this process, in several here, or on a cluster; and the results folder that they fill."""

from mmrl.engine.grid.attempt import Outcome, missing_tests
from mmrl.engine.grid.local import run_here
from mmrl.engine.grid.store import CACHE, FEATURES, ResultsFolder

__all__ = ["CACHE", "FEATURES", "Outcome", "ResultsFolder", "missing_tests", "run_here"]
