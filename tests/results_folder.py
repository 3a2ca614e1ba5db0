"""A results folder made by hand: schema-valid plans and runs for a small grid of every study, with numbers by formula."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from mmrl.reports.cost import CostRow
from mmrl.reports.plans import FORMAT, MARKER, Failure, Plan, Slot
from mmrl.reports.records import Bin, Environment, RunRecord, Scores, TestRecord, TrainingRecord

Accuracy = Callable[[Slot], float]
DATASETS = ("mini:digits", "mini:objects")
TINY = "tiny"
TITLES = {"zero-shot": "zero-shot CLIP", "mmrl": "MMRL", "mmrlpp": "MMRL++", "coop": "CoOp", "linear-probe": "Linear probe"}
PUBLISHED = TITLES | {"zero-shot": "CLIP", "linear-probe": "Linear probe CLIP"}
CLOSED = "linear-probe"  # knows no classes but those it was trained on


def key_of(*parts: object) -> str:
    return hashlib.sha256(json.dumps(parts, default=str).encode()).hexdigest()[:16]


def slot(study: str, method: str, dataset: str, classes: str, *, seed: int = 1, shots: int = 16, source: str | None = None,
         variant: str = "", backbone: str = TINY) -> Slot:  # fmt: skip
    """One slot; zero-shot loses what it does not have."""
    zero = method == "zero-shot"
    trained_on = None if zero else source or dataset
    run = key_of(method, variant, backbone, trained_on or dataset, classes == "all", *(() if zero else (shots, seed)))
    seen = not zero and classes != "novel" and trained_on == dataset
    return Slot(
        study=study, method=method, title=TITLES.get(method, ""), published=PUBLISHED.get(method, ""), variant=variant, backbone=backbone,
        trained_on=trained_on, shots=None if zero else shots, seed=None if zero else seed, dataset=dataset, classes=classes, seen=seen,
        applicable=seen or method != CLOSED, key=key_of(run, dataset, classes), run=run,
    )  # fmt: skip


def halves(study: str = "base-to-novel", methods: Sequence[str] = ("zero-shot", "mmrl"), *, variants: Sequence[str] = ("",),
           datasets: Sequence[str] = DATASETS, seeds: Sequence[int] = (1, 2, 3), backbone: str = TINY) -> list[Slot]:  # fmt: skip
    """Base and novel slots of a grid; zero-shot once a data set."""
    return [
        slot(study, method, dataset, classes, seed=seed, variant=variant, backbone=backbone)
        for method in methods
        for variant in variants
        for dataset in datasets
        for seed in (seeds if method != "zero-shot" else (1,))
        for classes in ("base", "novel")
    ]


def few_shot(methods: Sequence[str] = ("zero-shot", "mmrl"), shots: Sequence[int] = (1, 2, 4), *, datasets: Sequence[str] = DATASETS,
             seeds: Sequence[int] = (1, 2), backbone: str = TINY) -> list[Slot]:  # fmt: skip
    return [
        slot("few-shot", method, dataset, "all", seed=seed, shots=n, backbone=backbone)
        for method in methods
        for dataset in datasets
        for n in (shots if method != "zero-shot" else (0,))
        for seed in (seeds if method != "zero-shot" else (1,))
    ]


def transfer(study: str, source: str, targets: Sequence[str], methods: Sequence[str] = ("zero-shot", "mmrl"), *,
             seeds: Sequence[int] = (1, 2), backbone: str = TINY) -> list[Slot]:  # fmt: skip
    return [
        slot(study, method, dataset, "all", seed=seed, source=source, backbone=backbone)
        for method in methods
        for dataset in (source, *targets)
        for seed in (seeds if method != "zero-shot" else (1,))
    ]


def accuracy(each: Slot) -> float:
    """A plausible one: methods above zero-shot, shots help, seeds differ a little, every pair of slots differs."""
    level = {"zero-shot": 0.52, "mmrl": 0.68, "mmrlpp": 0.70}.get(each.method, 0.6)
    level += 0.04 * math.log2(1 + (each.shots or 0) / 4) - 0.08 * (each.classes == "novel") + 0.002 * (each.seed or 0)
    return min(0.99, level + int(each.key[:4], 16) / 65536 * 0.02)


def environment(*, dirty: bool | None = False, commit: str | None = "0123456789abcdef") -> Environment:
    return Environment(
        versions={"python": "3.12.1", "mmrl": "0.2.0", "torch": "2.6.0"}, commit=commit, dirty=dirty,
        hardware={"device": "cpu", "cpu": "a processor", "cores": 2, "gpu": None}, started="2026-03-04T05:06:07+00:00",
    )  # fmt: skip


def scores(top1: float, names: Sequence[str] = ("zebra <striped> & |tall|", "$5 note", "100% cotton")) -> Scores:
    """100 images a class; the errors go to the next class."""
    n = len(names)
    right = round(100 * top1)
    confusion = [[right if i == j else 100 - right if j == (i + 1) % n else 0 for j in range(n)] for i in range(n)]
    bins = [Bin(count=10 * i, confidence=(i + 0.5) / 15, accuracy=min(1, (i + 0.5) / 15 * top1 * 1.4)) for i in range(15)]
    return Scores(
        top1=top1, top5=1.0, macro=top1, ece=0.1 * (1 - top1), count=100 * n, class_names=tuple(names),
        per_class=(top1,) * n, confusion=tuple(map(tuple, confusion)), bins=tuple(bins),
    )  # fmt: skip


def write_json(path: Path, content: Any) -> None:
    """Without the package's care for power cuts, which takes long for hundreds of files."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def make_results(folder: Path, slots: Iterable[Slot] = (), *, suite: str = "mini") -> Path:
    """A results folder with the plans of `slots`, one a study, and nothing done."""
    write_json(folder / MARKER, {"format": FORMAT})
    by_study: dict[str, list[Slot]] = {}
    for each in slots:
        by_study.setdefault(each.study, []).append(each)
    for study, own in by_study.items():
        plan = Plan(study=study, suite=suite, slots=tuple(own), command=f"mmrl bench {study} --suite {suite} --out results",
                    notes=("ImageNet's files are sorted before the draw.",))  # fmt: skip
        write_json(folder / "plans" / f"{study}.json", plan.model_dump(mode="json", by_alias=True))
    return folder


def fill(folder: Path, slots: Iterable[Slot], *, at: Accuracy = accuracy, dirty: bool | None = False, seconds: float = 60.0,
         names: Sequence[str] | None = None) -> None:  # fmt: skip
    """The tests of `slots`, with `at(slot)` as top-1, in their runs: new ones, or in place of the same tests of runs that are there."""
    by_run: dict[str, list[Slot]] = {}
    for each in slots:
        if each.applicable:
            by_run.setdefault(each.run, []).append(each)
    for key, own in by_run.items():
        path = run_path(folder, own[0])
        tests = {each.key: _test(each, at(each), dirty, seconds / 10, names) for each in own}
        if path.exists():
            content = json.loads(path.read_text())
        else:
            run = RunRecord(key=key, method=own[0].method, title=own[0].title, backbone=own[0].backbone, backbone_hash="f" * 16,
                            training=_training(own[0], dirty, seconds) if own[0].trained_on else None)  # fmt: skip
            content = run.model_dump(mode="json", by_alias=True)
        content["tests"] = list(({test["key"]: test for test in content["tests"]} | tests).values())
        write_json(path, content)


def run_path(folder: Path, each: Slot) -> Path:
    """The file of the slot's run."""
    return folder / "runs" / f"{each.run}.json"


def edit_tests(folder: Path, slots: Iterable[Slot], **changes: Any) -> None:
    """Change fields of what is written of the tests of `slots`."""
    for each in slots:
        content = json.loads(run_path(folder, each).read_text())
        content["tests"] = [test | (changes if test["key"] == each.key else {}) for test in content["tests"]]
        write_json(run_path(folder, each), content)


def _test(each: Slot, top1: float, dirty: bool | None, seconds: float, names: Sequence[str] | None) -> dict[str, Any]:
    test = TestRecord(
        key=each.key, dataset=each.dataset, data="d" * 16, classes=each.classes, seen=each.seen, template="a photo of a {}.",
        scores=scores(top1, names) if names else scores(top1), seconds=seconds, environment=environment(dirty=dirty),
    )  # fmt: skip
    return test.model_dump(mode="json")


def _training(each: Slot, dirty: bool | None, seconds: float) -> TrainingRecord:
    history = tuple(
        {"step": float(i), "epoch": i // 20, "lr": 1e-3 * (1 - i / 60), "accuracy": 1 - 0.7 * 0.95**i, "total": 2 * 0.95**i,
         "class": 1.2 * 0.95**i, "rep": 0.8 * 0.95**i}
        for i in range(1, 60)
    )  # fmt: skip
    return TrainingRecord(
        dataset=each.trained_on, data="d" * 16, classes="all" if each.classes == "all" else "base", shots=each.shots or 0,
        seed=each.seed or 0, draw_hash="ab" * 8, images=48, protocol=each.study, template="a photo of a {}.", seconds=seconds,
        trained_parameters=1000, history=history, environment=environment(dirty=dirty),
        options=({"section": "method", "key": "first_layer", "value": 6, "source": "paper"},),
    )  # fmt: skip


def fail(folder: Path, each: Slot, kind: str = "failed", error: str = "out of memory <on> the & device") -> None:
    failure = Failure(
        run=each.run,
        kind=kind,
        what=f"{each.method} on {each.dataset}",
        error=error,
        traceback="Traceback: ...",
        environment=environment(),
    )
    write_json(folder / "failed" / f"{each.run}.json", failure.model_dump(mode="json", by_alias=True))


def cost_row(method: str, **more: Any) -> CostRow:
    """Measured, except for training and HM."""
    fields = {
        "modality": "V-L", "trained_parameters": 4992256, "images_per_second": 120.5, "batch": 100, "peak_memory_gib": 1.5, "steps": 20,
        "dataset": "imagenet", "backbone": TINY, "precision": "fp32", "environment": environment(),
    }  # fmt: skip
    return CostRow(method=method, title=TITLES.get(method, ""), **(fields | more))


def whole(folder: Path, *, datasets: Sequence[str] = DATASETS) -> Path:
    """A folder in which every study is done, but for the cases a reader of reports must see: a missing seed, a failure, dirty
    scores, a method that is not applicable to new classes."""
    methods = ("zero-shot", "mmrl", "mmrlpp", CLOSED)
    studies = [
        halves(methods=methods, datasets=datasets),
        few_shot(methods, datasets=datasets, shots=(1, 2, 4, 8, 16)),
        transfer("cross-dataset", datasets[0], datasets[1:], methods),
        transfer("domain-generalisation", "mini:objects", ("mini:sketch", "mini:clutter"), methods),
        halves("variants", ("mmrl",), variants=PARTS, datasets=datasets, seeds=(1,)),
        *(halves(study, ("mmrl",), variants=values, datasets=datasets, seeds=(1, 2)) for study, values in ABLATED.items()),
    ]  # fmt: skip
    slots = [each for study in studies for each in study]
    make_results(folder, slots)
    fill(folder, slots)
    lost = next(each for each in slots if each.method == "mmrlpp" and each.seed == 3)
    run_path(folder, lost).unlink()
    fail(folder, lost)
    fill(folder, [each for each in slots if each.study == "base-to-novel" and each.method == "mmrl" and each.seed == 2][:2], dirty=True)
    return folder


PARTS = ("w/o L", "w/o V", "w/o RS", "MMRL-dagger", "full", "w/o DS1", "w/o DS2")
ABLATED = {
    "rep-dim": ("32", "128", "512"),
    "layers": ("1", "3", "6", "9", "12"),
    "tokens": ("1", "3", "5", "7"),
    "alpha": ("0.0", "0.3", "0.7", "1.0"),
    "lambda": ("0.0", "0.2", "2.0"),
    "regulariser": ("cosine", "L1", "MSE"),
}
