"""What the open-world study's tests found, over seeds and data sets."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from mmrl.reports.measures import Arm, Measure, Seed, StudyScores
from mmrl.reports.paper import AVERAGE
from mmrl.reports.records import OpenWorldRecord, harmonic_mean

Number = Callable[[OpenWorldRecord], tuple[float, ...] | None]  # in per cent; of two, the harmonic mean is asked for


@dataclass(frozen=True)
class Study:
    """The blocks of a study's tests, by arm and data set."""

    scores: StudyScores

    @cached_property
    def found(self) -> dict[tuple[Arm, str], dict[Seed, OpenWorldRecord]]:
        places = [(arm, dataset) for arm in self.scores.arms for dataset in self.scores.datasets]
        tests = {place: self.scores.by_seed(*place, "all") for place in places}
        return {place: {seed: test.open_world for seed, test in each.items() if test.open_world} for place, each in tests.items()}

    def measure(self, arm: Arm, dataset: str, metric: str, number: Number, variant: str = "") -> Measure | None:
        """Of one data set, or of 'average'; None where the tests that are there have no such number, or none is planned.

        Args:
            variant: added to the arm's.
        """
        names = self.scores.datasets if dataset == AVERAGE else [dataset]
        place = self.scores.average(arm, "all") if dataset == AVERAGE else self.scores.measure(arm, dataset, "all")
        if place is None:
            return None
        shown = replace(arm, variant=", ".join(filter(None, (arm.variant, variant))))
        place = replace(place, arm=shown, metric=metric, paper=None, mean=None, by_seed={})
        tables = [{seed: value for seed, block in self.found[arm, name].items() if (value := number(block))} for name in names]
        there = [table for table in tables if table]
        if not there:
            return None if any(self.found[arm, name] for name in names) else place
        seeds = [seed for seed in there[0] if all(seed in table for table in there)]
        mean = one([columns(table.values()) for table in there])
        return replace(place, mean=mean, by_seed={seed: one([table[seed] for table in there]) for seed in seeds})


def columns(values: Iterable[tuple[float, ...]]) -> tuple[float, ...]:
    """The mean of each column."""
    return tuple(statistics.fmean(column) for column in zip(*values, strict=True))


def one(values: Sequence[tuple[float, ...]]) -> float:
    """The mean over places, or the harmonic mean of both means."""
    means = columns(values)
    return means[0] if len(means) == 1 else harmonic_mean(*means)


def names_of_rules(blocks: Iterable[OpenWorldRecord]) -> list[str]:
    return list(dict.fromkeys(each.rule for block in blocks for each in block.rules))
