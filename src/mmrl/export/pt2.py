"""Exports as programs of `torch.export`, for torch without this package.

`torch.export.load` may unpickle what is in a file: load those of people whom you trust. Here it reads only what was written just before.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray

from mmrl.classifier.predictor import Classifier
from mmrl.errors import UsageError
from mmrl.export.adapter import ExportOptions
from mmrl.export.compare import Run
from mmrl.export.programs import ProgramForm, write_programs


def write_pt2(classifier: Classifier, folder: Path, options: ExportOptions) -> tuple[float, list[str]]:
    """Write `classifier` into `folder`. Returns the largest difference from torch, and notes."""
    if options.precision != "float32":
        raise UsageError(f"precision is {options.precision}; an export to pt2 is in float32. Export to onnx for int8.")
    written = write_programs(classifier, folder, options, ProgramForm(".pt2", _write, _opened, {"torch": torch.__version__}))
    return written.difference, written.notes


def _write(program: torch.export.ExportedProgram, path: Path, inputs: Sequence[str], outputs: Sequence[str], size: str) -> object:
    torch.export.save(program, path)
    return path


def _opened(path: Path) -> Run:
    module = torch.export.load(path).module()

    def run(arrays: Sequence[NDArray[Any]]) -> Any:
        with torch.no_grad():
            found = module(*(torch.from_numpy(each) for each in arrays))
        return [each.numpy() for each in (found if isinstance(found, tuple) else (found,))]

    return run
