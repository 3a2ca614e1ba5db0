"""The numbers of one study: accuracies of its plan's slots, over seeds and data sets, with the paper's where the setting is the paper's."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property

from mmrl.reports import paper
from mmrl.reports.cells import ABLATIONS, ZERO_SHOT, CellRecord, Plan, Slot
from mmrl.reports.records import harmonic_mean
from mmrl.reports.results import Results

PAPER_BACKBONES = ("ViT-B-16-quickgelu/openai", "ViT-B-16/openai")
PAPER_SHOTS = 16
TRANSFER = ("cross-dataset", "domain-generalisation")  # trained on one data set, tested on others

Seed = int | None  # None: zero-shot, which has no seed


@dataclass(frozen=True)
class Arm:
    """What a row of a table is about. `shots` is None for zero-shot, and in few-shot tables, whose columns they are."""

    method: str
    variant: str
    backbone: str
    shots: int | None


@dataclass(frozen=True)
class Measure:
    """A number of the report, in per cent, and what it is of.

    Attributes:
        arm, shots, dataset, metric: its place; `dataset` 'average' for one over data sets.
        mean: None where nothing is there yet.
        by_seed: the same number for each seed alone; of an average, for the seeds that all its data sets have.
        planned: number of seeds asked for.
        datasets: of an average: data sets it is over, and how many it should be over.
        dirty: whether something behind it was computed on a source tree with changes.
        own_splits: data sets behind it that have a published split and were split otherwise.
        paper: the value printed in the paper, where the setting and the splits are the paper's and nothing is missing.
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
    """Cells of one arm on one data set among some classes, by seed; None for one that is planned and not there."""

    cells: dict[Seed, CellRecord | None] = field(default_factory=dict)

    def values(self, quantity: str) -> dict[Seed, float]:
        found = ((seed, getattr(cell.scores, quantity)) for seed, cell in self.cells.items() if cell)
        return {seed: 100 * value for seed, value in found if value is not None}

    @property
    def dirty(self) -> bool:
        return any(cell is not None and bool(cell.environment.dirty) for cell in self.cells.values())

    @property
    def own_splits(self) -> frozenset[str]:
        return frozenset(cell.dataset for cell in self.cells.values() if cell and cell.own_split)


class StudyScores:
    """One plan with the cells that are there.

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
            self._seeds[key].cells[slot.seed] = results.cells.get(slot.key)
        arms = dict.fromkeys(arm for arm, *_ in self._seeds)
        self.arms = sorted(arms, key=lambda arm: arm.method != ZERO_SHOT)
        self.datasets = list(dict.fromkeys(slot.dataset for slot in plan.slots))
        self.shots = sorted({slot.shots for slot in plan.slots if slot.shots is not None})

    def _arm(self, slot: Slot) -> Arm:
        variant = slot.variant
        if self.study in TRANSFER and len(self.sources) > 1 and slot.trained_on:
            variant = ", ".join(filter(None, (variant, f"from {slot.trained_on}")))
        return Arm(slot.method, variant, slot.backbone, None if self.study == "few-shot" else slot.shots)

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
        return ("base", "novel", "hm") if any(classes == "base" for *_, classes in self._seeds) else ("all",)

    def cells(self, arm: Arm, dataset: str, classes: str, shots: int | None = None) -> list[CellRecord]:
        """What is there, by rising seed."""
        seeds = self._seeds.get((arm, shots, dataset, classes), _Seeds()).cells
        return [cell for _, cell in sorted(seeds.items(), key=lambda item: item[0] or 0) if cell]

    def measure(self, arm: Arm, dataset: str, metric: str, *, shots: int | None = None, quantity: str = "top1") -> Measure | None:
        """Over seeds. None if it was not planned.

        Args:
            metric: classes tested ('base', 'novel', 'all'), or 'hm': mean over seeds of each seed's harmonic mean.
            quantity: 'top1', or another fraction of `Scores`.
        """
        parts = [self._seeds.get((arm, shots, dataset, part)) for part in (("base", "novel") if metric == "hm" else (metric,))]
        there = [part for part in parts if part is not None]
        if len(there) < len(parts):
            return None
        values = [part.values(quantity) for part in there]
        by_seed = values[0]
        if metric == "hm":
            by_seed = {seed: harmonic_mean(base, values[1][seed]) for seed, base in values[0].items() if seed in values[1]}
        found = Measure(
            arm, dataset, metric, statistics.fmean(by_seed.values()) if by_seed else None, by_seed,
            planned=max(len(part.cells) for part in there), shots=shots, dirty=any(part.dirty for part in there),
            own_splits=frozenset().union(*(part.own_splits for part in there)),
        )  # fmt: skip
        return self._beside(found) if quantity == "top1" else found

    def average(
        self, arm: Arm, metric: str, *, shots: int | None = None, datasets: Sequence[str] | None = None, quantity: str = "top1"
    ) -> Measure | None:
        """Mean over data sets of their means. The HM is that of the averaged base and novel, as in the paper ('mean hm': mean of the HMs).

        Args:
            datasets: over which; default: all the study tests (but its source).
        """
        names = self.targets if datasets is None else datasets
        if metric == "hm":
            halves = [self.average(arm, part, shots=shots, datasets=names, quantity=quantity) for part in ("base", "novel")]
            return self._beside(_combined(halves[0], halves[1])) if halves[0] and halves[1] else None
        each = [self.measure(arm, name, metric.removeprefix("mean "), shots=shots, quantity=quantity) for name in names]
        planned = [measure for measure in each if measure]
        if not planned:
            return None
        there = [measure for measure in planned if measure.by_seed]
        shared = [seed for seed in there[0].by_seed if all(seed in other.by_seed for other in there)] if there else []
        found = Measure(
            arm, paper.AVERAGE, metric,
            statistics.fmean(statistics.fmean(measure.by_seed.values()) for measure in there) if there else None,
            {seed: statistics.fmean(measure.by_seed[seed] for measure in there) for seed in shared},
            planned=max(measure.planned for measure in planned), shots=shots,
            datasets=(len(there), len(names)), dirty=any(measure.dirty for measure in there),
            own_splits=frozenset().union(*(measure.own_splits for measure in there)),
        )  # fmt: skip
        return self._beside(found) if quantity == "top1" else found

    def _beside(self, measure: Measure) -> Measure:
        """With the paper's value, where the setting and the splits are the paper's and nothing is missing."""
        arm = measure.arm
        if self.plan.suite != "paper" or arm.backbone not in PAPER_BACKBONES or not measure.complete or measure.own_splits:
            return measure
        if measure.datasets and measure.datasets[1] != len(paper.DATASETS) - (self.study == "cross-dataset"):
            return measure
        return replace(measure, paper=self._printed(measure))

    def _printed(self, measure: Measure) -> paper.Printed | None:
        arm, dataset, metric = measure.arm, measure.dataset, measure.metric
        if metric.startswith("mean ") or (arm.shots not in (None, PAPER_SHOTS)):
            return None
        if self.study in ABLATIONS:
            return paper.ablation(self.study, arm.variant, dataset, metric) if arm.method == "mmrl" else None
        if arm.variant:
            return None
        if self.study == "few-shot":
            return paper.few_shot(arm.method, dataset, measure.shots) if measure.shots else None
        lookups: dict[str, Callable[[], paper.Printed | None]] = {
            "base-to-novel": lambda: paper.base_to_novel(arm.method, dataset, metric),
            "cross-dataset": lambda: paper.cross_dataset(arm.method, dataset),
            "domain-generalisation": lambda: paper.domain_generalisation(arm.method, dataset),
        }
        return lookups[self.study]() if self.study in lookups else None


def _combined(base: Measure, novel: Measure) -> Measure:
    """The harmonic mean of two averages."""
    by_seed = {seed: harmonic_mean(value, novel.by_seed[seed]) for seed, value in base.by_seed.items() if seed in novel.by_seed}
    mean = None if base.mean is None or novel.mean is None else harmonic_mean(base.mean, novel.mean)
    assert base.datasets and novel.datasets
    return Measure(
        base.arm, base.dataset, "hm", mean, by_seed, planned=base.planned, shots=base.shots,
        datasets=min(base.datasets, novel.datasets), dirty=base.dirty or novel.dirty,
        own_splits=base.own_splits | novel.own_splits,
    )  # fmt: skip


def same_arm(arms: Iterable[Arm], method: str, **more: object) -> list[Arm]:
    """The arms of `method` whose other fields are as given."""
    return [arm for arm in arms if arm.method == method and all(getattr(arm, name) == value for name, value in more.items())]
