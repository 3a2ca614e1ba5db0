"""From a plan's cells to jobs: each training with all tests of it, computed once however many studies ask for it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from mmrl import methods
from mmrl.data import Item, require_files
from mmrl.engine.context import Context, hash_of
from mmrl.errors import MmrlError, UsageError
from mmrl.protocols import Cell, Training
from mmrl.reports.plans import Slot


@dataclass(frozen=True)
class Job:
    """A training (None: zero-shot CLIP) and the cells that test it, each with its key.

    `key` is that of the run's record, and `notes` are sentences for it. Jobs with the same `images` (`Context.images_key`) train on the
    same ones in the same order, and can share them.
    """

    key: str
    training: Training | None
    tests: tuple[tuple[Cell, str], ...]
    notes: tuple[str, ...] = ()
    images: str = ""

    @property
    def label(self) -> str:
        """For people."""
        if self.training is None:
            return f"zero-shot on {self.tests[0][0].dataset}"
        t = self.training
        set_ = "".join(f", {key}={value}" for key, value in t.overrides)
        return f"{t.method} on {t.dataset} ({t.classes} classes, {t.shots or 'all'} shot{'' if t.shots == 1 else 's'}{set_}), seed {t.seed}"


def bind(cells: Sequence[Cell], context: Context) -> tuple[list[Job], list[Slot]]:
    """Jobs to compute, and a slot for every cell. A cell that is not applicable to its method has a slot alone.

    Raises:
        UsageError: unknown methods or options, data sets that are missing or unfit: all of them in one message.
    """
    _check(cells, context)
    bound: dict[str, tuple[Training | None, dict[str, Cell]]] = {}
    slots: list[Slot] = []
    keys: dict[Training | str, str] = {}
    for cell in cells:
        run = keys.setdefault(cell.training or cell.dataset, "") or context.run_key(cell)
        keys[cell.training or cell.dataset] = run
        slot = _slot(cell, context.test_key(cell, run if cell.training else None), run, context)
        slots.append(slot)
        if slot.applicable:
            bound.setdefault(run, (cell.training, {}))[1][slot.key] = cell
    jobs = [
        Job(key, training, tuple((cell, k) for k, cell in tests.items()), images=context.images_key(training) if training else "")
        for key, (training, tests) in bound.items()
    ]
    return jobs, slots


def carried(cells: Sequence[Cell], context: Context) -> tuple[list[Cell], list[str]]:
    """Those cells whose method the backbone can carry, and why not the others; what else is wrong is `bind`'s to say."""
    refused: dict[Training, str] = {}
    tried: dict[str, str] = {}
    for training in dict.fromkeys(cell.training for cell in cells if cell.training):
        try:
            what = hash_of(method=training.method, options=context.prepare(training).resolved.method)
        except MmrlError:
            continue
        if what not in tried:
            try:
                context.build(training)
                tried[what] = ""
            except UsageError as error:
                tried[what] = str(error)
        if tried[what]:
            refused[training] = f"{training.method}: {tried[what]}"
    return [cell for cell in cells if cell.training not in refused], list(dict.fromkeys(refused.values()))


def require_images(jobs: Sequence[Job], context: Context) -> None:
    """Look for the files of all images that `jobs` train and test on, unless broken ones are left out; none is decoded.

    Raises:
        UsageError: some are missing or empty; of each data set the first is named.
    """
    if context.bench.skip_broken:
        return
    needed: dict[str, dict[str, Item]] = {}  # by data set and key: labels are those of a part, and do not matter
    trainings = dict.fromkeys(job.training for job in jobs if job.training)
    cells = {_tested_on(cell, context): cell for job in jobs for cell, _ in job.tests}
    for name, items in (
        *((training.dataset, context.prepare(training).draw.train) for training in trainings),
        *((cell.dataset, context.tested(cell).test) for cell in cells.values()),
        *((name, context.dataset(name).test) for cell in cells.values() for name in cell.others or ()),
    ):
        needed.setdefault(name, {}).update((item.key, item) for item in items)
    problems = []
    for name, images in needed.items():
        try:
            require_files(context.dataset(name), [*images.values()])
        except UsageError as error:
            problems.append(str(error))
    if problems:
        raise UsageError("\n".join(problems))


def _tested_on(cell: Cell, context: Context) -> tuple[object, ...]:
    """Equal for cells with the same test images."""
    return cell.dataset, cell.classes, cell.training if context.dataset(cell.dataset).rest_tests else None


def _slot(cell: Cell, key: str, run: str, context: Context) -> Slot:
    t, cls = cell.training, methods.get(cell.method)
    return Slot(
        study=cell.study, method=cell.method, title=cls.title, published=cls.published or cls.title, variant=cell.variant,
        backbone=context.clip.name, trained_on=t.dataset if t else None, shots=t.shots if t else None, seed=t.seed if t else None,
        dataset=cell.dataset, classes=cell.classes, seen=cell.seen, applicable=context.applicable(cell), key=key, run=run,
        setting=context.setting(cell),
    )  # fmt: skip


def _check(cells: Iterable[Cell], context: Context) -> None:
    """Everything that would fail later, found before anything is computed."""
    problems: list[MmrlError] = []
    built: set[str] = set()
    tested = dict.fromkeys((cell.dataset, cell.classes) for cell in cells)
    trained = dict.fromkeys(cell.training for cell in cells if cell.training)
    others = dict.fromkeys(name for cell in cells for name in cell.others or ())
    named = dict.fromkeys((*(name for name, _ in tested), *(training.dataset for training in trained), *others))
    for name in list(named):
        try:
            context.dataset(name)
        except MmrlError as error:
            problems.append(error)
            del named[name]
    problems += [problem for name, classes in tested if name in named for problem in _unfit(context, name, classes)]
    for training in trained:
        if training.dataset in named:
            try:
                options = context.prepare(training).resolved.method
                if (what := hash_of(method=training.method, options=options)) not in built:
                    built.add(what)
                    context.build(training)  # some options do not suit every backbone
            except MmrlError as error:
                problems.append(error)
    if problems:
        lines = list(dict.fromkeys(str(problem) for problem in problems))
        kind = UsageError if all(isinstance(problem, UsageError) for problem in problems) else MmrlError
        raise kind("\n".join(lines))


def _unfit(context: Context, name: str, classes: str) -> list[MmrlError]:
    dataset = context.dataset(name)
    try:
        part = dataset.restrict(classes)
    except MmrlError as error:
        return [error]
    if part.test or dataset.rest_tests:
        return []
    which = "" if classes == "all" else f" of its {classes} classes"
    return [UsageError(f"'{name}' has no test images{which}, so nothing can be scored on it. Check its split.")]
