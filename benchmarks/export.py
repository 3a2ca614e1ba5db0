"""Exports: sizes, images a second and differences beside torch; and every method, exported and compared.

    python -m benchmarks.export --out benchmarks/results/export.md               # MMRL at ViT-B/16, and a trained one on a mini set
    python -m benchmarks.export --methods --out benchmarks/results/export_methods.md
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import mmrl
from benchmarks.common import NOUNS, about, interleaved, make_clip, markdown, median, report
from mmrl import methods, runtime
from mmrl.classifier.predictor import Classifier
from mmrl.clip import Clip, random_clip
from mmrl.data import load_dataset
from mmrl.data.preprocess import Preprocess
from mmrl.errors import MmrlError
from mmrl.export import Exported, ExportOptions, export_adapter
from mmrl.export.quantised import quantise, to_int8
from mmrl.methods import Task
from mmrl.runtime.classifier import ExportedClassifier, opened
from mmrl.runtime.manifest import MANIFEST, TRAINED

NAMES = ("cat", "dog", "great white shark", "owl")
TEMPLATE = "a photo of a {}."
MINI = "mini:objects"


class Noise:
    """Frozen features of noise, two pictures a class, as the engine gives them to closed forms."""

    def __init__(self, clip: Clip) -> None:
        self.clip = clip

    def __call__(self, part: str, views: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
        labels = torch.arange(len(NAMES)).repeat(2)
        count, size = max(1, views) * len(labels), self.clip.image_size
        noise = torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(views))
        return self.clip.encode_image(noise, normalise=False).unflatten(0, (-1, len(labels))), labels


def smallest() -> Clip:
    vision = {"layers": 2, "width": 32, "image_size": 32, "patch_size": 16, "head_width": 16}
    return random_clip("ViT-B-32", embed_dim=24, vision_cfg=vision, text_cfg={"layers": 2, "width": 32, "heads": 2, "context_length": 32})


def built(name: str, clip: Clip, **options: Any) -> Classifier:
    task = Task(NAMES, TEMPLATE, images=8, validation=8, features=Noise(clip))
    return Classifier(methods.build(name, clip, options, seed=1, task=task), trained=NAMES, template=TEMPLATE)


def pictures(count: int) -> list[Image.Image]:
    draw = np.random.default_rng(0)
    return [Image.fromarray(draw.integers(0, 256, (48, 64, 3), dtype=np.uint8)) for _ in range(count)]


def apart(one: np.ndarray, other: np.ndarray) -> float:
    """The largest difference of two arrays."""
    return float(np.abs(one - other).max())


def weights_of(classifier: Classifier) -> int:
    """Bytes of the backbone's and the method's weights."""
    method = classifier.method
    return sum(value.numel() * value.element_size() for value in (*method.clip.model.parameters(), *method.parameters()))


def kind_of(exported: runtime.ExportedClassifier) -> str:
    """As docs/export.md has it."""
    if exported.manifest.kind == TRAINED:
        return "trained classes only"
    return "any class" if exported.manifest.text else "no new classes"


def of_methods(only: list[str]) -> tuple[list[list[str]], dict[str, Any]]:
    """Each method exported at the smallest model and run beside torch: kind, largest difference of a probability, bytes."""
    rows, numbers = [], {}
    for name in only or methods.names():
        with tempfile.TemporaryDirectory() as place:
            classifier, images = built(name, smallest()), pictures(5)
            try:
                made = export_adapter(classifier, Path(place) / "out")
                exported = runtime.load(made.folder, threads=1)
                kind = kind_of(exported)
                lists: list[tuple[str, ...]] = [NAMES] + ([("a new_thing", *NAMES[1:], "blue")] if exported.manifest.text else [])
                worst = max(apart(exported.predict_proba(images, each), classifier.predict_proba(images, each)) for each in lists)
                found: dict[str, Any] = {"kind": kind, "difference": worst, "why": exported.manifest.no_text}
            except MmrlError as error:
                found = {"kind": "refused", "difference": None, "why": str(error)}
        numbers[name] = found
        rows.append([f"`{name}`", found["kind"], "-" if found["difference"] is None else f"{found['difference']:.1g}", found["why"]])
        print(rows[-1], flush=True)
    return rows, numbers


def sizes(folder: Path) -> str:
    return " + ".join(f"{path.stat().st_size / 1e6:.0f}" for path in (folder / "image.onnx", folder / "text.onnx"))


def speed(classifier: Classifier, forms: dict[str, runtime.ExportedClassifier], batch: int, repeats: int) -> dict[str, float]:
    """Images a processor second of the image tower of each, on a batch of pixels that is prepared."""
    clip = classifier.method.clip
    prepared = Preprocess(clip.image_size, clip.mean, clip.std, clip.interpolation)
    pixels = prepared.batch([prepared.central(each) for each in pictures(batch)])
    outputs = {name: list(each.manifest.outputs) for name, each in forms.items()}

    def plain() -> None:
        with torch.inference_mode():
            classifier.method.image_features(pixels)  # type: ignore[operator]

    def run(name: str) -> Any:
        return lambda: forms[name].programs.image.run(outputs[name], {"pixels": pixels.numpy()})

    runs = {"torch": plain, **{name: run(name) for name in forms}}
    for each in runs.values():
        each()
    return {name: batch / median(seconds) for name, seconds in interleaved(runs, repeats, time.process_time).items()}


def trained(options: argparse.Namespace) -> Classifier:
    return mmrl.fit(MINI, method="mmrl", backbone="tiny", shots=options.shots, epochs=options.epochs, progress=False)


def large(backbone: str, layers: int | None) -> Classifier:
    clip = make_clip(backbone, layers)
    names = tuple(NOUNS.split()[:50])
    return Classifier(methods.build("mmrl", clip, {}, seed=1), trained=names, template=TEMPLATE)


def right(classifier: Any, items: list[Any], read: Any, names: tuple[str, ...]) -> tuple[float, np.ndarray]:
    """Accuracy on labelled images, and the probabilities (N, C)."""
    p = np.concatenate([classifier.predict_proba([read(item.key) for item in some], names) for some in _parts(items)])
    return float((p.argmax(1) == np.array([item.label for item in items])).mean()), p


def _parts(items: list[Any], size: int = 100) -> Iterator[list[Any]]:
    return (items[first : first + size] for first in range(0, len(items), size))


def on_mini(options: argparse.Namespace, place: Path) -> tuple[list[list[str]], dict[str, Any]]:
    """A trained MMRL on the mini set: accuracy, difference and speed of torch, float32 and int8."""
    classifier = trained(options)
    dataset = load_dataset(MINI)
    items = dataset.test[: options.images]
    folders = {"float32": export_adapter(classifier, place / "f32").folder, "int8": place / "i8"}
    shutil.copytree(folders["float32"], folders["int8"])
    content = {key: value for key, value in json.loads((folders["int8"] / MANIFEST).read_text()).items() if key != "files"}
    held = replace(dataset, train=[], val=[], test=items)
    gate = to_int8(classifier, folders["int8"], ExportOptions("int8", held, max_loss=100), content)
    forms = {name: runtime.load(each, threads=options.threads) for name, each in folders.items()}
    accuracy, plain = right(classifier, items, dataset.read, classifier.trained)
    fast = speed(classifier, forms, options.batch, options.repeats)
    weights = weights_of(classifier)
    rows = [["torch, float32", f"{weights / 1e6:.0f}", f"{fast['torch']:.0f}", "1.00", "-", f"{accuracy:.1%}"]]
    numbers: dict[str, Any] = {"images": len(items), "gate": gate, "torch": {"accuracy": accuracy, "images_a_second": fast["torch"]}}
    for name, each in forms.items():
        own, p = right(each, items, dataset.read, classifier.trained)
        worst = apart(p, plain)
        rows.append([f"ONNX Runtime, {name}", sizes(folders[name]), *_beside(fast, name), f"{worst:.2g}", f"{own:.1%}"])
        whole = sum(path.stat().st_size for path in folders[name].iterdir())
        numbers[name] = {"accuracy": own, "difference": worst, "images_a_second": fast[name], "bytes": whole}
    return rows, numbers


def _beside(fast: dict[str, float], name: str) -> tuple[str, str]:
    return f"{fast[name]:.0f}" if fast[name] >= 20 else f"{fast[name]:.1f}", f"{fast[name] / fast['torch']:.2f}"


def at_size(options: argparse.Namespace, place: Path) -> tuple[list[list[str]], dict[str, Any]]:
    """MMRL at a real architecture with random weights: sizes, differences and speed; accuracy says nothing there."""
    classifier = large(options.backbone, options.layers)
    made: Exported = export_adapter(classifier, place / "large")
    forms = {"float32": runtime.load(made.folder, threads=options.threads)}
    plain = classifier.predict_proba(pictures(8))
    small = place / "small.onnx"
    small.write_bytes((made.folder / "image.onnx").read_bytes())
    text = place / "small-text.onnx"
    text.write_bytes((made.folder / "text.onnx").read_bytes())
    for path in (small, text):
        quantise(path)
    programs = replace(forms["float32"].programs, image=opened(small, options.threads))
    forms["int8"] = ExportedClassifier(forms["float32"].manifest, programs)
    fast = speed(classifier, forms, max(1, options.batch // 4), options.repeats)
    weights = weights_of(classifier)
    mb = {"float32": sizes(made.folder), "int8": " + ".join(f"{path.stat().st_size / 1e6:.0f}" for path in (small, text))}
    rows = [["torch, float32", f"{weights / 1e6:.0f}", f"{fast['torch']:.1f}", "1.00", "-"]]
    numbers: dict[str, Any] = {"torch": {"images_a_second": fast["torch"], "bytes": weights}}
    for name, each in forms.items():
        worst = apart(each.predict_proba(pictures(8)), plain)
        rows.append([f"ONNX Runtime, {name}", mb[name], *_beside(fast, name), f"{worst:.2g}"])
        numbers[name] = {"megabytes": mb[name], "difference": worst, "images_a_second": fast[name]}
    return rows, numbers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", action="store_true", help="every method at the smallest model instead")
    parser.add_argument("--only", nargs="*", default=[], help="with --methods: these alone")
    parser.add_argument("--backbone", default="ViT-B-16", help="architecture of the second table (default: %(default)s); '' for none")
    parser.add_argument("--layers", type=int, help="layers of both towers, for a quick look")
    parser.add_argument("--batch", type=int, default=32, help="images at a time; a quarter at the second table (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--shots", type=int, default=4)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--images", type=int, default=400, help="test images (default: %(default)s)")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    warnings.simplefilter("ignore")
    numbers: dict[str, Any] = {"about": about(options)}
    if options.methods:
        rows, numbers["methods"] = of_methods(options.only)
        text = markdown(["method", "export", "largest difference of a probability", "why"], rows)
        report("# Every method, exported and run beside torch", text, numbers, options.out)
        return
    where = f"{numbers['about']['processor']}, threads: {options.threads}, torch {torch.__version__}, {options.repeats} runs each."
    columns = ["", "MB (image + text)", "images a processor second", "times torch", "largest difference of a probability", "accuracy"]
    with tempfile.TemporaryDirectory() as place:
        rows, numbers["mini"] = on_mini(options, Path(place))
        text = f"MMRL on `tiny`, trained on `{MINI}`, {numbers['mini']['images']} test images; {where}\n\n{markdown(columns, rows)}"
        if options.backbone:
            rows, numbers["large"] = at_size(options, Path(place))
            text += f"\n\nMMRL at {options.backbone}, random weights, batch {max(1, options.batch // 4)}.\n\n{markdown(columns[:-1], rows)}"
    report("# Exported classifiers beside torch", text, numbers, options.out)


if __name__ == "__main__":
    main()
