"""A results folder as a table for pandas: one row a test, and means over seeds and data sets. Imports pandas when it is asked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmrl.errors import UsageError
from mmrl.files import user_path
from mmrl.reports.measures import HM
from mmrl.reports.plans import Slot
from mmrl.reports.records import RECORD_NAME, RunRecord, Scores, TestRecord, harmonic_mean, read_record
from mmrl.reports.results import Results

if TYPE_CHECKING:
    import pandas as pd

ARM = ("results", "study", "method", "title", "variant", "backbone", "trained_on", "shots")  # what a mean is over the seeds of
QUANTITIES = ("accuracy", "zero_shot_accuracy", "top5", "macro_accuracy", "macro_f1", "ece", "train_seconds", "test_seconds")
WHOLE = ("shots", "seed", "images", "train_images", "trained_parameters")
AVERAGE = "average"
OPTION = "option."


def load_results(folder: Path | str, *more: Path | str, options: bool = True) -> pd.DataFrame:
    """One row for each test that is done, in the order of the plans. Accuracies, F1 and calibration errors are fractions, times seconds.

    A test that two studies share has a row in each, with the same `key`. `seed` and `shots` are numbers, missing for zero-shot.
    `zero_shot_accuracy` is that of zero-shot CLIP on the same images, where the folder has it. In `attrs`: `damaged` (files that cannot be
    read), `planned` and `missing` (numbers of tests).

    Args:
        folder, more: results folders (the --out of `mmrl bench` and `mmrl ablate`), or folders of single runs (of `mmrl train`); the
            column `results` has their names.
        options: whether every option of method and training has a column, `option.lr`.

    Raises:
        UsageError: no such folder, or pandas is not installed. MmrlError: a folder of another version.
    """
    pd = _pandas()
    rows: list[dict[str, Any]] = []
    damaged: list[str] = []
    planned = 0
    for place in (folder, *more):
        path = user_path(place)
        if (path / RECORD_NAME).is_file():
            rows += [_row(path.name, run, test, None, None) for run in (read_record(path),) for test in run.tests]
            continue
        results = Results(path)
        rows += list(_rows(results, path.resolve().name))
        damaged += results.damaged
        planned += sum(slot.applicable for plan in results.plans.values() for slot in plan.slots)
    if not options:
        rows = [{key: value for key, value in row.items() if not key.startswith(OPTION)} for row in rows]
    columns = list(dict.fromkeys(key for row in [dict.fromkeys(_COLUMNS), *rows] for key in row))
    frame = pd.DataFrame(rows, columns=columns).astype(dict.fromkeys(WHOLE, "Int64"))
    own = [name for name in frame if name.startswith(OPTION)]
    frame[own] = frame[own].convert_dtypes()  # a number that some methods lack stays whole
    frame.attrs |= {"damaged": damaged, "planned": planned, "missing": max(0, planned - len(frame))}
    return frame


def mean_results(frame: pd.DataFrame, *, datasets: bool = False) -> pd.DataFrame:
    """Means over seeds of what `load_results` gave, with `_std` (sample standard deviation, ddof 1) and `seeds` (how many).

    Where base and novel classes were tested a row 'hm' is added: the harmonic mean of their mean accuracies over the seeds that have both,
    as in the paper; its spread is that of the seeds' own.

    Args:
        datasets: whether rows 'average' follow: means over the data sets of their means over seeds, and the harmonic mean of those. Where a
            method is tested on other data sets than it was trained on, the source is not among them.
    """
    pd = _pandas()
    keys = [*ARM, "dataset", "classes"]
    found = frame.groupby(keys, dropna=False, sort=False)
    quantities = [name for name in QUANTITIES if name in frame]
    means = found[quantities].agg(["mean", "std"])
    means.columns = [name if how == "mean" else f"{name}_std" for name, how in means.columns]
    means = means.assign(seeds=found.size()).reset_index()
    out = pd.concat([means, *_harmonic(frame, [*ARM, "dataset"])], ignore_index=True)
    if datasets:
        of_means = _targets(means).groupby([*ARM, "classes"], dropna=False, sort=False)
        average = of_means[quantities].mean().assign(datasets=of_means.size()).reset_index().assign(dataset=AVERAGE)
        halves = average[average.classes.isin(("base", "novel"))]
        out = pd.concat([out, average, *_harmonic(halves.assign(seed=0), [*ARM, "dataset"])], ignore_index=True)
    return out


def _targets(means: pd.DataFrame) -> pd.DataFrame:
    """What averages are over: all but the sources of studies that test elsewhere; in others `trained_on` says no more than `dataset`."""
    elsewhere = means.trained_on.notna() & (means.trained_on != means.dataset)
    transfer = means.study.isin(means.study[elsewhere])
    sources = set(means.trained_on[elsewhere])
    kept = means[~(transfer & means.dataset.isin(sources))]
    return kept.assign(trained_on=kept.trained_on.where(transfer[kept.index], None))


def _harmonic(frame: pd.DataFrame, keys: list[str]) -> list[pd.DataFrame]:
    """Rows 'hm' of groups that have base and novel accuracies of one seed."""
    pd = _pandas()
    rows = []
    for _, group in frame.groupby(keys, dropna=False, sort=False):
        seeds = group.assign(seed=group.seed.astype("object").where(group.seed.notna(), None))
        halves = [seeds[seeds.classes == half].set_index("seed").accuracy for half in ("base", "novel")]
        shared = [seed for seed in halves[0].index if seed in halves[1].index]
        if not shared:
            continue
        base, novel = ([float(half[seed]) for seed in shared] for half in halves)
        each = pd.Series([harmonic_mean(*pair) for pair in zip(base, novel)])
        hm = harmonic_mean(sum(base) / len(shared), sum(novel) / len(shared))
        more = {"datasets": group.datasets.iloc[0]} if "datasets" in group else {"seeds": len(shared), "accuracy_std": each.std()}
        rows.append(group[keys].iloc[:1].assign(classes=HM, accuracy=hm, **more))
    return [pd.concat(rows)] if rows else []


def macro_f1(scores: Scores) -> float | None:
    """Mean over the classes that have images of their F1 scores; None where there is no confusion matrix."""
    if not scores.confusion:
        return None
    guessed = [sum(column) for column in zip(*scores.confusion)]
    each = [2 * row[at] / (sum(row) + guessed[at]) for at, row in enumerate(scores.confusion) if sum(row)]
    return sum(each) / len(each) if each else None


def _rows(results: Results, name: str) -> Iterator[dict[str, Any]]:
    zero = {
        _images(run, test): test.scores.top1 for run in results.runs.values() if run.training is None for test in run.tests
    }  # fmt: skip
    for plan in results.plans.values():
        for slot in plan.slots:
            test = results.tests.get(slot.key) if slot.applicable else None
            if test is not None:
                run = results.run_of[slot.key]
                yield _row(name, run, test, slot, zero.get(_images(run, test))) | {"suite": plan.suite}


def _images(run: RunRecord, test: TestRecord) -> tuple[object, ...]:
    """What tests of the same images with the same backbone share."""
    return run.backbone_hash, test.dataset, test.data, test.classes, test.split, test.scores.count


def _row(name: str, run: RunRecord, test: TestRecord, slot: Slot | None, zero: float | None) -> dict[str, Any]:
    training, scores = run.training, test.scores
    beside = test.zero_shot.top1 if test.zero_shot else scores.top1 if training is None else zero
    dirty = test.environment.dirty or (training and training.environment.dirty)
    row = {
        "results": name,
        "study": slot.study if slot else training.protocol if training else "",
        "suite": "",
        "method": run.method,
        "title": run.title or run.method,
        "variant": slot.variant if slot else "",
        "backbone": run.backbone,
        "trained_on": training.dataset if training else None,
        "shots": training.shots if training else None,
        "seed": training.seed if training else None,
        "dataset": test.dataset,
        "classes": test.classes,
        "seen": test.seen if isinstance(test.seen, bool) else None,
        "accuracy": scores.top1,
        "zero_shot_accuracy": beside,
        "top5": scores.top5,
        "macro_accuracy": scores.macro,
        "macro_f1": macro_f1(scores),
        "ece": scores.ece,
        "images": scores.count,
        "train_seconds": training.seconds if training else None,
        "test_seconds": test.seconds,
        "train_images": training.images if training else None,
        "trained_parameters": training.trained_parameters if training else 0,
        "draw": training.draw_hash if training else "",
        "own_split": test.own_split,
        "device": test.environment.hardware.get("device"),
        "commit": test.environment.commit,
        "dirty": bool(dirty),
        "started": test.environment.started,
        "key": test.key,
        "run": run.key,
    }
    return row | {f"{OPTION}{key}": value for key, value in _options(run, test).items()}


_COLUMNS = tuple(
    "results study suite method title variant backbone trained_on shots seed dataset classes seen accuracy zero_shot_accuracy top5 "
    "macro_accuracy macro_f1 ece images train_seconds test_seconds train_images trained_parameters draw own_split device commit dirty "
    "started key run".split()
)


def _options(run: RunRecord, test: TestRecord) -> Mapping[str, Any]:
    """Of training, and of the method as it was tested; lists as tuples, which pandas can compare."""
    trained = {option.key: option.value for option in run.training.options} if run.training else {}
    return {key: tuple(value) if isinstance(value, list) else value for key, value in (trained | test.options).items() if key != "seed"}


def _pandas() -> Any:
    try:
        import pandas
    except ImportError as error:
        raise UsageError("tables of results need pandas: pip install 'mmrl[results]'.") from error
    return pandas
