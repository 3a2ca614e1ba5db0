"""A folder that classifies photos in a browser: the export to ONNX, with a page and ONNX Runtime for browsers beside it."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from mmrl.classifier.predictor import Classifier
from mmrl.export.adapter import ExportOptions
from mmrl.export.folder import INDEX, ORT, PAGE
from mmrl.export.onnx_folder import write_onnx
from mmrl.export.ort_web import ort_files

LICENCE = "ort-license.txt"


def write_web(classifier: Classifier, folder: Path, options: ExportOptions) -> tuple[float, list[str]]:
    """Write `classifier` into `folder`. Returns the largest difference from torch, and notes.

    Raises:
        UsageError: the files of ONNX Runtime for browsers are not in `options.ort`, or npm, which fetches them, is missing.
        MmrlError: npm failed; or as `write_onnx`.
    """
    runtime = ort_files(options.ort)  # first: the rest takes longer
    difference, notes = write_onnx(classifier, folder, options)
    for each in files("mmrl.export").joinpath(PAGE).iterdir():
        _write(folder / {INDEX: INDEX, LICENCE: f"{ORT}/LICENSE"}.get(each.name, f"{PAGE}/{each.name}"), each.read_bytes())
    for name, content in runtime.items():
        _write(folder / ORT / name, content)
    return difference, [*notes, "to open it, run `python -m http.server` in the folder and go to http://localhost:8000"]


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
