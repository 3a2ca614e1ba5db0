"""One visitor: photos by class, a training, the classifier that came of it."""

from __future__ import annotations

import secrets
import shutil
import threading
import time
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from mmrl import api, methods
from mmrl.app.album import NAME, Album, parted
from mmrl.app.jobs import Cancelled, Errand, Queue
from mmrl.app.uploads import Photo, UploadLimits, checked_name, opened, thumbnail_of, title_of
from mmrl.classifier.judging import Judged
from mmrl.classifier.predictor import Classifier
from mmrl.clip import Clip, load_clip
from mmrl.clip.device import AUTO
from mmrl.data import Dataset
from mmrl.engine import settings
from mmrl.engine.progress import Watch
from mmrl.errors import UsageError
from mmrl.files import replacing
from mmrl.names import check_names, name_key
from mmrl.trust.rejection import UNKNOWN

ADAPTER, EXPORT = "my-classifier", "my-classifier-onnx"
UNTRAINED = "There is no classifier yet: train one first."
TOP = 5  # classes that are shown of an answer


@dataclass(frozen=True)
class Choice:
    """What is trained, and how.

    Attributes:
        epochs: passes over the photos; None for what was published with the method.
        share: of each class's photos that is held out to test and to calibrate on.
    """

    method: str = api.What.method
    backbone: str = "tiny"
    epochs: int | None = None
    share: float = 0.25
    seed: int = 1


class Trained(NamedTuple):
    """A classifier, what it was made with, and as zip files its adapter's folder and, once it was asked for, its export."""

    classifier: Classifier
    choice: Choice
    archive: Path
    exported: Path | None = None


class Verdict(NamedTuple):
    """What is said of one photo: a small JPEG of it and what the classifier found, or what is wrong with it."""

    title: str
    thumbnail: bytes = b""
    judged: Judged | None = None
    problem: str = ""


@dataclass
class Backbones:
    """The CLIPs that may be chosen, each loaded when it is first needed and shared by all visitors; frozen, so nobody sees another's."""

    names: tuple[str, ...] = ("tiny",)
    device: str = AUTO
    _loaded: dict[str, Clip] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def get(self, name: str) -> Clip:
        """Raises UsageError for one that may not be chosen, and as `load_clip`."""
        if name not in self.names:
            raise UsageError(f"The backbone '{name}' is not offered here; choose one of {', '.join(self.names)}.")
        with self._lock:
            if name not in self._loaded:
                self._loaded[name] = load_clip(name, device=self.device)
            return self._loaded[name]


class Session:
    """What one visitor has.

    Args:
        folder: of this visitor alone; it is made when the first photo comes, and goes with `close`.
    """

    def __init__(self, folder: Path, backbones: Backbones, queue: Queue, limits: UploadLimits | None = None) -> None:
        self.folder, self.limits = folder, limits or UploadLimits()
        self.job: Errand | None = None
        self.trained: Trained | None = None
        self.used = time.monotonic()
        self.left: float | None = None  # when the page was closed
        self._backbones, self._queue = backbones, queue
        self._album = Album(folder, self.limits)
        self._closed = False
        self._lock = threading.RLock()

    # ---- photos ----

    @property
    def classes(self) -> dict[str, list[Photo]]:
        """Photos by class, in the order in which the classes came."""
        with self._lock:
            return self._album.classes

    @property
    def busy(self) -> bool:
        """Whether a training waits or runs."""
        return self.job is not None and not self.job.over

    def add(self, written: str, files: Sequence[Path]) -> list[str]:
        """As `Album.add`; raises UsageError also while a training is going on, as do all that change the photos."""
        with self._changing():
            return self._album.add(written, files)

    def add_zip(self, archive: Path) -> list[str]:
        """As `Album.add_zip`."""
        with self._changing():
            return self._album.add_zip(archive)

    def add_examples(self) -> list[str]:
        """As `Album.add_examples`."""
        with self._changing():
            return self._album.add_examples()

    def remove(self, name: str) -> None:
        """As `Album.remove`."""
        with self._changing():
            self._album.remove(name)

    def clear(self) -> None:
        """Take all photos and the classifier away."""
        with self._changing():
            self._album.clear()
            self.trained, self.job = None, None

    @contextmanager
    def _changing(self) -> Iterator[None]:
        with self._lock:
            self._require_open()
            if self.busy:
                raise UsageError("A training is going on: wait for its end, or cancel it, before you change the photos.")
            yield

    def _require_open(self) -> None:
        if self._closed:
            raise UsageError("This page has expired, and its photos are gone. Load it again.")

    # ---- training ----

    def train(self, choice: Choice) -> Errand:
        """Put a training into the queue.

        Raises:
            UsageError: too few photos, a choice that cannot be, another training of this visitor that is not over, or a full queue.
        """
        with self._lock:
            self._require_open()
            if self.busy:
                raise UsageError("A training is going on already: wait for its end, or cancel it.")
            dataset = self._album.dataset()
            method = methods.get(choice.method)
            if (kind := method.trained_by()) == "nothing":
                raise UsageError(f"{method.title} is not trained. Choose another method.")
            options: dict[str, object] = {} if choice.epochs is None or kind != "steps" else {"epochs": choice.epochs}
            settings(choice.method, dataset=NAME, shots=0, overrides=options)  # refuses what cannot be before anybody waits
            if choice.backbone not in self._backbones.names:
                self._backbones.get(choice.backbone)
            job = Errand(lambda watch: self._fit(dataset, choice, options, watch))
            self._queue.add(job)
            self.job = job
            return job

    def cancel(self) -> None:
        """End the training that waits or runs, if there is one."""
        if self.job is not None:
            self._queue.cancel(self.job)

    @property
    def ahead(self) -> int:
        """Trainings that come before this visitor's."""
        return self._queue.ahead(self.job) if self.job is not None else 0

    def _fit(self, dataset: Dataset, choice: Choice, options: dict[str, object], watch: Watch) -> None:
        clip = self._backbones.get(choice.backbone)
        data = api.Data(parted(dataset, choice.share), shots=0)
        classifier = api.fit(data, method=choice.method, backbone=clip, seed=choice.seed, overrides=options, watch=watch, progress=False)
        with self._place("adapter") as place:
            archive = _packed(classifier.save_pretrained(place / ADAPTER))
            with self._here():
                old, self.trained = self.trained, Trained(classifier, choice, archive)
        for each in (old.archive, old.exported) if old is not None else ():
            if each is not None:
                shutil.rmtree(each.parent, ignore_errors=True)

    # ---- what came of it ----

    def export(self) -> Errand:
        """Put an export of the classifier, for ONNX, into the queue.

        Raises:
            UsageError: nothing is trained, a training is going on, or a full queue.
        """
        with self._changing():
            trained = self.trained
            if trained is None:
                raise UsageError(UNTRAINED)
            self.job = job = Errand(lambda watch: self._export(trained))
            try:
                self._queue.add(job)
            except UsageError:
                self.job = None
                raise
            return job

    def _export(self, trained: Trained) -> None:
        from mmrl.export import export_adapter

        with self._place("export") as place:
            export_adapter(trained.classifier, place / EXPORT, to="onnx")
            archive = _packed(place / EXPORT)
            with self._here():
                self.trained = trained._replace(exported=archive)

    @contextmanager
    def _here(self) -> Iterator[None]:
        """Keeps `close` waiting. Raises Cancelled for a visitor who has left."""
        with self._lock:
            if self._closed:
                raise Cancelled
            yield

    @contextmanager
    def _place(self, kind: str) -> Iterator[Path]:
        """A new folder of this visitor, which goes again on an error. Raises Cancelled for one who has left."""
        with self._here():
            place = self._album.made(self.folder / f"{kind}-{secrets.token_hex(8)}")
        try:
            yield place
        except BaseException:  # who writes into a folder that `close` took away may have made it again
            shutil.rmtree(self.folder if self._closed else place, ignore_errors=True)
            raise

    def judge(self, files: Iterable[Path], written: str = "") -> list[Verdict]:
        """What the classifier says of photos.

        Args:
            written: class names to choose from, separated by commas or lines; blank for those that it was trained on.

        Raises:
            UsageError: nothing is trained, no photos or too many, or names that cannot be.
        """
        with self._lock:
            self._require_open()
            trained = self.trained
        if trained is None:
            raise UsageError(UNTRAINED)
        files, limits, classifier = list(files), self.limits, trained.classifier
        if not 1 <= len(files) <= limits.tried:
            few = "Drop a photo to try first." if not files else f"These are {len(files)} photos; at most {limits.tried} are tried at once."
            raise UsageError(few)
        names = self.names(written) or classifier.trained
        answers, images = list[Verdict](), list[Image.Image]()
        for file in files:
            title = title_of(file.name)
            try:
                images.append(opened(file, title, limits))
                answers.append(Verdict(title, thumbnail_of(images[-1])))
            except UsageError as error:
                answers.append(Verdict(title, problem=str(error)))
        if not images:
            return answers
        judged = iter(classifier.judge(images, names, top=TOP, reject=rejects(classifier, names)))
        return [each if each.problem else each._replace(judged=next(judged)) for each in answers]

    def names(self, written: str) -> tuple[str, ...]:
        """The class names that somebody typed. Raises UsageError where one is too long, there twice, or there are too many."""
        parts = [part for line in written.splitlines() for part in line.split(",") if part.strip()]
        if len(parts) > self.limits.classes:
            raise UsageError(f"These are {len(parts)} names; at most {self.limits.classes} are allowed.")
        return check_names([checked_name(part, self.limits) for part in parts], of="the names") if parts else ()

    def close(self) -> None:
        """End the training and take everything away."""
        self._closed = True  # before the lock, which a training that has ended may hold while it packs
        self.cancel()
        with self._lock:
            self._album.clear()
            self.trained = None


def rejects(classifier: Classifier, names: Sequence[str]) -> bool:
    """Whether photos of none of `names` can be answered "unknown": it is known how many of their photos that keeps."""
    trust = classifier.trust
    return trust is not None and trust.holds_for(names, classifier.template) and UNKNOWN not in map(name_key, names)


def _packed(folder: Path) -> Path:
    """`folder` as a zip file beside it."""
    archive = folder.with_name(f"{folder.name}.zip")
    with replacing(archive) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as file:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                file.write(path, f"{folder.name}/{path.relative_to(folder).as_posix()}")
    return archive
