"""An exported folder for ONNX Runtime: programs, class features, the tokenizer's merges, and the manifest."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mmrl.classifier.predictor import Classifier
from mmrl.export.adapter import ExportOptions
from mmrl.export.compare import SIZES, TOLERANCE, largest_difference
from mmrl.export.folder import write_manifest
from mmrl.export.onnx_graph import require_onnx, write_onnx_graph
from mmrl.export.parts import Exportable, TextPart, exportable, templates_of
from mmrl.export.tracing import traced
from mmrl.runtime.manifest import CLASSES, FORMAT, IMAGE, PIXELS, TEXT, TEXT_FEATURES, VOCABULARY
from mmrl.version import __version__

BATCH, NAMES = "batch", "classes"  # sizes that may be any
_TRIED = ("red", "a green thing with many words in its name", "blue_grey", "x1", "ice-cream")  # names that programs are compared on


def write_onnx(classifier: Classifier, folder: Path, options: ExportOptions) -> tuple[float, list[str]]:
    """Write `classifier` into `folder`. Returns the largest difference from torch, and notes."""
    require_onnx()
    parts = exportable(classifier, text=options.text)
    notes = [f"new classes cannot be named: {parts.no_text}."] if parts.text is None else []
    shape = parts.pixels
    program = traced(parts.image, [torch.zeros(2, *shape)], [0], BATCH)
    path = folder / IMAGE
    write_onnx_graph(program, path, inputs=[PIXELS], outputs=parts.outputs, size=BATCH, opset=options.opset)
    worst = largest_difference(parts.image, session_of(path), lambda size: [pictures(size, shape)], what="the image program")
    if parts.text is not None:
        worst = max(worst, _write_text(parts.text, folder, options.opset))
        (folder / VOCABULARY).write_bytes(parts.text.vocabulary)
    if parts.classes is not None:
        np.save(folder / CLASSES, parts.classes, allow_pickle=False)
    checked = {"sizes": list(SIZES), "largest_difference": worst, "tolerance": TOLERANCE}
    write_manifest(folder, {**manifest_of(parts), "opset": options.opset, "precision": options.precision, "checked": checked})
    return worst, notes


def pictures(count: int, shape: Sequence[int]) -> Tensor:
    """Normalised noise (count, *shape) to compare programs on."""
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(count))


def session_of(path: Path) -> Any:
    """What runs the ONNX file on arrays."""
    onnxruntime = import_module("onnxruntime")  # which has no types
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_inputs()]

    def run(arrays: Sequence[NDArray[np.generic]]) -> Any:
        return session.run(None, dict(zip(names, arrays, strict=True)))

    return run


def _write_text(text: TextPart, folder: Path, opset: int) -> float:
    example = text.tokens(_TRIED[:2])
    program, path = traced(text.program, example, [1] * len(example), NAMES), folder / TEXT
    names = text_inputs(text)
    write_onnx_graph(program, path, inputs=names, outputs=[TEXT_FEATURES], size=NAMES, opset=opset)
    return largest_difference(text.program, session_of(path), lambda size: text.tokens(_TRIED[:size]), what="the text program")


def text_inputs(text: TextPart) -> list[str]:
    """Names of the inputs of the text program, one for each group of prompts."""
    return ["tokens", *(f"tokens_{number}" for number in range(2, len(text.groups) + 1))]


def manifest_of(parts: Exportable) -> dict[str, Any]:
    """The manifest but for files, precision and what was checked."""
    classifier, method = parts.classifier, parts.classifier.method
    clip, text = method.clip, parts.text
    return {
        "format": FORMAT,
        "version": __version__,
        "kind": parts.kind,
        "method": method.name,
        "title": method.title or method.name,
        "backbone": clip.name,
        "trained_on": classifier.trained_on,
        "class_names": list(classifier.trained),
        "template": templates_of(classifier),
        "embed_dim": clip.embed_dim,
        "logit_scale": method.logit_scale,
        "one_scale": method.one_scale,
        "rule": parts.rule,
        "preprocess": {
            "size": clip.image_size, "resize": "shorter side", "crop": "centre", "interpolation": clip.interpolation,
            "mean": list(clip.mean), "std": list(clip.std),
        },
        "image": {"file": IMAGE, "input": PIXELS, "outputs": list(parts.outputs)},
        "classes": None if parts.classes is None else {"file": CLASSES},
        "text": None if text is None else {
            "file": TEXT, "output": TEXT_FEATURES, "vocabulary": VOCABULARY, "context_length": clip.context_length,
            "inputs": [
                {"name": name, "templates": list(group.templates), "underscores": group.underscores}
                for name, group in zip(text_inputs(text), text.groups, strict=True)
            ],
        },
        "no_text": parts.no_text,
        "calibration": None if classifier.trust is None else classifier.trust.model_dump(mode="json"),
    }  # fmt: skip
