"""The whole of mmrl in Python: teach, save, load, classify.

import mmrl

clf = mmrl.fit("photos/", method="mmrl", backbone="ViT-B-16-quickgelu/openai", shots=16)
clf.predict("cat.jpg", classes=["cat", "dog", "red panda"])
clf.save_pretrained("my-classifier")
clf = mmrl.from_pretrained("my-classifier")
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, TypeVar

from mmrl import methods
from mmrl.clip import Clip, load_clip
from mmrl.clip.device import AUTO
from mmrl.clip.outside import without_waiting
from mmrl.data import Dataset, Draw, dataset_names, draw_shots, load_dataset, usual_workers
from mmrl.engine import BelowZeroShotWarning, Bench, Context, Job, Place, RunResult, load_adapter, run, settings
from mmrl.engine.adapter import read_config, write_card
from mmrl.engine.advise import Advice, Race
from mmrl.engine.advise import advise as race_of
from mmrl.engine.jobs import require_images
from mmrl.engine.run import DRAW_NAME, below_zero_shot, own_tests
from mmrl.errors import MmrlError, Notice, UsageError, first_line, unknown
from mmrl.files import user_path
from mmrl.protocols import Training
from mmrl.protocols.plan import Trained, values
from mmrl.reports.records import RECORD_NAME, RunRecord
from mmrl.serve.predictor import Classifier
from mmrl.templates import DEFAULT_TEMPLATE, Template

T = TypeVar("T")


@dataclass(frozen=True)
class Data:
    """Which images a classifier is taught, and which test it.

    Attributes:
        data: a name of `mmrl data list`, a folder with one subfolder of images a class, a file that lists images, or a Dataset.
        root: folder with the downloaded datasets; default: the environment variable DATA.
        shots: training images a class; 0 takes all.
        classes: train on "all" classes or on the "base" half.
        allow_fewer: take all images of a class that has fewer than `shots`.
        draw: the training images: a draw made before, its `draw.json`, or CoOp's `shot_16-seed_1.pkl`; then `shots` does not matter.
        template: prompt with one `{}`, or several, whose class features are averaged; default: the dataset's.
        test: for a folder or list without test images, a folder of such.
        test_share: for the same, a share of each class's images to set apart to test. Without either, all images that are not drawn to
            train are tested on.
        skip_broken: leave out images that are missing or broken, for training and testing; the record names them.
    """

    data: str | Path | Dataset
    root: str | Path | None = None
    shots: int = 16
    classes: str = "all"
    allow_fewer: bool = False
    draw: Draw | str | Path | None = None
    template: Template | None = None
    test: str | Path | None = None
    test_share: float | None = None
    skip_broken: bool = False

    def load(self) -> Dataset:
        if isinstance(self.data, (str, Path)):
            return load_dataset(str(self.data), root=self.root, test=self.test, test_share=self.test_share)
        if self.test is not None or self.test_share is not None:
            raise UsageError("test and test_share are for folders and lists; a Dataset has its test images, or divided() sets some apart.")
        return self.data


@dataclass(frozen=True)
class What:
    """What is trained.

    Attributes:
        backbone: a CLIP, or its name for `load_clip`; default: `tiny`, which ships with the package and is for trying.
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
    """

    out: str | Path | None = None
    resume: bool = False
    device: str = AUTO
    workers: int | None = None
    progress: bool = True


def train(data: str | Path | Dataset | Data, what: What | None = None, where: Where | None = None, **options: Any) -> RunResult:
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
        warnings.warn(TINY_NOTE, Notice, stacklevel=2)
    workers = usual_workers(dataset.read) if where.workers is None else where.workers
    shots = own.draw.shots if isinstance(own.draw, Draw) else own.shots
    training = Training(what.method, dataset.name, part, shots, what.seed, recipe, values(what.overrides))
    name = what.backbone.name if isinstance(what.backbone, Clip) else what.backbone or "tiny"
    bench = Bench(
        name, skip_broken=own.skip_broken, workers=workers, draw=own.draw, test_share=None,
        allow_fewer=own.allow_fewer, template=own.template, beside_zero_shot=True, source=what.source,
    )  # fmt: skip
    settings(what.method, protocol=recipe, dataset=dataset.name, shots=shots, overrides=what.overrides)  # before a backbone is loaded
    clip = what.backbone if isinstance(what.backbone, Clip) else load_clip(name, device=where.device)
    context = Context(bench, clip, datasets={dataset.name: dataset})
    cells, untested = own_tests(training, context)
    key = context.training_key(training)
    job = Job(key, training, tuple((cell, context.test_key(cell, key)) for cell in cells), notes=tuple(untested))
    require_images([job], context)

    def keep(record: RunRecord) -> None:
        if where.out is not None and len(record.tests) == len(cells):
            folder = user_path(where.out)
            record.write(folder / RECORD_NAME)
            write_card(folder, read_config(folder), record)

    result = run(job, context, Place(where.out, where.resume, where.progress, workers, own.skip_broken), save=keep)
    for test in result.record.tests:
        if text := below_zero_shot(result.record.title, test):
            warnings.warn(text, BelowZeroShotWarning, stacklevel=2)
    return result


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


def fit(data: str | Path | Dataset | Data, **options: Any) -> Classifier:
    """Teach a classifier the classes of `data`; arguments as those of `train`.

    Example:
        `mmrl.fit("photos/", method="mmrlpp", backbone="tiny", shots=8, epochs=20, lam=0.5)`

    Raises:
        as `train`.
    """
    result = train(data, **options)
    assert result.fitted is not None
    taught = result.fitted.data
    return Classifier(
        result.method, trained=taught.classes, template=taught.template, trained_on=result.record.trained.dataset, draw=result.draw
    )


ADVISED = ("gda", "tip-adapter", "lpp", "linear-probe", "mmrl")


def advise(
    data: str | Path | Dataset | Data,
    *,
    methods: Sequence[str] = ADVISED,
    folds: int = 4,
    minutes: float = 10.0,
    new_classes: bool = False,
    say: Callable[[str], object] = lambda line: None,
    **options: Any,
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
    given = dict(options)
    own = _taking(data if isinstance(data, Data) else Data(data, shots=0), given)
    what, where = _taking(What(), given), _taking(Where(), given)
    dataset = own.load()
    overrides, recipe = values({**what.overrides, **given}), what.protocol or _recipe(own, dataset)
    race = Race(tuple(methods), folds, minutes, new_classes, what.seed, recipe, overrides)
    workers = usual_workers(dataset.read) if where.workers is None else where.workers
    clip = what.backbone if isinstance(what.backbone, Clip) else load_clip(what.backbone or "tiny", device=where.device)
    bench = Bench(clip.name, skip_broken=own.skip_broken, workers=workers, test_share=None, template=own.template, source=what.source)
    draw = own.draw if isinstance(own.draw, Draw) else draw_shots(dataset, own.shots, what.seed, allow_fewer=own.allow_fewer)
    return race_of(clip, dataset, draw, bench, race, say=say)


def from_pretrained(adapter: str | Path, *, backbone: str | Clip | None = None, device: str = AUTO) -> Classifier:
    """The classifier saved in a folder, or on a model hub under `ORG/NAME`.

    Args:
        backbone: another name or copy of the same weights; default: the one the adapter names.
        device: auto (the best there is), cpu, cuda, cuda:1, ...

    Raises:
        UsageError: no adapter there, or another backbone than it was made for.
        MmrlError: the files are damaged, or cannot be fetched.
    """
    folder = user_path(adapter)
    if not folder.exists():
        folder = _from_hub(str(adapter))
    clip = load_clip(backbone, device=device) if isinstance(backbone, str) else backbone
    method, config = load_adapter(folder, clip, device=device)
    draw = folder / DRAW_NAME
    return Classifier(
        method, trained=config.class_names, template=config.template, trained_on=config.dataset,
        draw=Draw.load(draw) if draw.is_file() else None,
    )  # fmt: skip


HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)


def _from_hub(name: str) -> Path:
    """Download an adapter; only its three files, none of which is code."""
    if not HUB_NAME.fullmatch(name) or Path(name).parent.is_dir():  # what lies in a folder that is here is no name on a hub
        raise UsageError(f"no adapter in '{name}': it is neither a folder that exists nor a hub name ORG/NAME.")
    from huggingface_hub import snapshot_download

    try:
        with without_waiting():
            return Path(snapshot_download(name, allow_patterns=["adapter_model.safetensors", "adapter_config.json", "README.md"]))
    except Exception as error:
        why = first_line(error).partition(". ")[0].rstrip(".")
        raise MmrlError(f"'{name}' is no folder here, and cannot be fetched from the model hub: {why}.") from error


def zero_shot(backbone: str | Clip = "tiny", *, template: Template = DEFAULT_TEMPLATE, device: str = AUTO) -> Classifier:
    """The frozen CLIP as a classifier: give `predict` the class names."""
    clip = backbone if isinstance(backbone, Clip) else load_clip(backbone, device=device)
    return Classifier(methods.build("zero-shot", clip), template=template)
