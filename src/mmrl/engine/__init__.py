"""Training (the only loop), tests, adapters and records."""

from mmrl.engine.adapter import AdapterConfig, load_adapter, read_config, save_adapter
from mmrl.engine.config import FitConfig, make_config
from mmrl.engine.context import Bench, Context, settings
from mmrl.engine.fit import FitResult, Place, TrainingData, fit
from mmrl.engine.guard import NonFiniteError
from mmrl.engine.importer import import_authors
from mmrl.engine.jobs import Job, bind
from mmrl.engine.metrics import Scores, harmonic_mean, score
from mmrl.engine.run import BelowZeroShotWarning, RunResult, UntestedWarning, run
from mmrl.engine.schedule import learning_rates
from mmrl.engine.score import Evaluation, evaluate, evaluate_dataset, seen_classes, trained_mask

__all__ = [
    "AdapterConfig",
    "BelowZeroShotWarning",
    "Bench",
    "Context",
    "Evaluation",
    "FitConfig",
    "FitResult",
    "Job",
    "NonFiniteError",
    "Place",
    "RunResult",
    "Scores",
    "TrainingData",
    "UntestedWarning",
    "bind",
    "evaluate",
    "evaluate_dataset",
    "fit",
    "harmonic_mean",
    "import_authors",
    "learning_rates",
    "load_adapter",
    "make_config",
    "read_config",
    "run",
    "save_adapter",
    "score",
    "seen_classes",
    "settings",
    "trained_mask",
]
