"""An exported folder: programs, class features, the tokenizer's merges, and the manifest."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mmrl.classifier.predictor import Classifier
from mmrl.export.adapter import ExportOptions
from mmrl.export.compare import SIZES, TOLERANCE, Run, largest_difference
from mmrl.export.folder import write_manifest
from mmrl.export.parts import Exportable, TextPart, exportable, noise, templates_of
from mmrl.export.tracing import traced
from mmrl.runtime.manifest import CLASSES, FORMAT, PIXELS, TEXT_FEATURES, VOCABULARY
from mmrl.version import __version__

BATCH, NAMES = "batch", "classes"  # sizes that may be any
_TRIED = ("red", "a green thing with many words in its name", "blue_grey", "x1", "ice-cream")  # names that programs are compared on


@dataclass(frozen=True)
class ProgramForm:
    """How a program is written.

    Attributes:
        ending: of its file.
        write: the program into a file, with the names of what goes in and comes out, and of the size that may be any.
        opened: what runs such a file on arrays.
        more: fields of the manifest.
    """

    ending: str
    write: Callable[[torch.export.ExportedProgram, Path, Sequence[str], Sequence[str], str], object]
    opened: Callable[[Path], Run]
    more: dict[str, Any]


@dataclass(frozen=True)
class Written:
    """What is in a folder: the parts, the manifest's content, the largest difference from torch, and notes for the user."""

    parts: Exportable
    content: dict[str, Any]
    difference: float
    notes: list[str]


def write_programs(classifier: Classifier, folder: Path, options: ExportOptions, form: ProgramForm) -> Written:
    """Write `classifier` into `folder`, and compare its programs with torch.

    Raises:
        UsageError: it cannot be exported.
        MmrlError: a program differs from torch by more than `TOLERANCE`.
    """
    parts = exportable(classifier, text=options.text)
    notes = [f"new classes cannot be named: {parts.no_text}."] if parts.text is None else []
    clip = classifier.method.clip
    program = traced(parts.image, [noise(clip, 2)], [0], BATCH)
    text = None if parts.text is None else _traced_text(parts.text)  # before anything is written: not each can be traced
    path = folder / f"image{form.ending}"
    form.write(program, path, [PIXELS], parts.outputs, BATCH)
    worst = largest_difference(parts.image, form.opened(path), lambda size: [noise(clip, size)], what="the image program")
    if parts.text is not None and text is not None:
        worst = max(worst, _write_text(parts.text, text, folder, form))
        (folder / VOCABULARY).write_bytes(parts.text.vocabulary)
    if parts.classes is not None:
        np.save(folder / CLASSES, parts.classes, allow_pickle=False)
    checked = {"sizes": list(SIZES), "largest_difference": worst, "tolerance": TOLERANCE}
    content = {**manifest_of(parts, form.ending), **form.more, "precision": "float32", "checked": checked}
    write_manifest(folder, content)
    return Written(parts, content, worst, notes)


def _traced_text(text: TextPart) -> torch.export.ExportedProgram:
    example = text.tokens(_TRIED[:2])
    return traced(text.program, example, [1] * len(example), NAMES)


def _write_text(text: TextPart, program: torch.export.ExportedProgram, folder: Path, form: ProgramForm) -> float:
    path = folder / f"text{form.ending}"
    form.write(program, path, text_inputs(text), [TEXT_FEATURES], NAMES)
    return largest_difference(text.program, form.opened(path), lambda size: text.tokens(_TRIED[:size]), what="the text program")


def text_inputs(text: TextPart) -> list[str]:
    """Names of the inputs of the text program, one for each group of prompts."""
    return ["tokens", *(f"tokens_{number}" for number in range(2, len(text.groups) + 1))]


def manifest_of(parts: Exportable, ending: str) -> dict[str, Any]:
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
        "subsets": parts.subsets,
        "any_spelling": parts.any_spelling,
        "preprocess": {
            "size": clip.image_size, "resize": "shorter side", "crop": "centre", "interpolation": clip.interpolation,
            "mean": list(clip.mean), "std": list(clip.std),
        },
        "image": {"file": f"image{ending}", "input": PIXELS, "outputs": list(parts.outputs)},
        "classes": None if parts.classes is None else {"file": CLASSES},
        "text": None if text is None else {
            "file": f"text{ending}", "output": TEXT_FEATURES, "vocabulary": VOCABULARY, "context_length": clip.context_length,
            "inputs": [
                {"name": name, "templates": list(group.templates), "underscores": group.underscores}
                for name, group in zip(text_inputs(text), text.groups, strict=True)
            ],
        },
        "no_text": parts.no_text,
        "calibration": None if classifier.trust is None else {**classifier.trust.model_dump(mode="json"), "keys": []},  # no image's name
    }  # fmt: skip
