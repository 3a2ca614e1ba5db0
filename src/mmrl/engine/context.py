"""What runs have in common: where and with what they are computed, their data sets, and the keys that identify their results."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from mmrl import methods, recipes
from mmrl.clip import Clip
from mmrl.data import Dataset, Draw, GivenDraws, Item, draw_shots, load_dataset, read_draw, readable
from mmrl.engine.calibrate import LEAST, held_out_images, without
from mmrl.engine.config import FitConfig
from mmrl.engine.features import FeatureStore
from mmrl.engine.fit import items_hash
from mmrl.engine.overrides import refuse_without_effect, training_options
from mmrl.engine.precision import chosen_precision
from mmrl.errors import Notice, UsageError
from mmrl.methods import Method
from mmrl.protocols import Cell, Training
from mmrl.templates import Template, check_template
from mmrl.trust.state import Source

TOGETHER = 16  # trainings in one pass: each has its parameters and its optimiser in memory
DECIDE_IMAGES = {"batch_size", "drop_last", "crop_scale", "pixels", "precision", "accumulate", "seed"}  # of the training options
KEY_FORMAT = 3  # a new one whenever equal inputs give other numbers
OPEN_WORLD_FORMAT = 2  # the same of open-world tests alone


@dataclass(frozen=True)
class Bench:
    """Where and with what runs are computed; plain data, so that it can be sent to other processes.

    Attributes:
        root: the folder of the data sets.
        cache: folder for listings and drawn pictures.
        precision: of training by steps, where the user gives one for all runs; tests are in float32.
        skip_broken: leave broken images out instead of stopping.
        workers: threads that prepare images.
        batch_size: at test.
        draws: folder of draws to train on, for the data sets that it has some of (`mmrl.data.GivenDraws`).
        draw: the draw to train on, of a single run: made before, or the file of one; then `shots` of the training does not matter.
        test_share: of each class's images, for folders and lists that do not say which images test; None tests on all that are not drawn.
        allow_fewer: whether a class with fewer images than asked for gives all it has, as in the CoOp family.
        template: prompt, or several, instead of the data sets'.
        features: folder for what the frozen image tower makes of images, and for decoded pixels; None computes it for every test.
        cache_gib: how much `features` may take, in GiB.
        beside_zero_shot: whether zero-shot CLIP is scored with every test, on the same images.
        processes: how many compute on the same machine at the same time, and share its memory.
        source: of the values that the user gave, for records.
        calibrate: whether a training is followed by a calibration on held-out images.
        set_apart: whether, where no others are left, some of those that would test are set apart for it: they are no published test.
        together: trainings that take their images in one pass, at most; 1 trains each alone, to the same numbers.
    """

    backbone: str
    root: Path | None = None
    cache: Path | None = None
    precision: str | None = None
    skip_broken: bool = False
    workers: int = 0
    batch_size: int = 100
    draws: Path | None = None
    draw: Draw | Path | str | None = None
    test_share: float | None = 0.5
    allow_fewer: bool = True
    template: Template | None = None
    features: Path | None = None
    cache_gib: float = 4.0
    beside_zero_shot: bool = False
    processes: int = 1
    source: str = "plan"
    calibrate: bool = False
    set_apart: bool = False
    together: int = TOGETHER


class HeldOut(NamedTuple):
    """Images to calibrate on, of a data set with the trained classes alone, and which of its images they are; `too_few` says why there are
    none where some are asked for."""

    dataset: Dataset
    items: list[Item]
    source: Source
    too_few: str = ""


def _too_few(dataset: Dataset, left: int, source: Source) -> str:
    if left and source == "validation":
        fix = "more validation images"
    else:
        fix = "fewer shots, with a share held out to test (holdout, --test-share)" if dataset.rest_tests else "fewer shots"
    return (
        f"{left or 'no'} {'image is' if left == 1 else 'images are'} left of '{dataset.name}' to calibrate on, and {LEAST} are needed. "
        f"There are more with {fix}; or give labelled images of its classes later: clf.calibrate(DATA), "
        "`mmrl calibrate ADAPTER DATA`."
    )


class Fewer(NamedTuple):
    """Classes with fewer training images than the shots asked for, and how many each has; all of these are drawn."""

    shots: int
    images: dict[str, int]


@dataclass(frozen=True)
class Prepared:
    """What a training needs besides the backbone: values with their sources, validated, and the images drawn.

    `usable` tells which of them can be read, where broken ones are left out; '' where they are not.
    """

    resolved: recipes.Resolved
    config: FitConfig
    draw: Draw
    usable: str = ""


def settings(
    method: str,
    *,
    protocol: str = "base-to-novel",
    dataset: str | None = None,
    shots: int | None = None,
    overrides: Mapping[str, Any] | None = None,
    source: str = "call",
) -> recipes.Resolved:
    """Every value of a run and where it came from.

    Raises:
        UsageError: options that have no effect on the method; unknown names, or values that are not allowed; all of a kind in one message.
    """
    cls = methods.get(method)
    refuse_without_effect(cls, overrides or {})
    allowed = {
        section: {name: field.get_default(call_default_factory=True) for name, field in options.model_fields.items()}
        for section, options in (("method", cls.Options), ("fit", FitConfig))
    }
    resolved = recipes.resolve(
        method, protocol=protocol, dataset=dataset, shots=shots, overrides=overrides, allowed=allowed, override_source=source,
        recipe=cls.recipe,
    )  # fmt: skip
    resolved = _with_shorter_warmup(resolved, overrides or {})
    methods.make_options(cls, resolved.method)
    FitConfig(**resolved.fit)
    return resolved


def _with_shorter_warmup(resolved: recipes.Resolved, given: Mapping[str, Any]) -> recipes.Resolved:
    """The same, with a warm-up that ends before so few epochs as the user wants do, unless the user chose the warm-up.

    Warns:
        Notice: it is shorter.
    """
    epochs, warmup = resolved.fit.get("epochs"), resolved.fit.get("warmup_epochs")
    if "epochs" not in given or "warmup_epochs" in given or type(epochs) is not int or epochs < 1 or warmup is None or warmup < epochs:
        return resolved
    warnings.warn(f"warmup_epochs is {epochs - 1} instead of {warmup}, since epochs is {epochs}.", Notice, stacklevel=3)
    return resolved.replaced("warmup_epochs", epochs - 1, f"{warmup} by the recipe, too many for {epochs} epochs")


class Context:
    """A bench with its backbone: reads data sets once, prepares trainings, and knows every key.

    Args:
        datasets: those that the caller has, by name; others are loaded.
    """

    def __init__(self, bench: Bench, clip: Clip, *, datasets: Mapping[str, Dataset] | None = None) -> None:
        self.bench, self.clip = bench, clip
        self._precision = bench.precision  # as it was given
        if bench.precision == "auto":  # results are those of what it is here
            self.bench = replace(bench, precision=self._automatic[0])
        self.identity = clip.identity
        self._datasets = {name: self._as_asked(dataset) for name, dataset in (datasets or {}).items()}
        self._prepared: dict[Training, Prepared] = {}
        self._draws = GivenDraws(bench.draws) if bench.draws else None
        self.features = FeatureStore(bench.features, bench.cache_gib) if bench.features else None
        self.given: set[str] = set()  # data sets whose draws were given
        self.fewer: dict[str, Fewer] = {}  # by data set, of the most shots

    def dataset(self, name: str) -> Dataset:
        """The data set, with the bench's prompt and share of test images."""
        if name not in self._datasets:
            self._datasets[name] = self._as_asked(load_dataset(name, root=self.bench.root, cache=self.bench.cache))
        return self._datasets[name]

    def _as_asked(self, dataset: Dataset) -> Dataset:
        if dataset.rest_tests and self.bench.test_share is not None:
            dataset = dataset.divided(self.bench.test_share)
        return dataset if self.bench.template is None else replace(dataset, template=check_template(self.bench.template))

    @cached_property
    def _automatic(self) -> tuple[str, str]:
        """What the precision 'auto' is on the backbone's device, and the source that records give for it."""
        value, why = chosen_precision(self.clip.device)
        warnings.warn(f"precision is auto: {value}, as {why}.", Notice, stacklevel=2)
        return value, f"auto: {why}"

    def tested(self, cell: Cell) -> Dataset:
        """The data set with the images and classes that `cell` is tested on; images that its training drew are not among them."""
        dataset = self.dataset(cell.dataset)
        if cell.training and cell.training.dataset == cell.dataset:
            dataset = dataset.held_out(self.prepare(cell.training).draw.train)
            if self.bench.set_apart:
                held_out = self.calibration(cell.training)
                dataset = without(dataset, held_out.items) if held_out.source == "held out" else dataset
        return dataset.restrict(cell.classes)

    def calibration(self, training: Training) -> HeldOut:
        """The images that a training is to be calibrated on; none where the bench asks for no calibration, or there are too few."""
        dataset = self.dataset(training.dataset).restrict(training.classes)
        if not self.bench.calibrate:
            return HeldOut(dataset, [], "validation")
        items, source = held_out_images(dataset, self.prepare(training).draw, apart=self.bench.set_apart)
        if len(items) < LEAST:
            return HeldOut(dataset, [], source, _too_few(dataset, len(items), source))
        return HeldOut(dataset, items, source)

    def applicable(self, cell: Cell) -> bool:
        """Whether the cell can be scored: a method with a closed vocabulary knows no classes but those it was trained on."""
        if cell.training is None or cell.seen:
            return True
        cls = methods.get(cell.method)
        return cls.open_vocabulary(methods.make_options(cls, self.options_at_test(cell)))

    def build(self, training: Training) -> Method:
        """The method that is trained, as it begins.

        Raises:
            UsageError: as `prepare`; the backbone cannot carry the method, or not with an option's value: it is said whose that is.
        """
        settings = self.prepare(training).resolved
        try:
            return methods.build(training.method, self.clip, settings.method, seed=training.seed)
        except UsageError as error:
            given = next((each for each in settings.settings if str(error).startswith(f"{each.key} is ")), None)
            if given is None or given.source == self.bench.source:
                raise
            said = f"{error} The value is that of the recipe of {training.method} ({given.source})."
            raise UsageError(f"{said} Choose another: --set {given.key}=VALUE, or {given.key}=VALUE in Python.") from error

    def prepare(self, training: Training) -> Prepared:
        """Values and draw of a training. A published batch larger than the draw is lowered to it; one that the user gave is not.

        Raises:
            UsageError: unknown options or bad values (all in one message), or too few images.
        """
        if training not in self._prepared:
            self._prepared[training] = self._prepare(training)
        return self._prepared[training]

    def _prepare(self, training: Training) -> Prepared:
        bench, dataset, given = self.bench, self.dataset(training.dataset), {**dict(training.overrides)}
        if given.setdefault("seed", training.seed) != training.seed:
            seeds = f"the options have seed {given['seed']!r}, and the run has seed {training.seed}"
            raise UsageError(f"{seeds}; give it once: --seed, or seed= in Python.")
        if self._precision is not None and "precision" in training_options(methods.get(training.method)):
            given["precision"] = self._precision
        resolved = settings(
            training.method, protocol=training.recipe, dataset=dataset.name, shots=training.shots, overrides=given, source=bench.source
        )
        if resolved.fit.get("precision") == "auto":
            resolved = resolved.replaced("precision", *self._automatic)
        draw = self._draw(training, dataset)
        usable = draw.train
        if bench.skip_broken:
            usable = readable(dataset.restrict(training.classes), draw.train, bench.workers)[0]
        if "batch_size" not in given:
            resolved = resolved.at_most("batch_size", len(usable), "all training images, fewer than a published batch")
        return Prepared(resolved, FitConfig(**resolved.fit), draw, items_hash(usable) if bench.skip_broken else "")

    def _draw(self, training: Training, dataset: Dataset) -> Draw:
        bench, classes = self.bench, training.classes
        if isinstance(bench.draw, Draw):
            return bench.draw
        if bench.draw is not None:
            return read_draw(bench.draw, dataset, classes)
        given = self._draws.draw(dataset, training.shots, training.seed, classes) if self._draws else None
        self.given |= {training.dataset} if given else set()
        if given:
            return given
        draw = draw_shots(dataset, training.shots, training.seed, classes, allow_fewer=bench.allow_fewer)
        counts = Counter(item.label for item in draw.train)
        small = {name: counts[at] for at, name in enumerate(dataset.restrict(classes).classes) if counts[at] < training.shots}
        if small and training.shots >= self.fewer.get(dataset.name, Fewer(0, {})).shots:
            self.fewer[dataset.name] = Fewer(training.shots, {**small})
        return draw

    # ---- keys ----

    def training_key(self, training: Training) -> str:
        """Hash of all that decides what a training gives."""
        ready, dataset = self.prepare(training), self.dataset(training.dataset)
        return hash_of(
            method=training.method,
            options=validated(training.method, ready.resolved.method),
            fit=ready.config.identity(),
            backbone=self.identity,
            dataset=dataset.name,
            data=dataset.fingerprint,
            template=dataset.template,
            classes=training.classes,
            draw=ready.draw.hash,
            images=ready.usable,
            **({"revision": revision} if (revision := methods.get(training.method).revision) else {}),
        )

    def images_key(self, training: Training) -> str:
        """Hash of all that decides the images of a training's every batch, and what the frozen tower makes of them."""
        ready, dataset = self.prepare(training), self.dataset(training.dataset)
        fit = ready.config.model_dump(include=DECIDE_IMAGES) | {"views": ready.config.pool}
        return hash_of(
            dataset=dataset.name, data=dataset.fingerprint, classes=training.classes, draw=ready.draw.hash, images=ready.usable, fit=fit
        )

    def test_key(self, cell: Cell, training: str | None) -> str:
        """Hash of all that decides a score."""
        dataset = self.dataset(cell.dataset)
        return hash_of(
            method=cell.method,
            training=training,
            options=self.options_at_test(cell),
            backbone=self.identity,
            dataset=dataset.name,
            data=dataset.fingerprint,
            template=dataset.template,
            classes=cell.classes,
            seen=cell.seen,
            skip_broken=self.bench.skip_broken,
            **({} if cell.others is None else {"open_world": self._open_world(cell.others)}),
            **({"calibrated": True} if self.bench.calibrate and self.bench.set_apart else {}),
        )

    def _open_world(self, others: tuple[str, ...]) -> dict[str, Any]:
        """What decides an open-world test besides."""
        return {"format": OPEN_WORLD_FORMAT, "others": {name: self.dataset(name).fingerprint for name in others}}

    def run_key(self, cell: Cell) -> str:
        """Key of the run that a cell belongs to: its training's, or that of the zero-shot pass over its data set."""
        if cell.training is not None:
            return self.training_key(cell.training)
        return hash_of(zero_shot=cell.dataset, data=self.dataset(cell.dataset).fingerprint, backbone=self.identity)

    def setting(self, cell: Cell) -> str:
        """What the cells of a table's row must share, besides what their slots say."""
        names = dict.fromkeys((cell.dataset, *((cell.training.dataset,) if cell.training else ())))
        data = [(self.dataset(name).fingerprint, self.dataset(name).template) for name in names]
        return hash_of(backbone=self.identity, data=data, precision=self.bench.precision, skip_broken=self.bench.skip_broken)

    def options_at_test(self, cell: Cell) -> dict[str, Any]:
        """Options of the method that a cell is tested with."""
        trained = self.prepare(cell.training).resolved.method if cell.training else {}
        return validated(cell.method, {**trained, **dict(cell.options)})


def hash_of(**decides: Any) -> str:
    text = json.dumps({"format": KEY_FORMAT, **decides}, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:20]


def validated(method: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """As the method gets them: a 1 that was typed for a fraction is the recipe's 1.0, and no reason to train again."""
    return methods.make_options(methods.get(method), options).model_dump(mode="json")
