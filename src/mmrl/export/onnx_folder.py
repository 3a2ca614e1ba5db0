"""Exports to ONNX, in float32 or int8."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from mmrl.classifier.predictor import Classifier
from mmrl.export.adapter import ExportOptions
from mmrl.export.onnx_graph import require_onnx, session_of, write_onnx_graph
from mmrl.export.programs import ProgramForm, write_programs
from mmrl.export.quantised import to_int8


def write_onnx(classifier: Classifier, folder: Path, options: ExportOptions) -> tuple[float, list[str]]:
    """Write `classifier` into `folder`. Returns the largest difference of the float32 programs from torch, and notes."""
    require_onnx()

    def write(program: torch.export.ExportedProgram, path: Path, inputs: Sequence[str], outputs: Sequence[str], size: str) -> object:
        return write_onnx_graph(program, path, inputs=inputs, outputs=outputs, size=size, opset=options.opset)

    written = write_programs(classifier, folder, options, ProgramForm(".onnx", write, session_of, {"opset": options.opset}))
    said = [to_int8(classifier, folder, options, written.content)] if options.precision == "int8" else []
    return written.difference, [*written.notes, *said]
