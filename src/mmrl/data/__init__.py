"""Data sets, few-shot draws, transforms and batches. Nothing heavy is imported before it is used."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mmrl.data.benchmark.entry import Entry
    from mmrl.data.broken import Broken, BrokenImageWarning, describe_broken, readable, require_every_class, require_files, warn_broken
    from mmrl.data.catalogue import DatasetInfo, Places, dataset_info, dataset_names, load_dataset, register_benchmark, register_dataset
    from mmrl.data.draws import Draw, draw_shots
    from mmrl.data.folder import read_folder
    from mmrl.data.given_draws import GivenDraws, read_coop_draw, read_draw
    from mmrl.data.images import to_rgb
    from mmrl.data.loader import TrainBatches, image_batches, test_batches, view_batches
    from mmrl.data.parallel import usual_workers
    from mmrl.data.preprocess import Preprocess
    from mmrl.data.records import Dataset, Item, class_ids

_HOME = {
    "benchmark.entry": ("Entry",),
    "broken": ("Broken", "BrokenImageWarning", "describe_broken", "readable", "require_every_class", "require_files", "warn_broken"),
    "catalogue": ("DatasetInfo", "Places", "dataset_info", "dataset_names", "load_dataset", "register_benchmark", "register_dataset"),
    "draws": ("Draw", "draw_shots"),
    "folder": ("read_folder",),
    "given_draws": ("GivenDraws", "read_coop_draw", "read_draw"),
    "images": ("to_rgb",),
    "loader": ("TrainBatches", "image_batches", "test_batches", "view_batches"),
    "parallel": ("usual_workers",),
    "preprocess": ("Preprocess",),
    "records": ("Dataset", "Item", "class_ids"),
}
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}

__all__ = [
    "Broken",
    "BrokenImageWarning",
    "Dataset",
    "DatasetInfo",
    "Draw",
    "Entry",
    "GivenDraws",
    "Item",
    "Places",
    "Preprocess",
    "TrainBatches",
    "class_ids",
    "dataset_info",
    "dataset_names",
    "describe_broken",
    "draw_shots",
    "image_batches",
    "load_dataset",
    "read_coop_draw",
    "read_draw",
    "read_folder",
    "readable",
    "register_benchmark",
    "register_dataset",
    "require_every_class",
    "require_files",
    "test_batches",
    "to_rgb",
    "usual_workers",
    "view_batches",
    "warn_broken",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
