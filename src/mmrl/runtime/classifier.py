"""An exported classifier: images in, class names out, as `mmrl.Classifier` answers, without torch."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mmrl.class_lists import class_names
from mmrl.data.central import RESAMPLING, central
from mmrl.data.images import to_rgb
from mmrl.data.sources import given_images
from mmrl.errors import MmrlError, UsageError
from mmrl.names import check_names, name_key
from mmrl.runtime.calibration import Calibration
from mmrl.runtime.manifest import FULL, LOGITS, MANIFEST, PIXELS, Manifest
from mmrl.runtime.rules import Array, check_rule, logits_of
from mmrl.runtime.tokenizer import Tokenizer
from mmrl.templates import Template, fill
from mmrl.too_long import naming
from mmrl.trust.answers import SCORE, Prediction, probabilities, rejection, scored
from mmrl.trust.rejection import UNKNOWN

BATCH = 64
EXTRA = 'pip install "mmrl[runtime]"'
Shape = tuple[int | None, ...]  # None for a size that may be any
_LISTS_KEPT = 4
_PROMPTS = 128  # at a time


class Competing(NamedTuple):
    """A list of classes that compete: names, prompt, which were trained (C,), and features (C, d) or positions (C,) among the trained."""

    names: tuple[str, ...]
    template: Template
    trained: NDArray[np.bool_]
    values: NDArray[Any]


@dataclass(frozen=True)
class Programs:
    """The programs of a folder, opened, and the features (C, d) of its trained classes."""

    image: Any
    text: Any
    tokenizer: Tokenizer | None
    classes: Array | None


class ExportedClassifier:
    """A classifier that `mmrl export` wrote, run by ONNX Runtime. `load` makes one; several threads may ask at the same time.

    Class lists may be changed at every call and may mix trained and new classes, where the folder has a text program. Answers are those
    of `mmrl.Classifier`, up to rounding; docs/export.md says how much.

    Attributes:
        manifest: what the folder says of itself.
        classes: names among which it chooses where none are given: those that it was trained on.
        template: prompt of class names, or several, whose features are averaged.
    """

    def __init__(self, manifest: Manifest, programs: Programs) -> None:
        self.manifest = manifest
        self.classes = manifest.class_names
        self.template = manifest.template
        self.calibration = None if manifest.calibration is None else Calibration.read(manifest.calibration)
        self.programs = programs
        self._mode = RESAMPLING[manifest.preprocess.interpolation]
        self._lists: dict[tuple[str, ...], Competing] = {}
        self._lock = threading.RLock()

    def __repr__(self) -> str:
        m = self.manifest
        return f"ExportedClassifier({m.method} on {m.backbone}, {len(self.classes)} trained classes, {m.precision})"

    def predict(
        self, images: Any, classes: str | Sequence[str] | None = None, *, reject: bool = False, recall: float | None = None,
        threshold: float | None = None, score: str = SCORE,
    ) -> Any:  # fmt: skip
        """The most probable class name of each image: a list for several images, one string for a single image.

        Args:
            images: a path; a folder, for the images directly in it, or a pattern such as 'photos/**/*.jpg', sorted by name; a PIL image or
                array (H, W[, C]); bytes of an image file, or an open file; or a list of these.
            classes: names to choose from, trained or not, also as 'a,b,c' or a file of them; default: the trained ones.
            reject: answer "unknown" for an image that looks like none of the classes, at a `recall` (default 0.95) or a `threshold`; either
                of these rejects, too.
            score: "energy" or "mcm".

        Warns:
            Notice: the recall is known for another list of classes alone.

        Raises:
            UsageError: an image cannot be read, the class list is bad, has a class "unknown" where it rejects, or one that cannot be named,
                or there is no calibration to take a threshold from.
            MmrlError: a score is not finite.
        """
        listed, given = self._listed(classes), given_images(images)
        rule = rejection(self.calibration, listed, reject=reject, recall=recall, threshold=threshold, score=score)
        logits = self._logits(given.sources, listed)
        names = listed.names if rule is None else (*listed.names, UNKNOWN)
        best = logits.argmax(1).tolist() if rule is None else rule.best(logits.astype(np.float64), self.manifest.logit_scale)
        answers = [names[at] for at in best]
        return answers[0] if given.single else answers

    def predict_proba(self, images: Any, classes: str | Sequence[str] | None = None, *, calibrated: bool = True) -> NDArray[np.float64]:
        """Probabilities (B, C), in the order of `classes`. Otherwise as `predict`.

        Args:
            calibrated: divide logits by the temperature that was fitted on held-out images, if there is one and it serves these classes.
        """
        listed = self._listed(classes)
        return self._probabilities(self._logits(given_images(images).sources, listed), listed, calibrated)

    def rank(
        self, images: Any, classes: str | Sequence[str] | None = None, *, top: int = 5, calibrated: bool = True
    ) -> list[list[Prediction]]:
        """The `top` classes of each image, most probable first. Otherwise as `predict_proba`."""
        if top < 1:
            raise UsageError(f"top is {top}; it must be at least 1.")
        listed = self._listed(classes)
        logits = self._logits(given_images(images).sources, listed)
        values = self._probabilities(logits, listed, calibrated)
        order = np.argsort(-logits, axis=1, kind="stable")[:, :top]
        return [
            [Prediction(listed.names[at], float(row[at]), bool(listed.trained[at])) for at in places] for row, places in zip(values, order)
        ]

    def embed(self, images: Any) -> Array:
        """Image features (B, embed_dim) of length 1, in float32, as `mmrl.Classifier.embed`."""
        none = np.zeros((0, self.manifest.embed_dim), np.float32)
        return np.concatenate([none, *(found[0] for found in self._passes(given_images(images).sources))])

    def known_scores(self, images: Any, classes: str | Sequence[str] | None = None, *, score: str = SCORE) -> NDArray[np.float64]:
        """How much each image looks like one of the classes, (B,): higher is more. `score` is "energy" or "mcm"."""
        listed = self._listed(classes)
        return scored(self._logits(given_images(images).sources, listed).astype(np.float64), score, self.manifest.logit_scale)

    def class_features(self, names: Sequence[str]) -> Array:
        """Class features (C, embed_dim), of length 1, of names, trained or new.

        Raises:
            UsageError: bad names, a prompt over the context length, or a folder without a text program.
        """
        text, tokenizer = self.manifest.text, self.programs.tokenizer
        if text is None or tokenizer is None:
            raise UsageError(f"'{names[0]}' is a new class, and this export can name none: {self.manifest.no_text}.")
        checked, parts = check_names(names), []
        with naming(checked, self.template):
            for first in range(0, len(checked), _PROMPTS):
                some = checked[first : first + _PROMPTS]
                inputs = {}
                for each in text.inputs:
                    ids = tokenizer.tokens(fill(each.templates, some, underscores=each.underscores))
                    inputs[each.name] = ids.reshape(len(each.templates), len(some), -1)
                parts.append(self.programs.text.run([text.output], inputs)[0])
        return np.concatenate(parts)

    def _listed(self, classes: str | Sequence[str] | None) -> Competing:
        names = self.classes if classes is None else check_names(class_names(classes))
        if not names:
            raise UsageError("this classifier has no classes of its own; pass some (classes=[...], or --classes on the command line).")
        with self._lock:
            if names not in self._lists:
                while len(self._lists) >= _LISTS_KEPT:
                    self._lists.pop(next(iter(self._lists)))
                self._lists[names] = self._made(names)
            return self._lists[names]

    def _made(self, names: tuple[str, ...]) -> Competing:
        place = {name_key(name): at for at, name in enumerate(self.classes)}
        columns = np.array([place.get(name_key(name), -1) for name in names])
        trained = columns >= 0
        alike = np.array([at >= 0 and self.classes[at] == name for at, name in zip(columns, names)])  # names in the same spelling
        self._require_known(names, columns, alike)
        if self.manifest.kind != FULL:
            if len(names) < len(self.classes) and not self.manifest.subsets:
                raise UsageError(f"method '{self.manifest.method}' scores its classes together: give all {len(self.classes)}, or none.")
            return Competing(names, self.template, trained, columns)
        known = self.programs.classes
        values = np.empty((len(names), self.manifest.embed_dim), np.float32)
        alike &= known is not None
        if known is not None:
            values[alike] = known[columns[alike]]
        if not alike.all():  # also names that are written in another way: their prompts are other ones
            values[~alike] = self.class_features([name for name, own in zip(names, alike) if not own])
        return Competing(names, self.template, trained, values)

    def _require_known(self, names: tuple[str, ...], columns: NDArray[np.int_], alike: NDArray[np.bool_]) -> None:
        """Raises UsageError for a name whose prompt would have to be read, where no prompts are."""
        m = self.manifest
        if m.kind == FULL and m.text is not None:
            return
        if -1 in columns:
            new = names[int(columns.argmin())]
            raise UsageError(f"'{new}' is a new class, and this export knows its trained ones alone: {m.no_text}.")
        if not m.any_spelling and not alike.all():
            at = int(alike.argmin())
            own = self.classes[columns[at]]
            raise UsageError(
                f"'{names[at]}' is the trained class '{own}' in another spelling, whose prompt may be another one, and this export reads "
                f"no prompts: {m.no_text}. Write '{own}'."
            )

    def pixels(self, sources: Sequence[Any]) -> Array:
        """What the image program takes of each image: (B, 3, size, size), float32, normalised."""
        size, _, *scale = self.manifest.preprocess
        mean, std = (np.array(values, np.float32).reshape(3, 1, 1) for values in scale)
        found = np.stack([central(to_rgb(source), size, self._mode) for source in sources]).astype(np.float32)
        found /= np.float32(255)
        found -= mean
        found /= std
        return found

    def _passes(self, sources: Sequence[Any]) -> Iterator[list[Array]]:
        """What the image program puts out, batch by batch."""
        for first in range(0, len(sources), BATCH):
            pixels = self.pixels(sources[first : first + BATCH])
            yield self.programs.image.run(list(self.manifest.outputs), {PIXELS: pixels})

    def _logits(self, sources: Sequence[Any], listed: Competing) -> Array:
        rows, m = [], self.manifest
        for found in self._passes(sources):
            if m.kind != FULL:
                rows.append(found[1][:, listed.values])
            else:
                assert m.rule is not None
                rows.append(logits_of(m.rule, tuple(found), listed.values, listed.trained, m.logit_scale))
        logits: Array = np.concatenate(rows) if rows else np.zeros((0, len(listed.names)), np.float32)
        if not np.isfinite(logits).all():
            raise MmrlError("the scores are not finite: the export's weights are damaged. Export again.")
        return logits

    def _probabilities(self, logits: Array, listed: Competing, calibrated: bool) -> NDArray[np.float64]:
        if calibrated not in (True, False):
            raise UsageError(f"calibrated is {calibrated!r}; an export takes True or False. \"dac\" needs `mmrl.Classifier`.")
        own, temperature = self.calibration, 1.0
        if calibrated and own is not None and self._carries(own, listed):
            temperature = own.temperature
        return probabilities(logits.astype(np.float64), temperature, None)

    def _carries(self, own: Calibration, listed: Competing) -> bool:
        """Whether the temperature serves a list; as `mmrl.engine.calibrate.temperature_among`."""
        trained = {name_key(name) for name in self.classes}
        inside = all(name_key(name) in trained for name in (*listed.names, *own.classes))
        return self.manifest.one_scale or own.holds_for(listed.names, listed.template) or inside


def load(folder: str | Path, *, threads: int | None = None) -> ExportedClassifier:
    """The classifier in a folder that `mmrl export` wrote.

    Args:
        threads: of ONNX Runtime; default: one for each core.

    Raises:
        UsageError: no export there, or ONNX Runtime is not installed.
        MmrlError: a file is missing, edited or cut, or of a later format.
    """
    if find_spec("onnxruntime") is None:
        raise UsageError(f"an export is run by ONNX Runtime, which is not here: {EXTRA}")
    if threads is not None and threads < 1:
        raise UsageError(f"threads is {threads}; it must be at least 1.")
    manifest = Manifest.read(folder)
    place = manifest.folder
    if manifest.kind == FULL:
        check_rule(manifest.rule, manifest.outputs)
    text, tokenizer, classes, size = None, None, None, manifest.preprocess.size
    widths = {name: len(manifest.class_names) if name == LOGITS else manifest.embed_dim for name in manifest.outputs}
    image = _opened_as(place / manifest.image, threads, {PIXELS: (None, 3, size, size)}, {name: (None, n) for name, n in widths.items()})
    if manifest.text is not None:
        inputs = {each.name: (len(each.templates), None, manifest.text.context_length) for each in manifest.text.inputs}
        text = _opened_as(place / manifest.text.file, threads, inputs, {manifest.text.output: (None, manifest.embed_dim)})
        tokenizer = Tokenizer.read(place / manifest.text.vocabulary, manifest.backbone, manifest.text.context_length)
    if manifest.classes is not None:
        try:
            classes = np.load(place / manifest.classes, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise MmrlError(f"{place / manifest.classes} cannot be read: {error}. Export again.") from error
        if classes.shape != (len(manifest.class_names), manifest.embed_dim) or classes.dtype != np.float32:
            raise MmrlError(f"{place / manifest.classes} has {classes.dtype} {classes.shape}, which is not its manifest's. Export again.")
    return ExportedClassifier(manifest, Programs(image, text, tokenizer, classes))


def _opened_as(path: Path, threads: int | None, inputs: Mapping[str, Shape], outputs: Mapping[str, Shape]) -> Any:
    """The program of `path`. Raises MmrlError where it takes or puts out something else, by name or shape, than its manifest says."""
    program = opened(path, threads)
    takes = {each.name: each.shape for each in program.get_inputs()}
    shapes = takes | {each.name: each.shape for each in program.get_outputs()}
    wanted = {**inputs, **outputs}
    wrong = [*(takes.keys() - inputs.keys()), *(name for name, shape in wanted.items() if not _fits(shapes.get(name), shape))]
    if wrong:
        own, said = (found.get(wrong[0], "none") for found in (shapes, wanted))
        raise MmrlError(f"{path} is not the program of its {MANIFEST}: '{wrong[0]}' has shape {own}, and not {said}. Export again.")
    return program


def _fits(shape: Sequence[int | str | None] | None, wanted: Shape) -> bool:
    """Whether a program's shape, where a size that may be any is no number, is the one that is wanted."""
    same = shape is not None and len(shape) == len(wanted)
    return same and all(size == want for size, want in zip(shape or (), wanted) if isinstance(size, int))


def opened(path: Path, threads: int | None) -> Any:
    runtime = import_module("onnxruntime")  # which has no types
    options = runtime.SessionOptions()
    options.log_severity_level = 3
    if threads is not None:
        options.intra_op_num_threads = threads
    try:
        return runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise MmrlError(f"ONNX Runtime cannot open {path}: {error}. Export again, or upgrade onnxruntime.") from error
