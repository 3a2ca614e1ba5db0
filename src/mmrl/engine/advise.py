"""Which method to take, told without test images: each is trained without a part of the training images and tested on it, in turn."""

from __future__ import annotations

import random
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from mmrl import methods
from mmrl.clip import Clip
from mmrl.data import Dataset, Draw, Item
from mmrl.engine.context import Bench, Context, settings
from mmrl.engine.cost import measure_in
from mmrl.engine.fit import Place
from mmrl.engine.jobs import Job
from mmrl.engine.overrides import own_options
from mmrl.engine.run import run
from mmrl.errors import MmrlError, Notice, UsageError
from mmrl.protocols import Cell, Training
from mmrl.protocols.plan import ZERO_SHOT, Values, values

STEPS = 2  # timed before a race, to see whether a method fits into the time that is left
Say = Callable[[str], object]


@dataclass(frozen=True)
class Race:
    """What is compared, and how.

    Attributes:
        methods: names, in the order in which they run; zero-shot CLIP always runs first.
        folds: parts that the training images of each class are divided into, at least 2.
        minutes: in all; a method that would take longer than what is left does not run.
        new_classes: whether only methods that can classify among classes they were not trained on are of use.
        seed: of the folds and of the trainings.
        recipe: protocol whose published values are taken.
        overrides: options of training, of the methods that have them, and, as 'METHOD.KEY', of one method.
    """

    methods: tuple[str, ...]
    folds: int = 4
    minutes: float = 10.0
    new_classes: bool = False
    seed: int = 1
    recipe: str = "base-to-novel"
    overrides: Values = ()


@dataclass(frozen=True)
class Entrant:
    """A method of the race.

    Attributes:
        correct, count: of the training images, each tested by the training that did not see it; 0 of 0 where it did not run.
        open_vocabulary: whether it can classify among new classes.
        seconds: of a training, mean over the folds, or as estimated where it did not run; 0 for zero-shot CLIP.
        memory_gib: most that a training took.
        why_not: why it did not run to the end, or ''.
    """

    method: str
    title: str
    open_vocabulary: bool
    correct: int = 0
    count: int = 0
    seconds: float = 0.0
    memory_gib: float = 0.0
    why_not: str = ""

    @property
    def accuracy(self) -> float:
        """Top-1 from 0 to 1."""
        return self.correct / self.count

    @property
    def interval(self) -> tuple[float, float]:
        """95% interval of the accuracy (Wilson), from 0 to 1, over images; that trainings differ by their seeds is not in it."""
        from scipy.stats import binomtest  # here, since it takes a second, and classifying needs none of it

        found = binomtest(self.correct, self.count).proportion_ci(0.95, method="wilson")
        return float(found.low), float(found.high)


@dataclass(frozen=True)
class Advice:
    """What a race found.

    Attributes:
        dataset, classes, images, folds: what it ran on.
        entrants: those that ran, the best first, then the others.
        best: name of the method to take: the most accurate, and of equally accurate ones the quicker to train.
    """

    dataset: str
    classes: int
    images: int
    folds: int
    entrants: tuple[Entrant, ...]
    best: str

    @property
    def as_good(self) -> tuple[str, ...]:
        """Methods whose interval has the best one's accuracy in it, so that these images do not tell them apart."""
        first = self.entrants[0]
        others = (each for each in self.entrants[1:] if not each.why_not)
        return tuple(each.method for each in others if each.interval[1] >= first.accuracy)


    def as_json(self) -> dict[str, Any]:
        """For programs."""
        about = {"dataset": self.dataset, "classes": self.classes, "images": self.images, "folds": self.folds, "best": self.best}
        rows = [
            asdict(each) | ({"accuracy": each.accuracy, "interval": each.interval} if each.count else {"accuracy": None, "interval": None})
            for each in self.entrants
        ]
        return about | {"as_good": self.as_good, "methods": rows}


def advise(clip: Clip, dataset: Dataset, draw: Draw, bench: Bench, race: Race, *, say: Say = lambda line: None) -> Advice:
    """Run the race on the training images of `draw`; test images are not looked at, and its validation images select, as in a training.

    Args:
        say: called with a line for every method that is done.

    Raises:
        UsageError: unknown methods or options, fewer than 2 folds, or no class with 2 images.
    """
    if race.folds < 2:
        raise UsageError(f"folds is {race.folds}; a part is left out and tested in turn, so give 2 or more.")
    own = own_options(dict(race.overrides), list(dict.fromkeys(race.methods)))
    for name in race.methods:
        settings(name, protocol=race.recipe, dataset=dataset.name, overrides=own[name])
    parts = folds(dataset, draw, race.folds, race.seed)
    ends = time.monotonic() + 60 * race.minutes
    found: list[Entrant] = []
    for name in dict.fromkeys((ZERO_SHOT, *race.methods)):
        given = replace(race, overrides=values(own.get(name)))
        found.append(_entrant(name, clip, parts, bench, given, ends))
        say(line_of(found[-1]))
    able = [each for each in found if not each.why_not and (each.open_vocabulary or not race.new_classes)]
    able.sort(key=lambda each: (-each.accuracy, each.seconds))
    others = sorted((each for each in found if each not in able), key=lambda each: bool(each.why_not))
    return Advice(dataset.name, len(dataset.classes), len(draw.train), len(parts), (*able, *others), able[0].method)


def line_of(entrant: Entrant) -> str:
    """For people."""
    if entrant.why_not:
        return f"{entrant.method}: left out, {entrant.why_not}"
    return f"{entrant.method}: {entrant.accuracy:.1%} of {entrant.count} images, {entrant.seconds:.1f} s a training"


def folds(dataset: Dataset, draw: Draw, count: int, seed: int) -> list[Dataset]:
    """`dataset` for each fold, with the fold's training images of `draw` as test images, the others to train on, and its validation images.

    The images of a class go to the folds in turn. A class with one image is in no fold, and always trained on.

    Raises:
        UsageError: no class has two images.
    """
    items, by_class = draw.train, defaultdict[int, list[Item]](list)
    for item in items:
        by_class[item.label].append(item)
    generator, fold_of, first = random.Random(seed), dict[Item, int](), 0
    for label in sorted(by_class):
        own = by_class[label]
        generator.shuffle(own)
        if len(own) > 1:
            fold_of |= {item: (first + place) % count for place, item in enumerate(own)}
            first += len(own)  # small classes begin where the last one ended, so that folds are alike in size
    if not fold_of:
        raise UsageError(f"every class of '{dataset.name}' has one training image, so none can be left out to test on. Give two or more.")
    made = []
    for fold in range(count):
        test = [item for item in items if fold_of.get(item) == fold]
        train = [item for item in items if fold_of.get(item) != fold]
        made.append(replace(dataset, train=train, val=draw.val, test=test, rest_tests=False, own_split=False))
    return [part for part in made if part.test]


def _entrant(name: str, clip: Clip, parts: Sequence[Dataset], bench: Bench, race: Race, ends: float) -> Entrant:
    """A method with its numbers, or with why it has none."""
    contexts = [Context(bench, clip, datasets={part.name: part}) for part in parts]
    trainings = [_training(name, part, race) for part in parts]
    cell = Cell("advise", trainings[0], parts[0].name, "all", seen=False)
    entrant = Entrant(name, methods.get(name).title, contexts[0].applicable(cell))
    if race.new_classes and not entrant.open_vocabulary:
        return replace(entrant, why_not="it knows no new classes")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Notice)  # that there is nothing to validate on
        try:
            return _raced(entrant, parts[0].name, list(zip(contexts, trainings)), ends)
        except MmrlError as error:
            if name == ZERO_SHOT:  # what it cannot do, none can
                raise
            return replace(entrant, why_not=f"it failed: {error}")


def _raced(entrant: Entrant, dataset: str, folds: Sequence[tuple[Context, Training | None]], ends: float) -> Entrant:
    """`entrant` with the sum over the folds; where the time left is too short for all of them, with why it stopped."""
    context, training = folds[0]
    if training and time.monotonic() > ends:
        return replace(entrant, why_not="no time was left")
    if training:
        cost = measure_in(context, dataset, training, STEPS)
        entrant = replace(entrant, seconds=60 * (cost.train_minutes or 0.0), memory_gib=cost.peak_memory_gib)
    correct, count, seconds = 0, 0, list[float]()
    for place, (context, training) in enumerate(folds):
        needed = (len(folds) - place) * (sum(seconds) / place if place else entrant.seconds)
        if training and time.monotonic() + needed > ends:
            return replace(entrant, why_not=f"it needs about {needed:.0f} s more, over the time that is left")
        cell = Cell("advise", training, dataset, "all", seen=training is not None)
        place_of = Place(progress=False, workers=context.bench.workers, skip_broken=context.bench.skip_broken)
        record = run(Job(context.run_key(cell), training, ((cell, ""),)), context, place_of).record
        seconds.append(record.training.seconds if record.training else 0.0)
        scores = record.tests[0].scores
        correct, count = correct + round(scores.top1 * scores.count), count + scores.count
    return replace(entrant, correct=correct, count=count, seconds=sum(seconds) / len(seconds))


def _training(name: str, part: Dataset, race: Race) -> Training | None:
    if name == ZERO_SHOT:
        return None
    images: dict[int, int] = defaultdict(int)
    for item in part.train:
        images[item.label] += 1
    return Training(name, part.name, "all", max(images.values()), race.seed, race.recipe, race.overrides)
