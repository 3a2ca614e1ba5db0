"""mmrl: teach CLIP new classes from a handful of images, and keep it good at classes it has never seen."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mmrl.errors import MmrlError, UsageError
from mmrl.version import __version__

if TYPE_CHECKING:
    from mmrl.api import advise, fit, from_pretrained, train, zero_shot
    from mmrl.bulk.predict import predict_many
    from mmrl.classifier.predictor import Classifier
    from mmrl.client import Client
    from mmrl.clip import load_clip
    from mmrl.data import load_dataset
    from mmrl.export import export_adapter
    from mmrl.reports.frames import load_results, mean_results
    from mmrl.sklearn import MMRLClassifier
    from mmrl.trust.rejection import UNKNOWN

_HOME = {
    "advise": "mmrl.api",
    "fit": "mmrl.api",
    "from_pretrained": "mmrl.api",
    "train": "mmrl.api",
    "zero_shot": "mmrl.api",
    "export_adapter": "mmrl.export",
    "predict_many": "mmrl.bulk.predict",
    "load_clip": "mmrl.clip",
    "load_dataset": "mmrl.data",
    "load_results": "mmrl.reports.frames",
    "mean_results": "mmrl.reports.frames",
    "Client": "mmrl.client",
    "Classifier": "mmrl.classifier.predictor",
    "MMRLClassifier": "mmrl.sklearn",
    "UNKNOWN": "mmrl.trust.rejection",
}

__all__ = [
    "UNKNOWN",
    "Classifier",
    "Client",
    "MMRLClassifier",
    "MmrlError",
    "UsageError",
    "__version__",
    "advise",
    "export_adapter",
    "fit",
    "from_pretrained",
    "load_clip",
    "load_dataset",
    "load_results",
    "mean_results",
    "predict_many",
    "train",
    "zero_shot",
]


def __getattr__(name: str) -> Any:
    """Import on first use: `import mmrl` and `mmrl --help` stay fast."""
    if name not in _HOME:
        raise AttributeError(f"module 'mmrl' has no attribute '{name}'")
    from importlib import import_module

    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return __all__
