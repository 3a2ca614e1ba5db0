"""From a plan's cells to keys: hashes of all that decides each result. Cells of one training make a group, done together."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmrl import methods
from mmrl.clip import Clip
from mmrl.data import Dataset, GivenDraws, load_dataset
from mmrl.engine.setup import Prepared, prepare
from mmrl.errors import MmrlError, UsageError
from mmrl.protocols import Cell, Training
from mmrl.reports.cells import Slot

KEY_FORMAT = 2  # a new one whenever equal inputs give other numbers


@dataclass(frozen=True)
class Bench:
    """How the cells of a grid are computed; plain data, so that it can be sent to other processes.

    Attributes:
        root: the folder of the data sets.
        cache: folder for listings and drawn pictures.
        precision: of training and testing, as in `FitConfig`.
        skip_broken: leave broken images out instead of stopping.
        workers: threads that prepare images.
        batch_size: at test.
        draws: folder of draws to train on, for the data sets that it has some of (`mmrl.data.GivenDraws`).
        test_share: of each class's images, for folders and lists that do not say which images test.
    """

    backbone: str
    root: Path | None = None
    cache: Path | None = None
    precision: str = "fp32"
    skip_broken: bool = False
    workers: int = 0
    batch_size: int = 100
    draws: Path | None = None
    test_share: float = 0.5


@dataclass(frozen=True)
class Group:
    """A training (None: zero-shot CLIP) and the cells that test it, each with its key; `key` names the group's files."""

    key: str
    training: Training | None
    cells: tuple[tuple[Cell, str], ...]

    @property
    def label(self) -> str:
        """For people."""
        if self.training is None:
            return f"zero-shot on {self.cells[0][0].dataset}"
        t = self.training
        set_ = "".join(f", {key}={value}" for key, value in t.overrides)
        return f"{t.method} on {t.dataset} ({t.classes} classes, {t.shots or 'all'} shots{set_}), seed {t.seed}"


class Context:
    """A bench with its backbone: reads data sets once, and knows every key."""

    def __init__(self, bench: Bench, clip: Clip) -> None:
        self.bench, self.clip = bench, clip
        self.identity = clip.identity
        self._datasets: dict[str, Dataset] = {}
        self._prepared: dict[Training, Prepared] = {}
        self._draws = GivenDraws(bench.draws) if bench.draws else None
        self.given: set[str] = set()  # data sets whose draws were given

    def dataset(self, name: str) -> Dataset:
        """The data set, whose test images are the same for every training on it."""
        if name not in self._datasets:
            found = load_dataset(name, root=self.bench.root, cache=self.bench.cache)
            self._datasets[name] = found.divided(self.bench.test_share) if found.rest_tests else found
        return self._datasets[name]

    def prepare(self, training: Training) -> Prepared:
        """Values and draw of a training. As in the CoOp family, a class with fewer images than asked for gives all it has."""
        if training not in self._prepared:
            overrides = {"precision": self.bench.precision, **dict(training.overrides)}
            dataset, draw = self.dataset(training.dataset), None
            if self._draws:
                draw = self._draws.draw(dataset, training.shots, training.seed, training.classes)
                self.given |= {training.dataset} if draw else set()
            self._prepared[training] = prepare(
                training.method, dataset, shots=training.shots, classes=training.classes, seed=training.seed,
                protocol=training.recipe, overrides=overrides, allow_fewer=True, source="plan",
                skip_broken=self.bench.skip_broken, workers=self.bench.workers, draw=draw,
            )  # fmt: skip
        return self._prepared[training]

    def training_key(self, training: Training, ready: Prepared) -> str:
        dataset = self.dataset(training.dataset)
        return _hash(
            method=training.method,
            options=_validated(training.method, ready.resolved.method),
            fit=ready.config.identity(),
            backbone=self.identity,
            dataset=dataset.name,
            data=dataset.fingerprint,
            template=dataset.template,
            classes=training.classes,
            draw=ready.draw.hash,
            images=ready.usable,
        )

    def cell_key(self, cell: Cell, training: str | None, options: dict[str, Any]) -> str:
        dataset = self.dataset(cell.dataset)
        return _hash(
            method=cell.method,
            training=training,
            options=options,
            backbone=self.identity,
            dataset=dataset.name,
            data=dataset.fingerprint,
            template=dataset.template,
            classes=cell.classes,
            seen=cell.seen,
            precision=self.bench.precision,
            skip_broken=self.bench.skip_broken,
        )

    def setting(self, cell: Cell) -> str:
        """What the cells of a table's row must share, besides what their slots say."""
        names = dict.fromkeys((cell.dataset, *((cell.training.dataset,) if cell.training else ())))
        data = [(self.dataset(name).fingerprint, self.dataset(name).template) for name in names]
        return _hash(backbone=self.identity, data=data, precision=self.bench.precision, skip_broken=self.bench.skip_broken)


def _hash(**decides: Any) -> str:
    text = json.dumps({"format": KEY_FORMAT, **decides}, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:20]


def options_at_test(cell: Cell, ready: Prepared | None) -> dict[str, Any]:
    """Options of the method that a cell tests with."""
    return _validated(cell.method, {**(ready.resolved.method if ready else {}), **dict(cell.options)})


def _validated(method: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """As the method gets them: a 1 that was typed for a fraction is the recipe's 1.0, and no reason to train again."""
    return methods.make_options(methods.get(method), options).model_dump(mode="json")


def bind(cells: Sequence[Cell], context: Context) -> tuple[list[Group], list[Slot]]:
    """Groups to compute, each once however many studies ask for it, and a slot for every cell.

    Raises:
        UsageError: unknown methods or options, data sets that are missing or unfit: all of them in one message.
    """
    _check(cells, context)
    bound: dict[str, tuple[Training | None, dict[str, Cell]]] = {}
    slots: list[Slot] = []
    keys: dict[Training, str] = {}
    for cell in cells:
        prepared, training = None, None
        if cell.training is not None:
            prepared = context.prepare(cell.training)
            if cell.training not in keys:
                keys[cell.training] = context.training_key(cell.training, prepared)
            training = keys[cell.training]
        key = context.cell_key(cell, training, options_at_test(cell, prepared))
        group = training or _hash(zero_shot=cell.dataset, data=context.dataset(cell.dataset).fingerprint, backbone=context.identity)
        bound.setdefault(group, (cell.training, {}))[1][key] = cell
        slots.append(_slot(cell, key, training, group, context))
    groups = [Group(key, training, tuple((cell, k) for k, cell in tests.items())) for key, (training, tests) in bound.items()]
    return groups, slots


def _slot(cell: Cell, key: str, training: str | None, group: str, context: Context) -> Slot:
    t = cell.training
    return Slot(
        study=cell.study, method=cell.method, variant=cell.variant, backbone=context.clip.name,
        trained_on=t.dataset if t else None, shots=t.shots if t else None, seed=t.seed if t else None,
        dataset=cell.dataset, classes=cell.classes, seen=cell.seen, key=key, training=training, group=group, setting=context.setting(cell),
    )  # fmt: skip


def _check(cells: Iterable[Cell], context: Context) -> None:
    """Everything that would fail later, found before anything is computed."""
    problems: list[MmrlError] = []
    built: set[str] = set()
    tested = dict.fromkeys((cell.dataset, cell.classes) for cell in cells)
    trained = dict.fromkeys(cell.training for cell in cells if cell.training)
    named = dict.fromkeys((*(name for name, _ in tested), *(training.dataset for training in trained)))
    for name in list(named):
        try:
            context.dataset(name)
        except MmrlError as error:
            problems.append(error)
            del named[name]
    for name, classes in tested:
        if name in named:
            problems += _unfit(context.dataset(name), classes)
    for training in trained:
        if training.dataset in named:
            try:
                options = context.prepare(training).resolved.method
                if (what := _hash(method=training.method, options=options)) not in built:
                    built.add(what)
                    methods.build(training.method, context.clip, options)  # some options do not suit every backbone
            except MmrlError as error:
                problems.append(error)
    if problems:
        lines = list(dict.fromkeys(str(problem) for problem in problems))
        kind = UsageError if all(isinstance(problem, UsageError) for problem in problems) else MmrlError
        raise kind("\n".join(lines))


def _unfit(dataset: Dataset, classes: str) -> list[MmrlError]:
    try:
        part = dataset.restrict(classes)
    except MmrlError as error:
        return [error]
    if part.test:
        return []
    which = "" if classes == "all" else f" of its {classes} classes"
    return [UsageError(f"'{dataset.name}' has no test images{which}, so nothing can be scored on it. Check its split.")]
