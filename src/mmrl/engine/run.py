"""One run: train on a draw, test, and record it. `mmrl train`, `mmrl bench` and `mmrl ablate` all come through here."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from mmrl import methods
from mmrl.clip import Clip
from mmrl.data import Broken, Dataset, Draw, Item, dataset_names, describe_broken, warn_broken
from mmrl.engine.adapter import read_config, write_trust
from mmrl.engine.calibrate import calibrate, temperature_among, without
from mmrl.engine.context import Bench, Context
from mmrl.engine.features import FeatureStore
from mmrl.engine.fit import FitResult, Place, TrainingData, fitting, items_hash
from mmrl.engine.jobs import Job
from mmrl.engine.open_world import open_world_test, parts_of
from mmrl.engine.parallel import joined
from mmrl.engine.progress import watched
from mmrl.engine.record import environment, thin
from mmrl.engine.score import Evaluation, scoring
from mmrl.engine.shared import Shared
from mmrl.engine.tested import TestPass
from mmrl.engine.turns import At, Turns, finish, timed
from mmrl.errors import MmrlError, Notice, UsageError
from mmrl.files import user_path
from mmrl.methods import Method
from mmrl.protocols import Cell, Training
from mmrl.protocols.plan import ZERO_SHOT, Classes
from mmrl.reports.records import SCHEMA, Option, RunRecord, TestRecord, TrainingRecord
from mmrl.trust.state import Trust

Save = Callable[[RunRecord], None]
SAW_TEST_IMAGES = (
    "selection=authors: selected on the data set's whole validation part, or on test images, as the authors did; test scores are flattered."
)
DRAW_NAME = "draw.json"  # in a run's folder: the images it was trained on
Split = Literal["train", "val", "test"]
TRAINED = 2**62  # where a test comes among turns: behind every epoch, so that runs are tested together


class UntestedWarning(UserWarning):
    """All images of some classes were drawn to train, and none is left to test on."""


class BelowZeroShotWarning(UserWarning):
    """Training ended with a lower accuracy than the frozen CLIP has."""


@dataclass(frozen=True)
class Tested:
    """One test: its record, and what was answered for each of `items`, images of `dataset`, but for those `found` to be broken.

    The probabilities of these answers are calibrated where there is a `temperature`; the record is never.
    """

    record: TestRecord
    dataset: Dataset
    items: Sequence[Item]
    found: Evaluation
    temperature: float | None = None


@dataclass(frozen=True)
class RunResult:
    """A finished run; `fitted` and `draw` are None for zero-shot CLIP. `tested` are the tests computed now, in the process that tests;
    `trust` is its calibration, if it has one."""

    method: Method
    fitted: FitResult | None
    record: RunRecord
    tested: tuple[Tested, ...] = ()
    draw: Draw | None = None
    trust: Trust | None = None


def run(job: Job, context: Context, place: Place, *, before: RunRecord | None = None, save: Save | None = None) -> RunResult:
    """Train what `job` says, and test it wherever `before` has no score yet.

    Where several processes train the run together, the main one tests and saves; the others wait for its record.

    Args:
        before: the record that the run has already.
        save: called with the record, after training and after every test.

    Raises:
        as `fit` and `evaluate_dataset`; what was saved is kept.
    """
    return finish(running(job, context, place, before=before, save=save))


def running(
    job: Job, context: Context, place: Place, *, before: RunRecord | None = None, save: Save | None = None, shared: Shared | None = None
) -> Turns[RunResult]:
    """As `run`, a training step or a batch of test images a turn.

    Args:
        shared: what the runs that take turns with this one train and are tested on; theirs and its own come from there, and are put there.
    """
    training = job.training
    if training and context.training_key(training) != job.key:
        raise MmrlError(f"the data of {training.dataset} changed since the plan was made; start the command again.")
    method = context.build(training) if training else methods.build(ZERO_SHOT, context.clip)
    started, fitted = datetime.now(timezone.utc), None
    with joined(context.clip.device) as peers:
        if training:
            shared = shared if peers.count == 1 else None
            data = _data(training, context, place, shared)
            fitted = yield from fitting(method, data, context.prepare(training).config, place, peers=peers)
        said: list[str] = []
        trust = peers.on_main(lambda: _calibrated(training, context, method, fitted, said))
        tested: list[Tested] = []
        begun = partial(_begun, job, context, fitted, started, before, said)
        tests = _testing(job, context, method, begun, save, tested, shared, trust)
        tests = watched(tests, place.watch) if place.watch else tests
        record = (yield from tests) if peers.count == 1 else peers.on_main(lambda: finish(tests))
    return RunResult(method, fitted, record, tuple(tested), context.prepare(training).draw if training else None, trust)


def _calibrated(
    training: Training | None, context: Context, method: Method, fitted: FitResult | None, said: list[str]
) -> Trust | None:  # fmt: skip
    """The calibration of a training, in its folder too if it has one; None where the bench asks for none, or too few images are left, which
    is told. What is `said` of images that were left out comes to the list."""
    if training is None or fitted is None or not context.bench.calibrate:
        return None
    if fitted.loaded and fitted.folder and (kept := read_config(fitted.folder).trust):
        return kept
    dataset, items, source, too_few = context.calibration(training)
    if not items:
        warnings.warn(f"{training.method} is not calibrated: {too_few}", Notice, stacklevel=2)
        return None
    try:
        skipped: list[Broken] = []
        trust = calibrate(
            method, dataset, items, seen=True, source=source, workers=context.bench.workers, skipped=skipped, store=context.features
        )
    except UsageError as error:  # none of them can be read: no reason to lose the training
        warnings.warn(f"{training.method} is not calibrated: {error}", Notice, stacklevel=2)
        return None
    said += warn_broken(skipped, len(items), of=dataset.name)
    if fitted.folder:
        write_trust(fitted.folder, trust)
    return trust


def _data(training: Training, context: Context, place: Place, shared: Shared | None) -> TrainingData:
    """What `training` trains on, of which there is one for all trainings that share."""
    ready, dataset, key = context.prepare(training), context.dataset(training.dataset), context.images_key(training)

    def make() -> TrainingData:
        part = dataset.restrict(training.classes)
        return TrainingData.of(context.clip, part, ready.draw, ready.config, place, store=context.features)

    if shared is None:
        return make()
    folder = None if place.out is None else user_path(place.out).parent  # the run's own may go before the others end
    return shared.data(key, make, ready.config, context.clip, folder=folder, processes=place.processes)


def _begun(
    job: Job, context: Context, fitted: FitResult | None, started: datetime, before: RunRecord | None, said: Sequence[str]
) -> RunRecord:  # fmt: skip
    """The record after training and what was `said` while calibrating, with the tests of `before`. A training that was only loaded is not
    described again."""
    described = before.training if before and fitted and fitted.loaded else None
    if job.training and fitted:
        described = described or _training_record(job, job.training, context, fitted, started, said)
        if fitted.folder:
            context.prepare(job.training).draw.save(fitted.folder / DRAW_NAME)
    name = job.training.method if job.training else ZERO_SHOT
    clip, tests = context.clip, before.tests if before else ()
    return RunRecord(
        schema=SCHEMA, key=job.key, method=name, title=methods.get(name).title, backbone=clip.name, backbone_hash=context.identity,
        training=described, tests=tests,
    )  # fmt: skip


def _training_record(
    job: Job, training: Training, context: Context, fitted: FitResult, started: datetime, said: Sequence[str]
) -> TrainingRecord:  # fmt: skip
    ready, dataset = context.prepare(training), context.dataset(training.dataset)
    return TrainingRecord(
        dataset=training.dataset,
        data=dataset.fingerprint,
        classes=training.classes,
        shots=ready.draw.shots,
        seed=training.seed,
        draw_hash=ready.draw.hash,
        images=fitted.data.images,
        protocol=training.recipe,
        template=fitted.data.template,
        options=tuple(Option.model_validate(option) for option in ready.resolved.to_json()),
        seconds=fitted.seconds,
        trained_parameters=sum(parameter.numel() for parameter in fitted.method.parameters()),
        history=thin(fitted.history),
        environment=environment(context.clip.device, started),
        warnings=(*job.notes, *fitted.data.warnings, *said, *((SAW_TEST_IMAGES,) if fitted.method.sees_test_images else ())),
    )


def _testing(
    job: Job, context: Context, method: Method, begun: Callable[[], RunRecord], save: Save | None, tested: list[Tested],
    shared: Shared | None, trust: Trust | None,
) -> Turns[RunRecord]:  # fmt: skip
    """The record that has `begun`, with every test of the job that it lacks; these are appended to `tested`, but for those of the open
    world, which share no pass."""
    record, bench, store = begun(), context.bench, context.features
    if save and (record.training or record.tests):
        save(record)
    known = {test.key for test in record.tests}
    for number, (cell, key) in enumerate(job.tests):
        if key in known:
            continue
        mine = _differing_at_test(cell, method, context)
        if cell.others is None:
            part, at = context.tested(cell), (TRAINED, number)
            trained = trust.classes if trust else ()  # a training is calibrated among all classes that it has
            temperature = temperature_among(trust, mine, part.classes, part.template, trained=trained)
            with _test_pass(context.clip, part, part.test, bench, store, shared) as images:
                passing = _examining(
                    mine, part, part.test, images, bench, seen=cell.seen, classes=cell.classes, temperature=temperature, at=at
                )
                tested.append((yield from passing))
            made = tested[-1].record
        else:
            made = open_world_test(mine, parts_of(cell, context), bench, store=store)
        record = record.model_copy(update={"tests": (*record.tests, made.model_copy(update={"key": key}))})
        if save:
            save(record)
    return record


def _differing_at_test(cell: Cell, method: Method, context: Context) -> Method:
    """`method`, or where the cell has options at test, its trained tensors in one with these."""
    if not cell.options:
        return method
    other = methods.build(cell.method, context.clip, context.options_at_test(cell), task=method.task)
    other.load_state_dict(method.state_dict(), strict=True)
    return other


@contextmanager
def _test_pass(
    clip: Clip, dataset: Dataset, items: Sequence[Item], bench: Bench, store: FeatureStore | None, shared: Shared | None = None
) -> Iterator[TestPass]:
    def make() -> TestPass:
        return TestPass(
            clip, dataset, items, batch_size=bench.batch_size, workers=bench.workers, skip_broken=bench.skip_broken, store=store
        )

    if shared is not None:
        yield shared.test_pass((dataset.name, dataset.fingerprint, dataset.classes, items_hash(items)), make)
        return
    with closing(make()) as own:
        yield own


def test(
    method: Method, dataset: Dataset, bench: Bench, *, seen: Tensor | bool, classes: Classes, split: Split = "test", rule: str = "",
    store: FeatureStore | None = None,
) -> TestRecord:  # fmt: skip
    """Test `method` on one split of `dataset`, which has the `classes` alone.

    Args:
        seen, rule: whether the classes were trained on, and why, from `seen_classes`.
        store: as in `evaluate_dataset`.

    Raises:
        as `evaluate_dataset`.
    """
    return examine(method, dataset, bench, seen=seen, classes=classes, split=split, rule=rule, store=store).record


def examine(
    method: Method, dataset: Dataset, bench: Bench, *, seen: Tensor | bool, classes: Classes, split: Split = "test", rule: str = "",
    store: FeatureStore | None = None, temperature: float | None = None,
) -> Tested:  # fmt: skip
    """As `test`, with what was answered for each image; its probabilities at the `temperature`."""
    items = getattr(dataset, split)
    with _test_pass(method.clip, dataset, items, bench, store) as images:
        return finish(
            _examining(method, dataset, items, images, bench, seen=seen, classes=classes, split=split, rule=rule, temperature=temperature)
        )


def _examining(
    method: Method, dataset: Dataset, items: Sequence[Item], images: TestPass, bench: Bench, *, seen: Tensor | bool, classes: Classes,
    split: Split = "test", rule: str = "", temperature: float | None = None, at: At = (),
) -> Turns[Tested]:  # fmt: skip
    """As `examine`, a batch of the pass a turn."""
    started = datetime.now(timezone.utc)
    passing = scoring(
        method, dataset, images, len(items), seen=seen, beside_zero_shot=bench.beside_zero_shot, temperature=temperature, at=at
    )
    found, seconds = yield from timed(passing)
    same = isinstance(seen, bool) or bool(seen.all()) or not bool(seen.any())
    record = TestRecord(
        key="",
        dataset=dataset.name,
        data=dataset.fingerprint,
        own_split=dataset.own_split,
        classes=classes,
        seen=(seen if isinstance(seen, bool) else bool(seen.any())) if same else tuple(torch.as_tensor(seen).tolist()),
        classifier=rule,
        split=split,
        options=method.options.model_dump(mode="json"),
        template=dataset.template,
        scores=found.adapted,
        zero_shot=found.zero_shot,
        seconds=seconds,
        environment=environment(method.clip.device, started),
        warnings=(),
    )
    said = [describe_broken(found.skipped, len(items), of=dataset.name)] if found.skipped else []
    below = below_zero_shot(method.title, record)
    return Tested(record.model_copy(update={"warnings": (*said, *([below] if below else []))}), dataset, items, found, temperature)


test.__test__ = False  # type: ignore[attr-defined]  # not a test of ours, whatever pytest makes of its name


def below_zero_shot(method: str, test: TestRecord) -> str | None:
    """A sentence for a user, where `method` did worse than zero-shot CLIP on the same images."""
    if test.zero_shot is None or test.scores.top1 >= test.zero_shot.top1:
        return None
    where = "all" if test.classes == "all" else f"the {test.classes}"
    return (
        f"{method} ended below zero-shot CLIP on {where} classes: {test.scores.top1:.1%} against {test.zero_shot.top1:.1%}. "
        "Use zero-shot there, or train with other values (a lower lr, fewer epochs, more regularisation)."
    )


def own_tests(training: Training, context: Context) -> tuple[list[Cell], list[str]]:
    """What a single run is tested on, and sentences on classes of which no image is left to test on.

    A draw of the base classes is tested on base classes (trained on) and novel ones (not), each among themselves, as in the paper; a draw
    of all classes on all. A method with a closed vocabulary is tested on classes that it was trained on alone.

    Warns:
        Notice: how many images there are, train and are held out to test; that the method is not tested on novel classes.
        UntestedWarning: of some classes none is left to.

    Raises:
        UsageError: the set's own test part has none of the classes of a part.
    """
    dataset, drawn = context.dataset(training.dataset), context.prepare(training).draw.train
    names: list[Classes] = ["all"] if training.classes == "all" else ["base", "novel"] if len(dataset.classes) > 1 else ["base"]
    cells = [Cell("train", training, training.dataset, name, seen=name == training.classes) for name in names]
    able = [cell for cell in cells if context.applicable(cell)]
    if len(able) < len(cells):
        said = f"method '{training.method}' knows only the classes it is trained on, so it is not tested on the others."
        warnings.warn(said, Notice, stacklevel=4)
    parts = [(cell, context.tested(cell)) for cell in able]
    apart = context.calibration(training).items  # of which those that are no test images are not there to be taken away
    warnings.warn(_counts(dataset, context.prepare(training).draw, apart), Notice, stacklevel=4)
    if not dataset.rest_tests:
        empty = next((cell.classes for cell, part in parts if not part.test), None)
        if empty:
            raise UsageError(f"'{dataset.name}' has no test images of its {empty} classes, so the run could not be scored; add some.")
        return able, []
    held_out = without(dataset.held_out(drawn), apart)
    counts = Counter(item.label for item in held_out.test)
    bare = [name for label, name in enumerate(held_out.classes) if not counts[label]]
    if not bare:
        return able, []
    some = ", ".join(bare[:5]) + (f" and {len(bare) - 5} more" if len(bare) > 5 else "")
    text = f"no image of '{dataset.name}' is left to test on of {some}: fewer shots, or a folder of test images, would leave some."
    warnings.warn(text, UntestedWarning, stacklevel=4)
    return [cell for cell, part in parts if part.test], [text]


def _counts(dataset: Dataset, draw: Draw, apart: Sequence[Item]) -> str:
    """'7 classes, 249 photos: 199 to train, 28 to calibrate, 22 held out', and what else there is of them."""
    tested, total = len(without(dataset.held_out(draw.train), apart).test), sum(map(len, (dataset.train, dataset.val, dataset.test)))
    parts = {"to train": len(draw.train), "to validate": len(draw.val), "to calibrate": len({*apart} - {*draw.val}), "held out": tested}
    parts["not used"] = total - sum(parts.values())
    what = "images" if dataset.name in dataset_names() else "photos"
    some = ", ".join(f"{count} {part}" for part, count in parts.items() if count or part in ("to train", "held out"))
    return f"{len(dataset.classes)} class{'es' if len(dataset.classes) != 1 else ''}, {total} {what}: {some}"
