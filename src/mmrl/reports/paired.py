"""Differences between two sides, two methods or two results folders, paired by data set and seed, with bootstrap intervals."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from mmrl.reports.measures import HM, PAIRED, Arm, Seed, StudyScores
from mmrl.reports.paper import AVERAGE
from mmrl.reports.plans import ZERO_SHOT
from mmrl.reports.records import RunRecord, TestRecord, harmonic_mean
from mmrl.reports.results import Results
from mmrl.reports.sheets import Sheet, TableCell, signed
from mmrl.reports.tables import METRICS, Arms, title_of

RESAMPLES = 10_000
SHARE = 0.95
FEWEST = 3  # pairs, for an interval: of two, all resamples may lie on one side by chance
NOTE = (
    "Differences in points of per cent, first less second, of the same data sets and seeds; HM of averages, as in the paper; wins: data "
    "sets on which the first is higher. Intervals: "
    f"{SHARE:.0%}, percentiles of {RESAMPLES:,} resamples of the data sets and, within each, of the seeds. Of few data sets or seeds they "
    "are too narrow: three seeds have ten resamples."
)
Values = list[tuple[float, ...]]  # by seed: accuracies in per cent, of base and novel for HM, else one


@dataclass(frozen=True)
class Side:
    """One side of a comparison: a study of a results folder, and the arm in it."""

    results: Results
    scores: StudyScores
    arm: Arm
    name: str


@dataclass(frozen=True)
class Comparison:
    """`ours` less `other`, averaged over what both have.

    Attributes:
        row: what is compared: 'MMRL' or 'MMRL and CoOp', with the number of shots where there are several.
        dataset: 'average', or the one that it is of.
        low, high: ends of the interval; None where there are too few pairs to tell.
        better: data sets on which the first is higher.
        pairs: pairs of runs, the same data set and seed.
        redrawn: pairs trained on other images.
        strange: pairs left out, as the lists of the data set are others.
    """

    study: str
    row: str
    metric: str
    dataset: str
    ours: float
    other: float
    low: float | None
    high: float | None
    better: int
    datasets: int
    pairs: int
    redrawn: int = 0
    strange: int = 0

    @property
    def value(self) -> float:
        return self.ours - self.other

    @property
    def verdict(self) -> Literal["higher", "lower", "undecided"]:
        """Of the first side."""
        if self.low is None or self.high is None or self.low <= 0 <= self.high:
            return "undecided"
        return "higher" if self.low > 0 else "lower"


def compare(one: Side, two: Side, *, by_dataset: bool = False) -> Iterator[Comparison]:
    """Every metric, and number of shots, that both sides have."""
    same = one.arm.title == two.arm.title
    for ours, other in _columns(one, two):
        name = one.name if same and one.name == two.name else f"{one.name} and {two.name}"
        count = ours if ours is not None else other
        shots = (", 1 shot" if count == 1 else f", {count or 'all'} shots") if one.scores.study == "few-shot" else ""
        for metric in one.scores.metrics:
            found: dict[str, tuple[Values, Values]] = {}
            redrawn = strange = 0
            for dataset in (each for each in one.scores.targets if each in two.scores.targets):
                mine, theirs, drawn, odd = _pairs(one, two, dataset, metric, ours, other)
                redrawn, strange = redrawn + drawn, strange + odd
                if mine:
                    found[dataset] = mine, theirs
            if not found:
                continue
            whole = _compared(list(found.values()), metric)
            made = replace(whole, study=one.scores.study, row=name + shots, metric=metric, redrawn=redrawn, strange=strange)
            if len(found) > 1 or not by_dataset:
                yield made
            for dataset, values in found.items() if by_dataset else ():
                yield replace(_compared([values], metric), study=made.study, row=made.row, metric=metric, dataset=dataset)


def _columns(one: Side, two: Side) -> list[tuple[int | None, int | None]]:
    """Numbers of shots to look up: None for a study without, and for zero-shot."""
    if one.scores.study != "few-shot":
        return [(None, None)]
    of = [[None] if side.arm.method == ZERO_SHOT else side.scores.shots for side in (one, two)]
    if of[0] == [None] or of[1] == [None]:
        return [(a, b) for a in of[0] for b in of[1]]
    return [(shots, shots) for shots in one.scores.shots if shots in two.scores.shots]


def _pairs(one: Side, two: Side, dataset: str, metric: str, ours: int | None, other: int | None) -> tuple[Values, Values, int, int]:
    """Accuracies of both sides by shared seed; pairs with other draws; pairs of other data, which are left out."""
    halves = ("base", "novel") if metric in PAIRED else (metric,)
    mine = _complete([one.scores.by_seed(one.arm, dataset, half, ours) for half in halves])
    theirs = _complete([two.scores.by_seed(two.arm, dataset, half, other) for half in halves])
    if None in mine and None not in theirs:  # zero-shot, which is the same for every seed
        mine = dict.fromkeys(theirs, mine[None])
    if None in theirs and None not in mine:
        theirs = dict.fromkeys(mine, theirs[None])
    shared = [seed for seed in mine if seed in theirs]
    same = [seed for seed in shared if all(a.data == b.data for a, b in zip(mine[seed], theirs[seed]))]
    drawn = [{_draws(one, mine[seed][0]), _draws(two, theirs[seed][0])} - {""} for seed in same]
    values = [[tuple(100 * test.scores.top1 for test in side[seed]) for seed in same] for side in (mine, theirs)]
    return values[0], values[1], sum(len(hashes) > 1 for hashes in drawn), len(shared) - len(same)


def _complete(halves: Sequence[dict[Seed, TestRecord]]) -> dict[Seed, tuple[TestRecord, ...]]:
    """By seed, where all halves are there."""
    return {seed: tuple(half[seed] for half in halves) for seed in halves[0] if all(seed in half for half in halves)}


def _draws(side: Side, test: TestRecord) -> str:
    run: RunRecord | None = side.results.run_of.get(test.key)
    return run.training.draw_hash if run and run.training else ""


def _compared(sides: Sequence[tuple[Values, Values]], metric: str) -> Comparison:
    """Over data sets, each with the values of both sides by seed."""
    ours, other = (_number([_means(values[at]) for values in sides], metric) for at in (0, 1))
    better = sum(_number([_means(a)], metric) > _number([_means(b)], metric) for a, b in sides)
    low, high = interval(sides, metric)
    return Comparison("", "", metric, AVERAGE, ours, other, low, high, better, len(sides), sum(len(a) for a, _ in sides))


def _means(values: Values) -> list[float]:
    return [statistics.fmean(column) for column in zip(*values)]


def _number(places: Sequence[Sequence[float]], metric: str) -> float:
    means = [statistics.fmean(column) for column in zip(*places)]
    return harmonic_mean(*means) if metric == HM else means[0]


def interval(sides: Sequence[tuple[Values, Values]], metric: str, *, resamples: int = RESAMPLES) -> tuple[float | None, float | None]:
    """Ends of the difference's interval; both sides of a resample have the same data sets and seeds. None for fewer than `FEWEST` pairs."""
    counts = np.array([len(ours) for ours, _ in sides])
    if counts.sum() < FEWEST:
        return None, None
    most, parts = int(counts.max()), len(sides[0][0][0])
    table = np.zeros((2, len(sides), most, parts))
    for at, both in enumerate(sides):
        for side, values in enumerate(both):
            table[side, at, : len(values)] = values
    random = np.random.default_rng(0)
    chosen = random.integers(len(sides), size=(resamples, len(sides)))
    own = counts[chosen][..., None]  # (R, D, 1)
    seeds = (random.random((resamples, len(sides), most)) * own).astype(int)
    weights = (np.arange(most) < own) / own  # (R, D, S)
    means = (table[:, chosen[..., None], seeds] * weights[None, ..., None]).sum(3).mean(2)  # (2, R, D, S, k) to (2, R, k)
    if metric == HM:
        total = means.sum(-1)
        numbers = np.divide(2 * means.prod(-1), total, out=np.zeros_like(total), where=total > 0)
    else:
        numbers = means[..., 0]
    low, high = np.quantile(numbers[0] - numbers[1], [(1 - SHARE) / 2, (1 + SHARE) / 2])
    return float(low), float(high)


def arms_meant(scores: StudyScores, wanted: str) -> list[Arm]:
    """Arms that METHOD or METHOD:VARIANT means; a method alone is that with its recipe, where there is such an arm."""
    method, colon, variant = wanted.partition(":")
    arms = [arm for arm in scores.arms if arm.method == method]
    plain = [arm for arm in arms if arm.variant == variant]
    return plain if colon or plain else arms


def methods_meant(
    one: tuple[Results, StudyScores], two: tuple[Results, StudyScores], first: str, second: str
) -> Iterator[tuple[Side, Side]]:
    """Arms of `first` in the one study and of `second` in the other, which have the same backbone and shots."""
    for a in arms_meant(one[1], first):
        for b in arms_meant(two[1], second):
            if a.backbone == b.backbone and (a.shots == b.shots or None in (a.shots, b.shots)):
                yield Side(*one, a, Arms(one[1]).name(a)), Side(*two, b, Arms(two[1]).name(b))


def unlike(found: Sequence[Comparison]) -> list[str]:
    """Sentences about pairs that share less than their data set, classes and seed."""
    out = []
    if any(each.redrawn for each in found):
        out.append(f"{max(each.redrawn for each in found)} pairs were trained on different images, so they share no more than a seed.")
    if any(each.strange for each in found):
        out.append(f"{max(each.strange for each in found)} pairs are left out: their data sets have other lists of images.")
    return out


def comparison_sheet(found: Sequence[Comparison], one: str, two: str) -> Sheet:
    """As a table, without columns that say the same in each row; `one` and `two` name the sides."""
    columns: dict[str, list[TableCell]] = {
        "study": [title_of(each.study) for each in found],
        "of": [each.row for each in found],
        "metric": [METRICS[each.metric] for each in found],
        "data set": [each.dataset for each in found],
        "first": [f"{each.ours:.2f}" for each in found],
        "second": [f"{each.other:.2f}" for each in found],
        "difference": [signed(each.value) for each in found],
        "interval": ["" if each.low is None or each.high is None else f"{signed(each.low)} to {signed(each.high)}" for each in found],
        "wins": [f"{each.better} of {each.datasets}" for each in found],
        "pairs": [each.pairs for each in found],
        "first is": [each.verdict for each in found],
    }
    shown = [head for head, cells in columns.items() if head not in ("study", "of", "data set") or len(set(cells)) > 1]
    rows = tuple(zip(*(columns[head] for head in shown)))
    return Sheet("comparison", f"{one} less {two}", tuple(shown), rows, (NOTE, *unlike(found)), bold=False)
