"""Data sets, few-shot draws, transforms and batches. Nothing heavy is imported before it is used."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mmrl.data.catalogue import DatasetInfo, dataset_names, describe, load_dataset, register_dataset
    from mmrl.data.draws import Draw, draw_shots
    from mmrl.data.folder import read_folder
    from mmrl.data.images import to_rgb
    from mmrl.data.loader import TrainBatches, test_batches
    from mmrl.data.preprocess import Preprocess
    from mmrl.data.records import Dataset, Item, class_ids

_HOME = {
    "catalogue": ("DatasetInfo", "dataset_names", "describe", "load_dataset", "register_dataset"),
    "draws": ("Draw", "draw_shots"),
    "folder": ("read_folder",),
    "images": ("to_rgb",),
    "loader": ("TrainBatches", "test_batches"),
    "preprocess": ("Preprocess",),
    "records": ("Dataset", "Item", "class_ids"),
}
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}

__all__ = [
    "Dataset",
    "DatasetInfo",
    "Draw",
    "Item",
    "Preprocess",
    "TrainBatches",
    "class_ids",
    "dataset_names",
    "describe",
    "draw_shots",
    "load_dataset",
    "read_folder",
    "register_dataset",
    "test_batches",
    "to_rgb",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
