"""The numbers of one study: accuracies of its plan's slots, over seeds and data sets, with the paper's where the setting is the paper's."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property

from mmrl.reports import paper
from mmrl.reports.plans import ABLATIONS, ZERO_SHOT, Plan, Slot
from mmrl.reports.records import TestRecord, harmonic_mean
from mmrl.reports.results import Results

PAPER_BACKBONE = "ViT-B-16-quickgelu/openai"
PAPER_SHOTS = 16
PAPER_SOURCE = "imagenet"  # trained on, where tests are of other data sets
TRANSFER = ("cross-dataset", "domain-generalisation")  # trained on one data set, tested on others
HM, MEAN_HM = "hm", "mean hm"  # harmonic mean of base and novel means, as in the paper; mean of harmonic means
PAIRED = (HM, MEAN_HM)

Seed = int | None  # None: zero-shot, which has no seed


@dataclass(frozen=True)
class Arm:
    """What a row of a table is about.

    Attributes:
        shots: None for zero-shot, and in few-shot tables, whose columns they are.
        title: the method's name in tables and legends.
        published: the name of the method's rows in the paper's tables; '' if it has none there.
        paper_only: whether it was not run here: a row of the paper's table, `method` its name there.
    """

    method: str
    variant: str
    backbone: str
    shots: int | None
    title: str = field(compare=False)
    published: str = field(default="", compare=False)
    paper_only: bool = False


@dataclass(frozen=True)
class Measure:
    """A number of the report, in per cent, and what it is of.

    Attributes:
        arm, shots, dataset, metric: its place; `dataset` 'average' for one over data sets.
        mean: None where there is no score yet, or can be none. Of 'hm' the harmonic mean of the means of base and novel, not the mean of
            `by_seed`.
        by_seed: the same number for each seed alone; of an average, for the seeds that all its data sets have.
        planned: number of seeds asked for.
        datasets: of an average: data sets it is over, and how many it should be over.
        dirty: whether something behind it was computed on a source tree with changes.
        own_splits: data sets behind it that have a published split and were split otherwise.
        paper: the value printed in the paper, where the setting and the splits are the paper's and nothing is missing.
        applicable: False where the method cannot be tested: among classes it was not trained on, if it knows no others. An average is
            not applicable if any of its parts is not.

    One of an arm of the paper alone has `paper` and nothing else.
    """

    arm: Arm
    dataset: str
    metric: str
    mean: float | None
    by_seed: Mapping[Seed, float]
    planned: int
    shots: int | None = None
    datasets: tuple[int, int] | None = None
    dirty: bool = False
    own_splits: frozenset[str] = frozenset()
    paper: paper.Printed | None = None
    applicable: bool = True

    @property
    def std(self) -> float | None:
        """Sample standard deviation over seeds (ddof 1); None for fewer than two."""
        return statistics.stdev(self.by_seed.values()) if len(self.by_seed) > 1 else None

    @property
    def complete(self) -> bool:
        return len(self.by_seed) == self.planned > 0 and (self.datasets is None or self.datasets[0] == self.datasets[1])

    @property
    def delta(self) -> float | None:
        """Ours less the paper's."""
        return None if self.paper is None or self.mean is None else self.mean - self.paper.value

    def place(self) -> dict[str, object]:
        """Its keys in tidy tables."""
        own = asdict(self.arm) | ({} if self.shots is None else {"shots": self.shots})
        return own | {"dataset": self.dataset, "metric": self.metric}


@dataclass
class _Seeds:
    """Tests of one arm on one data set among some classes, by seed; None for one that is planned and missing."""

    tests: dict[Seed, TestRecord | None] = field(default_factory=dict)
    applicable: bool = True
    dirty: bool = False

    def values(self, quantity: str) -> dict[Seed, float]:
        found = ((seed, getattr(test.scores, quantity)) for seed, test in self.tests.items() if test)
        return {seed: 100 * value for seed, value in found if value is not None}

    @property
    def own_splits(self) -> frozenset[str]:
        return frozenset(test.dataset for test in self.tests.values() if test and test.own_split)


@dataclass
class _Halves:
    """What a number is made of on one data set: the tests of base and novel, or of one list of classes, and their accuracies by seed."""

    parts: Sequence[_Seeds]
    values: Sequence[Mapping[Seed, float]]

    @cached_property
    def seeds(self) -> list[Seed]:
        """Those that have all parts."""
        return [seed for seed in self.values[0] if all(seed in values for values in self.values)]

    def of(self, seed: Seed) -> list[float]:
        return [values[seed] for values in self.values]

    @property
    def means(self) -> list[float]:
        """Of each part, over `seeds`."""
        return [statistics.fmean(half) for half in zip(*map(self.of, self.seeds))]

    @property
    def planned(self) -> int:
        return max(len(part.tests) for part in self.parts)

    @property
    def applicable(self) -> bool:
        return all(part.applicable for part in self.parts)

    @property
    def dirty(self) -> bool:
        return any(part.dirty for part in self.parts)

    @property
    def own_splits(self) -> frozenset[str]:
        return frozenset().union(*(part.own_splits for part in self.parts))


class StudyScores:
    """One plan with the scores that are there.

    Attributes:
        arms: rows, in the plan's order, zero-shot first.
        datasets: tested on, in the plan's order.
        shots: numbers of shots, rising; for few-shot tables.
    """

    def __init__(self, results: Results, plan: Plan) -> None:
        self.plan = plan
        self.study = plan.study
        self.sources = list(dict.fromkeys(slot.trained_on for slot in plan.slots if slot.trained_on))
        self._seeds: dict[tuple[Arm, int | None, str, str], _Seeds] = defaultdict(_Seeds)
        for slot in plan.slots:
            key = self._arm(slot), self._column(slot), slot.dataset, slot.classes
            self._add(self._seeds[key], slot, results)
        arms = dict.fromkeys(arm for arm, *_ in self._seeds)
        self.arms = sorted(arms, key=lambda arm: arm.method != ZERO_SHOT)
        self.datasets = list(dict.fromkeys(slot.dataset for slot in plan.slots))
        self.shots = sorted({slot.shots for slot in plan.slots if slot.shots is not None})

    @staticmethod
    def _add(seeds: _Seeds, slot: Slot, results: Results) -> None:
        test = results.tests.get(slot.key) if slot.applicable else None
        seeds.tests[slot.seed] = test
        seeds.applicable &= slot.applicable
        if test:
            training = results.run_of[test.key].training
            seeds.dirty |= bool(test.environment.dirty or (training and training.environment.dirty))

    def _arm(self, slot: Slot) -> Arm:
        variant = slot.variant
        if self.study in TRANSFER and len(self.sources) > 1 and slot.trained_on:
            variant = ", ".join(filter(None, (variant, f"from {slot.trained_on}")))
        shots = None if self.study == "few-shot" else slot.shots
        return Arm(slot.method, variant, slot.backbone, shots, slot.title or slot.method, slot.published)

    def _column(self, slot: Slot) -> int | None:
        return slot.shots if self.study == "few-shot" else None

    @cached_property
    def source(self) -> str | None:
        """The data set trained on, where the study has one."""
        return self.sources[0] if self.study in TRANSFER and len(self.sources) == 1 else None

    @property
    def targets(self) -> list[str]:
        """Data sets that the average is over: all but the source."""
        return [name for name in self.datasets if name not in self.sources] if self.study in TRANSFER else self.datasets

    @property
    def metrics(self) -> tuple[str, ...]:
        return ("base", "novel", HM) if any(classes == "base" for *_, classes in self._seeds) else ("all",)

    def tests(self, arm: Arm, dataset: str, classes: str, shots: int | None = None) -> list[TestRecord]:
        """Those that are done, by rising seed."""
        return list(self.by_seed(arm, dataset, classes, shots).values())

    def by_seed(self, arm: Arm, dataset: str, classes: str, shots: int | None = None) -> dict[Seed, TestRecord]:
        """The same by seed."""
        seeds = self._seeds.get((arm, shots, dataset, classes), _Seeds()).tests
        return {seed: test for seed, test in sorted(seeds.items(), key=lambda item: item[0] or 0) if test}

    def _halves(self, arm: Arm, dataset: str, metric: str, shots: int | None, quantity: str) -> _Halves | None:
        names = ("base", "novel") if metric in PAIRED else (metric,)
        parts = [self._seeds.get((arm, shots, dataset, name)) for name in names]
        there = [part for part in parts if part is not None]
        return _Halves(there, [part.values(quantity) for part in there]) if len(there) == len(parts) else None

    def measure(self, arm: Arm, dataset: str, metric: str, *, shots: int | None = None, quantity: str = "top1") -> Measure | None:
        """Over seeds. None if it was not planned.

        Args:
            metric: classes tested ('base', 'novel', 'all'); 'hm': the paper's, the harmonic mean of mean base and mean novel accuracy over
                the seeds that have both; 'mean hm': the mean of those seeds' own harmonic means, never above it.
            quantity: 'top1', or another fraction of `Scores`.
        """
        if arm.paper_only:
            return self._paper_alone(arm, dataset, metric, shots)
        halves = self._halves(arm, dataset, metric, shots, quantity)
        return self._made(arm, dataset, metric, shots, quantity, [halves]) if halves else None

    def average(
        self, arm: Arm, metric: str, *, shots: int | None = None, datasets: Sequence[str] | None = None, quantity: str = "top1"
    ) -> Measure | None:
        """Mean over data sets of their means over seeds. None if nothing of it was planned.

        Args:
            metric: as for `measure`, but of data sets: 'hm' is the harmonic mean of the averaged base and novel, as in the paper;
                'mean hm' the mean over the data sets of each one's 'hm'. Both are over the data sets with base and novel of one seed.
            datasets: over which; default: all the study tests (but its source).
        """
        if arm.paper_only:
            return self._paper_alone(arm, paper.AVERAGE, metric, shots)
        names = self.targets if datasets is None else datasets
        each = [halves for name in names if (halves := self._halves(arm, name, metric, shots, quantity))]
        return self._made(arm, paper.AVERAGE, metric, shots, quantity, each, len(names)) if each else None

    def _made(
        self, arm: Arm, dataset: str, metric: str, shots: int | None, quantity: str, each: Sequence[_Halves], asked: int | None = None
    ) -> Measure:
        """From one data set, or the average over several of `asked`."""
        if not all(halves.applicable for halves in each):
            return Measure(arm, dataset, metric, None, {}, planned=0, shots=shots, applicable=False)
        there = [halves for halves in each if halves.seeds]
        shared = [seed for seed in there[0].seeds if all(seed in halves.seeds for halves in there)] if there else []
        found = Measure(
            arm, dataset, metric, _mean(there, metric, over_seeds=asked is None) if there else None,
            {seed: _joined([halves.of(seed) for halves in there], metric) for seed in shared},
            planned=max(halves.planned for halves in each), shots=shots, datasets=None if asked is None else (len(there), asked),
            dirty=any(halves.dirty for halves in there), own_splits=frozenset().union(*(halves.own_splits for halves in there)),
        )  # fmt: skip
        return self._beside(found) if quantity == "top1" else found

    def _beside(self, measure: Measure) -> Measure:
        """With the paper's value, where the setting and the splits are the paper's and nothing is missing."""
        if not self._as_published(measure.arm) or not measure.complete or measure.own_splits:
            return measure
        if measure.datasets and measure.datasets[1] != self._averaged:
            return measure
        return replace(measure, paper=self._printed(measure))

    def _as_published(self, arm: Arm) -> bool:
        """Whether the arm's setting is the paper's, whatever its method and options."""
        there = self.plan.suite == "paper" and (self.study not in TRANSFER or set(self.sources) <= {PAPER_SOURCE})
        return there and arm.backbone == PAPER_BACKBONE and arm.shots in (None, PAPER_SHOTS)

    @property
    def _averaged(self) -> int:
        """Data sets that the paper's averages are over."""
        return len(paper.DATASETS) - (self.study == "cross-dataset")

    @cached_property
    def paper_rows(self) -> list[Arm]:
        """A row for each method of the paper's table, in its order: ours where it was run as published, else one of the paper alone.

        Empty where the setting is not the paper's, or the paper has no such table.
        """
        ours = [arm for arm in self.arms if self._as_published(arm)]
        trained = [arm for arm in self.arms if arm.method != ZERO_SHOT]
        if not ours or (trained and not any(arm.method != ZERO_SHOT for arm in ours)):  # zero-shot has no shots of its own
            return []
        own = {arm.published: arm for arm in ours if not arm.variant}
        shots = None if self.study == "few-shot" else PAPER_SHOTS
        return [
            own.get(name) or Arm(name, "", PAPER_BACKBONE, None if name == paper.CLIP else shots, f"{name} (paper only)", name, True)
            for name in paper.methods(self.study)
        ]

    def _paper_alone(self, arm: Arm, dataset: str, metric: str, shots: int | None) -> Measure | None:
        """What the paper prints of a method that was not run here. None where it prints nothing, or our splits are others."""
        names = [dataset] if dataset in self.datasets else self.targets
        if dataset == paper.AVERAGE and len(names) != self._averaged:
            return None
        ours = (self._halves(mine, name, metric, shots, "top1") for mine in self.arms for name in names)
        if any(halves.own_splits for halves in ours if halves):
            return None
        found = Measure(arm, dataset, metric, None, {}, planned=0, shots=shots)
        printed = self._printed(found)
        return replace(found, paper=printed) if printed else None

    def _printed(self, measure: Measure) -> paper.Printed | None:
        arm, dataset, metric = measure.arm, measure.dataset, measure.metric
        if metric.startswith("mean "):
            return None
        if self.study in ABLATIONS:
            return paper.ablation(arm.published, self.study, arm.variant, dataset, metric)
        if arm.variant:
            return None
        if self.study == "few-shot":
            return paper.few_shot(arm.published, dataset, measure.shots) if measure.shots else None
        lookups: dict[str, Callable[[], paper.Printed | None]] = {
            "base-to-novel": lambda: paper.base_to_novel(arm.published, dataset, metric),
            "cross-dataset": lambda: paper.cross_dataset(arm.published, dataset),
            "domain-generalisation": lambda: paper.domain_generalisation(arm.published, dataset),
        }
        return lookups[self.study]() if self.study in lookups else None


def _joined(places: Sequence[Sequence[float]], metric: str) -> float:
    """One number from the (base, novel) pairs, or single accuracies, of several places. 'hm': of the averages; others: the mean of each."""
    if metric == HM:
        return harmonic_mean(*(statistics.fmean(half) for half in zip(*places)))
    return statistics.fmean(harmonic_mean(*place) if metric == MEAN_HM else place[0] for place in places)


def _mean(there: Sequence[_Halves], metric: str, *, over_seeds: bool) -> float:
    """Over the seeds of the only data set, or over data sets of their means over seeds."""
    return _joined([there[0].of(seed) for seed in there[0].seeds] if over_seeds else [halves.means for halves in there], metric)


def same_arm(arms: Iterable[Arm], method: str, **more: object) -> list[Arm]:
    """The arms of `method` whose other fields are as given."""
    return [arm for arm in arms if arm.method == method and all(getattr(arm, name) == value for name, value in more.items())]
