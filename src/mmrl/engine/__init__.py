"""Training (the only loop), evaluation, adapters and run records."""

from mmrl.engine.checkpoint import AdapterConfig, load_adapter, read_config, save_adapter
from mmrl.engine.config import FitConfig, make_config
from mmrl.engine.evaluate import Evaluation, evaluate, evaluate_both, evaluate_dataset, evaluate_zero_shot, seen_classes, trained_mask
from mmrl.engine.fit import FitResult, fit, train
from mmrl.engine.importer import import_authors
from mmrl.engine.loop import NonFiniteError
from mmrl.engine.metrics import Scores, harmonic_mean, score
from mmrl.engine.run import BelowZeroShotWarning, RunResult, UntestedWarning, run
from mmrl.engine.schedule import learning_rates
from mmrl.engine.setup import Prepared, prepare, settings

__all__ = [
    "AdapterConfig",
    "BelowZeroShotWarning",
    "Evaluation",
    "FitConfig",
    "FitResult",
    "NonFiniteError",
    "Prepared",
    "RunResult",
    "Scores",
    "UntestedWarning",
    "evaluate",
    "evaluate_both",
    "evaluate_dataset",
    "evaluate_zero_shot",
    "fit",
    "harmonic_mean",
    "import_authors",
    "learning_rates",
    "load_adapter",
    "make_config",
    "prepare",
    "read_config",
    "run",
    "save_adapter",
    "score",
    "seen_classes",
    "settings",
    "train",
    "trained_mask",
]
