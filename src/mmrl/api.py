"""The whole of mmrl in Python: teach, save, load, classify.

import mmrl

clf = mmrl.fit("photos/", method="mmrl", backbone="ViT-B-16-quickgelu/openai", shots=16)
clf.predict("cat.jpg", classes=["cat", "dog", "red panda"])
clf.save_pretrained("my-classifier")
clf = mmrl.from_pretrained("my-classifier")
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, replace
from inspect import Parameter, signature
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from mmrl import methods
from mmrl.classifier.evaluation import OF_DATA, EvaluationReport
from mmrl.classifier.hub import download
from mmrl.classifier.predictor import Classifier
from mmrl.classifier.report import FitReport
from mmrl.clip import Clip, load_clip, naming
from mmrl.clip.device import AUTO
from mmrl.data import Dataset, Draw, dataset_names, draw_shots, load_dataset, usual_workers
from mmrl.data.given import Labelled, given_dataset, with_held_out
from mmrl.engine import BelowZeroShotWarning, Bench, Context, Job, Place, RunResult, load_adapter, run, settings
from mmrl.engine.adapter import read_config, write_card
from mmrl.engine.advise import Advice, Race
from mmrl.engine.advise import advise as race_of
from mmrl.engine.jobs import require_images
from mmrl.engine.progress import Watch
from mmrl.engine.run import DRAW_NAME, below_zero_shot, own_tests
from mmrl.errors import Notice, UsageError, unknown
from mmrl.files import user_path
from mmrl.fit_options import FitOptions
from mmrl.protocols import Training
from mmrl.protocols.plan import Trained, values
from mmrl.reports.records import RECORD_NAME, RunRecord
from mmrl.templates import DEFAULT_TEMPLATE, Template

if TYPE_CHECKING:
    from typing_extensions import Unpack

T = TypeVar("T")
USUAL_SHOTS = 16  # where neither shots nor images to hold out are named


@dataclass(frozen=True)
class Data:
    """Which images a classifier is taught, and which test it.

    Attributes:
        data: a name of `mmrl data list`, a folder with one subfolder of images a class, a file that lists images, (images, labels),
            {name: images}, a list of dictionaries or a DataFrame with path (or image) and label, or a Dataset of mmrl or `datasets`.
        root: folder with the downloaded datasets; default: the environment variable DATA.
        shots: training images a class; 0 takes all. Default: 16, or all with `holdout`.
        classes: train on "all" classes or on the "base" half.
        allow_fewer: take all images of a class that has fewer than `shots`.
        draw: the training images: a draw made before, its `draw.json`, or CoOp's `shot_16-seed_1.pkl`; then `shots` does not matter.
        template: prompt with one `{}`, or several, whose class features are averaged; default: the dataset's.
        holdout: of data without test images, what tests: a share of each class's images that is set apart, such as 0.2; 0 for nothing,
            so that everything may train, and there is no score; or a folder of images, or other data, to test on. Default: all images
            that are not drawn to train.
        skip_broken: leave out images that are missing or broken, for training and testing; the record names them.
        calibrate: fit probabilities, thresholds and prediction sets to held-out images, where there are at least 10: validation images,
            else training images that were not drawn, else, of photos without a test part of their own, up to 4 a class (at most half) of
            those that would test.
    """

    data: Labelled
    root: str | Path | None = None
    shots: int | None = None
    classes: str = "all"
    allow_fewer: bool = False
    draw: Draw | str | Path | None = None
    template: Template | None = None
    holdout: float | Labelled | None = None
    skip_broken: bool = False
    calibrate: bool = True

    @property
    def drawn_shots(self) -> int:
        """`shots`, or what is drawn without it."""
        if isinstance(self.draw, Draw):
            return self.draw.shots
        return (USUAL_SHOTS if self.holdout is None else 0) if self.shots is None else self.shots

    @property
    def shares(self) -> bool:
        """Whether a share of the images is held out."""
        return not isinstance(self.holdout, bool) and isinstance(self.holdout, (int, float)) and self.holdout > 0

    @property
    def untested(self) -> bool:
        """Whether nothing shall be held out."""
        return not isinstance(self.holdout, bool) and isinstance(self.holdout, (int, float)) and self.holdout == 0

    def load(self) -> Dataset:
        held, own = self.holdout, self.data
        if isinstance(held, (bool, int, float)):
            if isinstance(held, bool) or not 0 <= held < 1:
                allowed = "0 (everything trains, and there is no score), above 0 and below 1 (a share of each class), or test images"
                raise UsageError(f"holdout is {held}; it must be {allowed}.")
            dataset = given_dataset(own, root=self.root)
            return dataset.divided(held) if held else dataset
        if isinstance(held, (str, Path)) and isinstance(own, (str, Path)):
            return load_dataset(str(own), root=self.root, test=held)
        dataset = given_dataset(own, root=self.root)
        return dataset if held is None else with_held_out(dataset, given_dataset(held, root=self.root))


@dataclass(frozen=True)
class What:
    """What is trained.

    Attributes:
        method: a name of `mmrl methods`.
        backbone: a CLIP, or its name for `load_clip`; default: `tiny`, which ships with the package and is for trying.
        seed: decides the draw, the initial values, order and augmentation.
        protocol: whose published values to use; default: few-shot for all classes of a known dataset, else base-to-novel.
        overrides: options of the method and of training, by name.
        source: of these, for the record.
    """

    method: str = "mmrl"
    backbone: str | Clip | None = None
    seed: int = 1
    protocol: str | None = None
    overrides: Mapping[str, Any] = field(default_factory=dict)
    source: str = "call"


@dataclass(frozen=True)
class Where:
    """Where it runs.

    Attributes:
        out: folder for adapter, checkpoints, `draw.json` and `run.json`; None writes nothing.
        resume: go on with the run in `out`.
        device: auto (the best there is), cpu, cuda, cuda:1, ...
        workers: threads that prepare images; default: one a core, at most 8, and none for sets in memory.
        progress: whether a bar is shown on a terminal.
        watch: a function that is told how far the run is (`mmrl.engine.progress.Progress`), at every training step and every batch of
            images that is looked at once. What it raises ends the run.
    """

    out: str | Path | None = None
    resume: bool = False
    device: str = AUTO
    workers: int | None = None
    progress: bool = True
    watch: Watch | None = None


def train(
    data: Labelled | Data, what: What | None = None, where: Where | None = None, **options: Unpack[FitOptions]
) -> RunResult:
    """One run: draw shots, train, score on the test images beside zero-shot, write adapter and record into a folder.

    Args:
        options: fields of `Data`, `What` and `Where`, and options of the method and of training, by name.

    Warns:
        Notice: `tiny` is used on data of one's own, or how many images test.
        BelowZeroShotWarning: an accuracy is below that of zero-shot CLIP. The record says so too.
        UntestedWarning: of some classes no image is left to test on. The record says so too.
        BrokenImageWarning: images were left out.

    Raises:
        UsageError: unknown names, bad values, bad data, or an `out` that holds another run.
        MmrlError: something failed; what was computed is kept in `out`.
    """
    return _train(data, what, where, {**options})[0]


def _train(data: Labelled | Data, what: What | None, where: Where | None, options: dict[str, Any]) -> tuple[RunResult, Dataset]:
    """The run, and the data set that its images are of."""
    own = _taking(data if isinstance(data, Data) else Data(data), options)
    what, where = _taking(what or What(), options), _taking(where or Where(), options)
    what = replace(what, overrides={**what.overrides, **options})
    dataset = own.load()
    if own.classes not in ("all", "base"):
        raise unknown("classes to train on", own.classes, ("all", "base"))
    part: Trained = "all" if own.classes == "all" else "base"
    recipe = what.protocol or _recipe(own, dataset)
    methods.get(what.method)
    if what.backbone is None and dataset.name not in dataset_names():
        warnings.warn(TINY_NOTE, Notice, stacklevel=3)
    workers = usual_workers(dataset.read) if where.workers is None else where.workers
    shots = own.drawn_shots
    training = Training(what.method, dataset.name, part, shots, what.seed, recipe, values(what.overrides))
    name = what.backbone.name if isinstance(what.backbone, Clip) else what.backbone or "tiny"
    bench = Bench(
        name, skip_broken=own.skip_broken, workers=workers, draw=own.draw, test_share=None,
        allow_fewer=own.allow_fewer, template=own.template, beside_zero_shot=True, source=what.source,
        calibrate=own.calibrate, set_apart=dataset.rest_tests or own.shares,
    )  # fmt: skip
    settings(what.method, protocol=recipe, dataset=dataset.name, shots=shots, overrides=what.overrides)  # before a backbone is loaded
    clip = what.backbone if isinstance(what.backbone, Clip) else load_clip(name, device=where.device)
    context = Context(bench, clip, datasets={dataset.name: dataset})
    cells, untested = ([], []) if own.untested else own_tests(training, context)
    key = context.training_key(training)
    job = Job(key, training, tuple((cell, context.test_key(cell, key)) for cell in cells), notes=tuple(untested))
    require_images([job], context)

    def keep(record: RunRecord) -> None:
        if where.out is not None and len(record.tests) == len(cells):
            folder = user_path(where.out)
            record.write(folder / RECORD_NAME)
            write_card(folder, read_config(folder), record)

    place = Place(where.out, where.resume, where.progress, workers, own.skip_broken, watch=where.watch)
    with naming(dataset.restrict(own.classes).classes, own.template or dataset.template):
        result = run(job, context, place, save=keep)
    for test in result.record.tests:
        if text := below_zero_shot(result.record.title, test):
            warnings.warn(text, BelowZeroShotWarning, stacklevel=3)
    return result, dataset


def _recipe(data: Data, dataset: Dataset) -> str:
    """The protocol whose published values are taken where the user names none."""
    return "few-shot" if data.classes == "all" and dataset.name in dataset_names() else "base-to-novel"


def _taking(whole: T, options: dict[str, Any]) -> T:
    """`whole` with those of `options` that are fields of it, which are taken out."""
    names = {each.name for each in fields(whole)} - {"data"}  # type: ignore[arg-type]
    return replace(whole, **{name: options.pop(name) for name in list(options) if name in names})  # type: ignore[type-var]


TINY_NOTE = (
    "no backbone was named, so the embedded 'tiny' is used, which is for trying and knows little of photographs. For a real CLIP name "
    "'ViT-B-16-quickgelu/openai': it is downloaded once, about 600 MB."
)


def fit(data: Labelled | Data, **options: Unpack[FitOptions]) -> Classifier:
    """Teach a classifier the classes of `data`; arguments as those of `train`. It keeps its score: `Classifier.report`.

    Example:
        `mmrl.fit("photos/", method="mmrlpp", backbone="tiny", holdout=0.2, epochs=20, lam=0.5)`

    Raises:
        UsageError, MmrlError: as `train`.
    """
    skip_broken = bool(options.get("skip_broken", isinstance(data, Data) and data.skip_broken))
    result, dataset = _train(data, None, None, {**options})
    assert result.fitted is not None and result.draw is not None
    taught, draw = result.fitted.data, result.draw
    part = replace(dataset.restrict(draw.classes), train=[], val=[], test=draw.train, rest_tests=False)
    report = FitReport(
        result.record, [EvaluationReport.of(tested) for tested in result.tested],
        lambda: classifier.evaluate(part, OF_DATA, template=part.template, skip_broken=skip_broken),
    )  # fmt: skip
    classifier = Classifier(
        result.method, trained=taught.classes, template=taught.template, trained_on=dataset.name, draw=draw, report=report,
        trust=result.trust,
    )  # fmt: skip
    return classifier


ADVISED = ("gda", "tip-adapter", "lpp", "linear-probe", "mmrl")


def advise(
    data: Labelled | Data,
    *,
    methods: Sequence[str] = ADVISED,
    folds: int = 4,
    minutes: float = 10.0,
    new_classes: bool = False,
    say: Callable[[str], object] = lambda line: None,
    **options: Unpack[FitOptions],
) -> Advice:
    """Which method to take for `data`, told without test images: each is trained without a part of the training images and tested on it.

    Zero-shot CLIP is in the race, and may win. Validation images, where there are any, select as in a training. The estimates are of
    trainings on fewer images than there are, so the methods that gain most from images end a little higher than they say.

    Args:
        methods: which, in the order in which they run.
        folds: parts that the images of each class are divided into.
        minutes: for everything; a method that would take longer than what is left does not run, and is listed with the time it needs.
        new_classes: whether only methods that can also classify among new classes are of use.
        say: called with a line for every method that is done.
        options: fields of `Data` (`shots` is 0 here, which takes all images), `What` and `Where`, and by name options of training and of
            the methods that have them.

    Raises:
        UsageError: unknown names, bad values or data, or no class with two images.
    """
    given: dict[str, Any] = {**options}
    own = _taking(data if isinstance(data, Data) else Data(data, shots=0), given)
    what, where = _taking(What(), given), _taking(Where(), given)
    dataset = own.load()
    overrides, recipe = values({**what.overrides, **given}), what.protocol or _recipe(own, dataset)
    race = Race(tuple(methods), folds, minutes, new_classes, what.seed, recipe, overrides)
    workers = usual_workers(dataset.read) if where.workers is None else where.workers
    clip = what.backbone if isinstance(what.backbone, Clip) else load_clip(what.backbone or "tiny", device=where.device)
    bench = Bench(clip.name, skip_broken=own.skip_broken, workers=workers, test_share=None, template=own.template, source=what.source)
    draw = own.draw if isinstance(own.draw, Draw) else draw_shots(dataset, own.drawn_shots, what.seed, allow_fewer=own.allow_fewer)
    return race_of(clip, dataset, draw, bench, race, say=say)


def from_pretrained(adapter: str | Path, *, backbone: str | Clip | None = None, device: str = AUTO) -> Classifier:
    """The classifier saved in a folder, or on a model hub under `ORG/NAME`, or `ORG/NAME@BRANCH`.

    Args:
        backbone: another name or copy of the same weights; default: the one the adapter names.
        device: auto (the best there is), cpu, cuda, cuda:1, ...

    Raises:
        UsageError: no adapter there, or another backbone than it was made for.
        MmrlError: the files are damaged, or cannot be fetched.
    """
    folder = user_path(adapter)
    if not folder.exists():
        folder = download(str(adapter))
    clip = load_clip(backbone, device=device) if isinstance(backbone, str) else backbone
    method, config = load_adapter(folder, clip, device=device)
    draw = folder / DRAW_NAME
    return Classifier(
        method, trained=config.class_names, template=config.template, trained_on=config.dataset, report=folder,
        draw=Draw.load(draw) if draw.is_file() else None, trust=config.trust,
    )  # fmt: skip


def zero_shot(backbone: str | Clip = "tiny", *, template: Template = DEFAULT_TEMPLATE, device: str = AUTO) -> Classifier:
    """The frozen CLIP as a classifier: give `predict` the class names."""
    clip = backbone if isinstance(backbone, Clip) else load_clip(backbone, device=device)
    return Classifier(methods.build("zero-shot", clip), template=template)


class _Default:
    """Stands in a signature for a value that the recipe of the method decides."""

    def __repr__(self) -> str:
        return "<default>"


def _named(function: Callable[..., Any]) -> None:
    """Give `function` a signature with every option in it, which notebooks complete and `help` shows."""
    usual = {each.name: each.default for cls in (Data, What, Where) for each in fields(cls) if each.default is not MISSING}
    own = [each for each in signature(function).parameters.values() if each.kind is not Parameter.VAR_KEYWORD]
    taken = {each.name for each in own}
    more = [
        Parameter(name, Parameter.KEYWORD_ONLY, default=usual.get(name, _Default()), annotation=getattr(kind, "__forward_arg__", kind))
        for name, kind in FitOptions.__annotations__.items()
        if name not in taken
    ]
    function.__signature__ = signature(function).replace(parameters=[*own, *more])  # type: ignore[attr-defined]


for _function in (fit, train, advise):
    _named(_function)
