"""Weights in 8 bits, where labelled images show that they answer as well."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from mmrl import runtime
from mmrl.classifier.evaluation import trained_images
from mmrl.classifier.predictor import Classifier
from mmrl.data import Dataset, Item
from mmrl.data.given import given_dataset
from mmrl.errors import MmrlError, UsageError, first_line
from mmrl.export.adapter import ExportOptions
from mmrl.export.folder import write_manifest
from mmrl.names import name_key
from mmrl.runtime.classifier import ExportedClassifier

_WEIGHTS = ("MatMul", "Gemm", "Gather")  # operations whose weights become bytes


@dataclass(frozen=True)
class Compared:
    """int8 beside float32 on labelled images: how many, top-1 accuracies, the share of images with the same answer, and the largest
    difference of a probability; the worse of the trained classes' own features and of those that the text program makes of their names."""

    images: int
    accuracy_float32: float
    accuracy_int8: float
    agreement: float
    largest_difference: float

    @property
    def loss(self) -> float:
        """Points of accuracy."""
        return 100 * (self.accuracy_float32 - self.accuracy_int8)


def to_int8(classifier: Classifier, folder: Path, options: ExportOptions, content: dict[str, Any]) -> str:
    """Put int8 in place of the float32 programs in `folder`, whose manifest has `content`; says what it costs.

    Raises:
        UsageError: bad images, or of classes that cannot be named.
        MmrlError: it loses more accuracy than `options` allow.
    """
    dataset, items = _labelled(classifier, options)
    names = _competing(classifier, dataset, content)
    before = _answers(folder, dataset, items, names)
    for path in sorted(folder.glob("*.onnx")):
        quantise(path)
    write_manifest(folder, {**content, "precision": "int8"})
    try:
        after = _answers(folder, dataset, items, names)
    except UsageError:
        raise
    except Exception as error:
        raise MmrlError(f"ONNX Runtime does not run this method in int8: {first_line(error)} Keep float32.") from error
    place = {name_key(name): at for at, name in enumerate(names)}
    labels = np.array([place[name_key(dataset.classes[item.label])] for item in items])
    found = max((_compared(a, b, labels) for a, b in zip(before, after, strict=True)), key=lambda each: each.loss)
    said = f"int8 is right for {found.accuracy_int8:.1%} of {found.images} images, float32 for {found.accuracy_float32:.1%}"
    if found.loss > options.max_loss:
        fix = "Keep float32, or allow more: --max-loss."
        raise MmrlError(f"{said}: more than {options.max_loss:g} points less, so nothing was written. {fix}")
    write_manifest(folder, {**content, "precision": "int8", "int8": asdict(found)})
    return f"{said}; {found.agreement:.1%} of the answers are the same."


def _labelled(classifier: Classifier, options: ExportOptions) -> tuple[Dataset, list[Item]]:
    """Images to compare on: those that test, or all that did not train."""
    dataset = given_dataset(options.check, root=options.root)
    drawn = {item.key for item in trained_images(dataset, classifier.draw)}
    items = [item for item in (dataset.test or dataset.train) if item.key not in drawn]
    if not items:
        raise UsageError(f"'{dataset.name}' has no images to compare int8 on that did not train the classifier. Give others with check.")
    return dataset, items


def _competing(classifier: Classifier, dataset: Dataset, content: dict[str, Any]) -> tuple[str, ...]:
    known = {name_key(name) for name in classifier.trained}
    new = [name for name in dataset.classes if name_key(name) not in known]
    if not new:
        return classifier.trained
    if content["text"] is None:
        why = content["no_text"]
        raise UsageError(f"'{new[0]}' of '{dataset.name}' is no class of the classifier, and no new class can be named: {why}.")
    return dataset.classes


def _answers(folder: Path, dataset: Dataset, items: Sequence[Item], names: tuple[str, ...]) -> list[np.ndarray]:
    """Probabilities (N, C) of the exported folder: with the trained classes' features, and with those of its text program."""
    own = runtime.load(folder)
    ways = [own]
    if own.manifest.text is not None and own.manifest.classes is not None:
        ways.append(ExportedClassifier(own.manifest, replace(own.programs, classes=None)))
    batches = [items[first : first + 256] for first in range(0, len(items), 256)]
    return [np.concatenate([way.predict_proba([dataset.read(item.key) for item in some], names) for some in batches]) for way in ways]


def _compared(before: np.ndarray, after: np.ndarray, labels: np.ndarray) -> Compared:
    a, b = before.argmax(1), after.argmax(1)
    return Compared(
        len(labels), float((a == labels).mean()), float((b == labels).mean()), float((a == b).mean()), float(np.abs(before - after).max())
    )


def quantise(path: Path) -> None:
    """Weights of `path` as bytes, with one scale a matrix; activations are rounded batch by batch."""
    quantization = import_module("onnxruntime.quantization")
    made = path.with_name(f"small-{path.name}")
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)  # it advises a step of its own on the root logger
    try:
        quantization.quantize_dynamic(
            str(path), str(made), op_types_to_quantize=list(_WEIGHTS), weight_type=quantization.QuantType.QInt8
        )
    except Exception as error:
        raise MmrlError(f"{path.name} cannot be written in int8: {error}. Keep float32.") from error
    finally:
        root.setLevel(level)
    path.with_suffix(".onnx.data").unlink(missing_ok=True)
    made.replace(path)
