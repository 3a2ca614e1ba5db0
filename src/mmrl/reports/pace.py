"""How long runs may take, told from the records of runs of the same machine."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from mmrl.reports.records import RunRecord

MACHINE = ("device", "cpu", "gpu")
Likeness = tuple[str, ...]


def images_seen(options: Mapping[str, Any], images: int) -> float:
    """Images that pass through the model in a training on `images` of them: what its time grows with."""
    if options.get("iterations"):
        return float(options["iterations"] * options.get("batch_size", 1) * options.get("accumulate", 1))
    return float(options.get("epochs", 1) * images)


def pool_of(options: Mapping[str, Any]) -> str:
    """How the training goes through a pool of views, in words; '' without one."""
    views, iterations, epochs = (options.get(name) for name in ("views", "iterations", "epochs"))
    if views is None or (not iterations and views >= (epochs or 1)):
        return ""
    return f"{views} views, {f'{iterations} steps' if iterations else f'{epochs} epochs'}"


class Pace:
    """Seconds an image, at training and at test, of the runs that were computed on a machine like `hardware`.

    Attributes:
        runs: number of them.
    """

    def __init__(self, runs: Iterable[RunRecord], hardware: Mapping[str, Any]) -> None:
        self._train: dict[Likeness, list[float]] = defaultdict(list)
        self._test: dict[Likeness, list[float]] = defaultdict(list)
        self.runs = 0
        for run in runs:
            own, training = (run.backbone, run.method), run.training
            tests = [test for test in run.tests if _same(test.environment.hardware, hardware)]
            if training and _same(training.environment.hardware, hardware):
                options = {option.key: option.value for option in training.options}
                each = training.seconds / max(1.0, images_seen(options, training.images))
                pool = pool_of(options)
                _note(self._train, each, (*own, training.dataset, pool), (*own, "", pool))
            for test in tests:
                _note(self._test, test.seconds / test.scores.count, (*own, test.dataset), own, (run.backbone,))
            self.runs += bool(tests)

    def training(self, backbone: str, method: str, dataset: str, seen: float, pool: str = "") -> float | None:
        """Seconds of a training of `method` that sees so many images; None where none of the method was recorded. With a `pool` (`pool_of`)
        of which none was, those of a new view of every image: it takes no more."""
        pools = dict.fromkeys((pool, ""))
        return _scaled(self._train, [(backbone, method, where, each) for each in pools for where in (dataset, "")], seen)

    def knows(self, backbone: str, method: str, pool: str) -> bool:
        """Whether a training with that pool was recorded."""
        return (backbone, method, "", pool) in self._train

    def test(self, backbone: str, method: str, dataset: str, images: int) -> float | None:
        """Seconds of a test on so many images; by tests of other methods where there are none of `method`."""
        return _scaled(self._test, ((backbone, method, dataset), (backbone, method), (backbone,)), images)


def _note(known: dict[Likeness, list[float]], value: float, *likeness: Likeness) -> None:
    for like in likeness:
        known[like].append(value)


def _same(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    return all(one.get(key) == other.get(key) for key in MACHINE)


def _scaled(known: Mapping[Likeness, list[float]], likeness: Iterable[Likeness], amount: float) -> float | None:
    """By the most similar ones."""
    found = next((known[like] for like in likeness if like in known), None)
    return None if found is None else statistics.median(found) * amount
