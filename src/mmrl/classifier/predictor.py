"""A classifier for inference: images in, class names out."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mmrl.class_lists import class_names
from mmrl.classifier import evaluation
from mmrl.classifier.evaluation import EvaluationReport, summary
from mmrl.classifier.inputs import pixel_batches
from mmrl.classifier.judging import DAC, Calibrated, Head, Trusting
from mmrl.classifier.packed import packed, unpacked
from mmrl.classifier.report import FitReport
from mmrl.classifier.web import Urls
from mmrl.clip import naming
from mmrl.clip.device import checked_device
from mmrl.data import Broken, Draw, warn_broken
from mmrl.data.sources import Given, given_images
from mmrl.engine import save_adapter
from mmrl.engine.calibrate import class_factors, temperature_among
from mmrl.engine.features import preprocess_of
from mmrl.engine.run import DRAW_NAME
from mmrl.engine.score import trained_mask
from mmrl.errors import MmrlError, UsageError, unknown
from mmrl.methods import Method, TwoTower
from mmrl.names import check_names
from mmrl.reports.records import RECORD_NAME
from mmrl.templates import DEFAULT_TEMPLATE, Template, check_template
from mmrl.trust.answers import SCORE, Prediction, probabilities, rejection
from mmrl.trust.arrays import Floats
from mmrl.trust.rejection import UNKNOWN
from mmrl.trust.state import Trust

if TYPE_CHECKING:
    import numpy as np

_HEADS_KEPT = 4


class Classifier(Trusting):
    """A method with the class names it was trained on.

    Class lists may be changed at every call, and may mix trained and new classes. A method with two classifiers scores trained ones with
    its fused features and new ones with the class token's, on one scale. Several threads may ask at the same time. It can be pickled and
    copied: what is in it then, `mmrl.classifier.packed` says.

    Args:
        method: trained, or zero-shot.
        trained: names of the classes it was trained on; none for zero-shot.
        template: prompt with one `{}`, or several, whose class features are averaged.
        trained_on: name of the data set it was trained on, if known.
        draw: the images it was trained on, if known.
        report: how its training went, or the run's folder that has the record of it.
        trust: its calibration on held-out images, if it has one.
    """

    def __init__(
        self, method: Method, *, trained: Sequence[str] = (), template: Template = DEFAULT_TEMPLATE, trained_on: str | None = None,
        draw: Draw | None = None, report: FitReport | Path | None = None, trust: Trust | None = None,
    ) -> None:  # fmt: skip
        self.method = method.eval()
        self.trained = tuple(trained)
        self.template = check_template(template)
        self.trained_on = trained_on
        self.draw = draw
        self._report = report
        self.trust = trust
        self.preprocess = preprocess_of(method.clip)
        self._heads: dict[tuple[Any, ...], Head] = {}
        self._lock = threading.RLock()

    @property
    def classes(self) -> tuple[str, ...]:
        """Names among which it chooses where none are given: those that it was trained on."""
        return self.trained

    @property
    def report(self) -> FitReport | None:
        """How its training went: scores on the images held out and trained on, beside zero-shot CLIP, curve, wrong images. None where it is
        not known.

        Raises:
            MmrlError: it was loaded from a folder whose record is damaged.
        """
        if isinstance(self._report, Path):
            self._report = FitReport.read(self._report)
        return self._report

    @property
    def device(self) -> torch.device:
        """Where images are classified."""
        return self.method.clip.device

    def to(self, device: str | torch.device) -> Classifier:
        """Move it, and the backbone that other classifiers may share, to 'cpu', 'cuda', ... ('auto': the best available). Returns itself.

        Raises:
            UsageError: the device is not available.
        """
        place = checked_device(device)
        with self._lock:
            self.method.to(place)
            self._heads.clear()
        return self

    def __repr__(self) -> str:
        try:
            report = self.report
        except MmrlError:  # of a folder whose record is damaged: what asks for the report is told
            report = None
        held = report.held_out if report else None
        score = f", {summary(held)}" if held else ""
        return f"Classifier({self.method.name} on {self.method.clip.name}, {len(self.trained)} trained classes{score})"

    def _repr_html_(self) -> str:
        from mmrl.classifier.html import classifier_html

        return classifier_html(self)

    def about(self) -> dict[str, Any]:
        """What `Classifier` takes besides what an adapter's folder holds."""
        return {"draw": self.draw, "report": self._report}

    def __reduce__(self) -> tuple[Any, ...]:
        return unpacked, (packed(self),)

    def head(self, classes: str | Sequence[str] | None = None, template: Template | None = None) -> Head:
        """What is computed once for a list of names, such as class features. The caller owns it; it holds until the method changes.

        Raises:
            UsageError: the list or the template is bad, or a prompt is longer than the text tower reads.
        """
        names, template = self.asked(classes, template)
        seen = trained_mask(names, self.trained).to(self.device)
        with torch.no_grad(), naming(names, template):
            return Head(names, self.method.head(self.method.class_list(names, template)), seen, template)

    def asked(self, classes: str | Sequence[str] | None, template: Template | None) -> tuple[tuple[str, ...], Template]:
        """The class names and the template that a call means: those given, checked, or else its own."""
        names = self.trained if classes is None else check_names(class_names(classes))
        if not names:
            raise UsageError("this classifier has no classes of its own; pass some (classes=[...], or --classes on the command line).")
        return names, check_template(template or self.template)

    def _head(self, classes: str | Sequence[str] | None, template: Template | None) -> Head:
        """As `head`, kept for the last few lists until a parameter changes."""
        names, template = self.asked(classes, template)
        with self._lock:
            versions = tuple(tensor._version for tensor in (*self.method.parameters(), *self.method.buffers()))
            key = (names, template, versions)
            if key not in self._heads:
                head = self.head(names, template)
                while len(self._heads) >= _HEADS_KEPT:
                    self._heads.pop(next(iter(self._heads)))
                self._heads[key] = head
            return self._heads[key]

    def score_pixels(self, pixels: Tensor, asked: Sequence[tuple[Head, Sequence[int]]]) -> list[Tensor]:
        """Logits (b, C), on the CPU, of images that are prepared already, some of them for each class list.

        All of them pass the image tower together where the method has one vector an image or scores frozen features; else those of a
        list do.

        Args:
            pixels: (B, 3, H, W) on `device`, as `preprocess.batch` gives them.
            asked: what `head` made of a list, and the positions of the images that it is asked about.

        Raises:
            MmrlError: a score is not finite.
        """
        with torch.no_grad():
            found = [each.float().cpu() for each in self.method.logits_of_some(pixels, [(head.head, head.seen, at) for head, at in asked])]
        for each in found:
            _require_finite(each)
        return found

    def _factors(self, head: Head) -> Floats | None:
        """DAC's confidence (C,) of each class; None where it is 1, or the method has no text feature a class."""
        if not self.trained or bool(head.seen.all()) or not isinstance(self.method, TwoTower):
            return None
        with self._lock, torch.no_grad():
            base, current = (self.method.class_list(names, head.template) for names in (self.trained, head.names))
            return class_factors(self.method, (base, self.method.head(base)), (current, head.head))

    def _rows(
        self, given: Given, function: Callable[[Tensor], Tensor], width: int, *, skip_broken: bool, allow_urls: bool | Urls
    ) -> tuple[Tensor, set[int]]:
        """What `function` makes of the images, (B, width) on the CPU, with NaN for those left out, whose positions come with it."""
        skipped: list[Broken] | None = [] if skip_broken else None
        rows = []
        for pixels in pixel_batches(given, self.preprocess, self.device, allow_urls=allow_urls, skipped=skipped):
            with torch.no_grad():
                found = function(pixels)
            _require_finite(found)
            rows.append(found.float().cpu())
        out, gone = torch.full((len(given.sources), width), torch.nan), {int(each.key) for each in skipped or ()}
        if rows:
            out[[at for at in range(len(out)) if at not in gone]] = torch.cat(rows)
        warn_broken(skipped or (), len(out))
        return out, gone

    def _logits(self, given: Given, head: Head, *, skip_broken: bool = False, allow_urls: bool | Urls = False) -> tuple[Tensor, set[int]]:
        """(B, C) on the CPU, with NaN for images left out, and their positions."""

        def logits(pixels: Tensor) -> Tensor:
            return self.method.logits(pixels, head.head, head.seen)

        return self._rows(given, logits, len(head.names), skip_broken=skip_broken, allow_urls=allow_urls)

    def _probabilities(self, logits: Tensor, head: Head, *, calibrated: Calibrated) -> Tensor:
        """(B, C) of logits; without a calibration, or for a list that it tells nothing of, they are as they are."""
        if isinstance(calibrated, str) and calibrated != DAC:
            raise unknown("calibration", calibrated, (DAC,))
        temperature = temperature_among(self.trust, self.method, head.names, head.template, trained=self.trained) if calibrated else None
        if temperature is None:
            return logits.softmax(-1)
        factors = self._factors(head) if calibrated == DAC else None
        return torch.from_numpy(probabilities(logits.numpy(), temperature, factors)).float()

    def predict(
        self, images: Any, classes: str | Sequence[str] | None = None, *, template: Template | None = None, skip_broken: bool = False,
        allow_urls: bool | Urls = False, reject: bool = False, recall: float | None = None, threshold: float | None = None,
        score: str = SCORE,
    ) -> Any:  # fmt: skip
        """The most probable class name of each image: a list for several images, one string for a single image.

        Args:
            images: a path; a folder, for the images directly in it, or a pattern such as 'photos/**/*.jpg', sorted by name; a PIL image,
                array (H, W[, C]) or tensor (C, H, W); bytes of an image file, or an open file; a batch array or tensor of four dimensions;
                or a list of these.
            classes: names to choose from, trained or not, also as 'a,b,c' or a file of them; default: the trained ones.
            skip_broken: None for an image that cannot be read, instead of raising an error.
            allow_urls: whether http:// and https:// texts are fetched: True, or `mmrl.classifier.web.Urls` with limits.
            reject: answer `mmrl.UNKNOWN`, "unknown", for an image that looks like none of the classes: its score is below the threshold
                that keeps `recall` (default 0.95) of the held-out images, or below `threshold`. Either of these rejects, too.
            score: "energy" or "mcm" (`known_scores`).

        Warns:
            BrokenImageWarning: images were left out.
            Notice: the recall is known for another list of classes alone.

        Raises:
            UsageError: an image cannot be read (with `skip_broken`: none can), the class list is bad or has a class "unknown" itself, or
                the classifier has no calibration to take a threshold from.
            MmrlError: a score is not finite.
        """
        head, given = self._head(classes, template), given_images(images, allow_urls)
        rule = rejection(self.trust, head, reject=reject, recall=recall, threshold=threshold, score=score)
        logits, gone = self._logits(given, head, skip_broken=skip_broken, allow_urls=allow_urls)
        names = head.names if rule is None else (*head.names, UNKNOWN)
        best = logits.argmax(-1).tolist() if rule is None else rule.best(logits.numpy(), self.method.logit_scale)
        answers = [None if at in gone else names[i] for at, i in enumerate(best)]
        return answers[0] if given.single else answers

    def predict_proba(
        self, images: Any, classes: str | Sequence[str] | None = None, *, template: Template | None = None, skip_broken: bool = False,
        allow_urls: bool | Urls = False, calibrated: Calibrated = True,
    ) -> np.ndarray:  # fmt: skip
        """Probabilities (B, C), in the order of `classes`; NaN for images that `skip_broken` leaves out. Otherwise as `predict`.

        Args:
            calibrated: divide logits by the temperature fitted on held-out images of trained classes, if there is one, and if the method
                has one scale for trained and new classes (GDA has not, and takes it to lists of trained classes alone); "dac" also changes
                the confidence of new classes by how near tuning brought their names to trained ones; False for softmax(logits). The order
                of an image's classes is always the same.
        """
        head, given = self._head(classes, template), given_images(images, allow_urls)
        logits, _ = self._logits(given, head, skip_broken=skip_broken, allow_urls=allow_urls)
        return self._probabilities(logits, head, calibrated=calibrated).numpy()

    def rank(
        self, images: Any, classes: str | Sequence[str] | None = None, *, top: int = 5, template: Template | None = None,
        skip_broken: bool = False, allow_urls: bool | Urls = False, calibrated: Calibrated = True,
    ) -> list[list[Prediction]]:  # fmt: skip
        """The `top` classes of each image, most probable first; empty for one that `skip_broken` leaves out. Otherwise as
        `predict_proba`."""
        head, given = self._head(classes, template), given_images(images, allow_urls)
        logits, gone = self._logits(given, head, skip_broken=skip_broken, allow_urls=allow_urls)
        return self._ranked(logits, gone, head, top, calibrated)

    def _ranked(self, logits: Tensor, gone: Collection[int], head: Head, top: int, calibrated: Calibrated) -> list[list[Prediction]]:
        if top < 1:
            raise UsageError(f"top is {top}; it must be at least 1.")
        order = _best(logits, min(top, len(head.names)))
        values = self._probabilities(logits, head, calibrated=calibrated).gather(-1, order)
        names, seen = head.names, head.seen.tolist()
        rows = enumerate(zip(values.tolist(), order.tolist()))
        return [[] if at in gone else [Prediction(names[i], p, seen[i]) for p, i in zip(some, ids)] for at, (some, ids) in rows]

    def embed(self, images: Any, *, skip_broken: bool = False, allow_urls: bool | Urls = False) -> np.ndarray:
        """Image features (B, embed_dim) of length 1, in float32: those of the class token, as the method adapts them, or the frozen CLIP's
        where it has no image feature of its own. Images and other arguments as in `predict`; NaN for images left out."""
        given = given_images(images, allow_urls)
        width = self.method.clip.embed_dim
        return self._rows(given, self._features, width, skip_broken=skip_broken, allow_urls=allow_urls)[0].numpy()

    def _features(self, pixels: Tensor) -> Tensor:
        if isinstance(self.method, TwoTower):
            return self.method.image_features(pixels).class_token
        return self.method.clip.encode_image(pixels)

    def evaluate(
        self,
        data: Any,
        among: str | Sequence[str] = evaluation.TRAINED,
        *,
        split: str = "test",
        include_trained: bool = False,
        classifier: str = "auto",
        template: Template | None = None,
        root: str | Path | None = None,
        skip_broken: bool = False,
        beside_zero_shot: bool = True,
        batch_size: int = evaluation.BATCH,
        workers: int | None = None,
    ) -> EvaluationReport:
        """Scores on labelled images, beside those of zero-shot CLIP, and what was answered for each.

        Args:
            data: all that `mmrl.fit` takes: a folder, a file that lists images, (images, labels), {name: images}, a table, ... Of data
                with a test part that part counts, of other data every image, but for those that this classifier was trained on.
            among: the classes that compete: the "trained" ones, those of the "data", or a list of names.
            split: another part of data that has parts: "train" or "val".
            include_trained: whether images that it was trained on count as well.
            classifier: of a method with two: "auto" ("fused" on trained classes, "class" on new ones and on every other data set of
                `mmrl data list`), "fused" or "class" on all.
            template: prompt, or several; default: that of the classifier, or of a data set given by its name.
            root: folder with the downloaded data sets.
            skip_broken: leave out images that are missing or broken, and list them in `skipped`.
            beside_zero_shot: whether zero-shot CLIP is scored on the same images.
            workers: threads that prepare images; default: one a core, at most 8.

        Warns:
            Notice: images were left out, as it was trained on them.
            BrokenImageWarning: images were left out, as they cannot be read.

        Raises:
            UsageError: bad data, images of a class that does not compete, or an image that cannot be read.
        """
        return evaluation.evaluate(
            self, data, among=among, split=split, include_trained=include_trained, classifier_rule=classifier, template=template, root=root,
            skip_broken=skip_broken, beside_zero_shot=beside_zero_shot, batch_size=batch_size, workers=workers,
        )  # fmt: skip

    def score(self, data: Any, labels: Sequence[str] | None = None, **options: Any) -> float:
        """Top-1 accuracy in [0, 1] on labelled images, or on images with their `labels`; other arguments as in `evaluate`."""
        given = data if labels is None else (data, labels)
        return self.evaluate(given, **{"beside_zero_shot": False, **options}).top1

    def save_pretrained(self, folder: str | Path) -> Path:
        """Save the adapter to a folder: trained tensors, configuration with class names and calibration, model card; and where they are
        known the record of its training and the list of the images it was trained on."""
        place = self._save(folder)
        if self.report:
            self.report.record.write(place / RECORD_NAME)
        if self.draw:
            self.draw.save(place / DRAW_NAME)
        return place

    def _save(self, folder: str | Path) -> Path:
        record = self.report.record if self.report else None
        return save_adapter(
            Path(folder), self.method, classes=self.trained, template=self.template, dataset=self.trained_on, record=record,
            trust=self.trust,
        )

    def push_to_hub(self, repo_id: str, *, private: bool = False, revision: str | None = None, **options: Any) -> str:
        """Upload the adapter and its model card to the Hugging Face Hub, and no name of an image; returns the address. Needs a login of
        huggingface_hub and a network. Other options, errors and what goes there: `mmrl.classifier.hub.push`."""
        import tempfile

        from mmrl.classifier.hub import push

        with tempfile.TemporaryDirectory() as folder:
            self._save(folder)
            if self.report:
                self.report.record.write(Path(folder) / RECORD_NAME)
            return push(folder, repo_id, private=private, revision=revision, **options)


def _best(logits: Tensor, top: int) -> Tensor:
    """Classes (B, top), the best first, of equal ones the first, as argmax has it. Not all are sorted: there may be thousands."""
    if not len(logits):
        return logits.new_empty(0, top, dtype=torch.long)
    wanted = max(top, int((logits >= logits.topk(top).values[:, -1:]).sum(-1).max()))  # more where the last of them has equals
    among = logits.topk(wanted).indices.sort().values
    return among.gather(-1, logits.gather(-1, among).argsort(dim=-1, descending=True, stable=True))[:, :top]


def _require_finite(scores: Tensor) -> None:
    if not bool(scores.isfinite().all()):
        raise MmrlError("the scores are not finite: the adapter's or the backbone's weights are damaged. Train or load them again.")
