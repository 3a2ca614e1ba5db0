"""What a finite pool of augmented views (`views=N`) gains in time and loses in accuracy.

    python -m benchmarks.views --datasets mini:digits,mini:textures --seeds 1,2,3

First table: base-to-novel trainings with the published values, each with a new view in every epoch and with pools of several sizes;
processor seconds of the training and accuracy on base and novel classes, means over seeds. Second table: a training step on a view that is
shown for the first time, and on one whose frozen passes are kept, at the size of a real backbone with random weights.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
import warnings
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from benchmarks import common
from mmrl.clip import Clip, load_clip
from mmrl.engine import Bench, Context, FitConfig, Place, TrainingData, evaluate_dataset, fit, harmonic_mean
from mmrl.errors import Notice
from mmrl.methods import Task
from mmrl.protocols import Training

COLUMNS = ["method", "data set", "epochs", "views", "training, s", "less time", "base", "novel", "HM"]
STEP_COLUMNS = ["method", "new view, s", "kept view, s", "ratio"]
NONE = "none"


def training_of(method: str, dataset: str, seed: int, shots: int, **values: Any) -> Training:
    return Training(method, dataset, "base", shots, seed, "base-to-novel", tuple(values.items()))


def measure(context: Context, training: Training) -> dict[str, Any]:
    """One training: processor seconds, and top-1 on base and novel classes."""
    ready, data = context.prepare(training), context.dataset(training.dataset)
    place, method = Place(progress=False), context.build(training)
    prepared = TrainingData.of(context.clip, data.restrict("base"), ready.draw, ready.config, place)
    began = time.process_time()
    fit(method, prepared, ready.config, place)
    seconds = time.process_time() - began
    base, novel = (
        evaluate_dataset(method, data.restrict(part), seen=seen, beside_zero_shot=False).adapted.top1
        for part, seen in (("base", True), ("novel", False))
    )
    return {
        "method": training.method, "dataset": training.dataset, "seed": training.seed, "epochs": ready.config.epochs,
        "views": ready.config.views, "seconds": seconds, "base": base, "novel": novel,
    }  # fmt: skip


def summary(rows: list[dict[str, Any]], views: list[int | None]) -> list[list[str]]:
    """Means over seeds: one line for each method, data set and number of views."""
    lines = []
    for method, dataset in dict.fromkeys((row["method"], row["dataset"]) for row in rows):
        own = [row for row in rows if (row["method"], row["dataset"]) == (method, dataset)]
        without = statistics.mean(row["seconds"] for row in own if row["views"] is None)
        for count in views:
            some = [row for row in own if row["views"] == count]
            seconds, base, novel = (statistics.mean(row[key] for row in some) for key in ("seconds", "base", "novel"))
            hm = statistics.mean(harmonic_mean(row["base"], row["novel"]) for row in some)
            scores = [f"{100 * value:.1f}" for value in (base, novel, hm)]
            shown = NONE if count is None else str(count)
            lines.append([method, dataset, str(own[0]["epochs"]), shown, f"{seconds:.1f}", f"{without / seconds:.1f}x", *scores])
    return lines


def step_seconds(clip: Clip, name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Median processor seconds of a step of the first epoch of one view, and of the second."""
    context = Context(Bench(clip.name), clip)
    values = {"views": 1, "epochs": 2, "warmup_epochs": 0, "batch_size": options.step_batch}
    training = training_of(name, options.datasets.split(",")[0], 1, options.step_shots, **values)
    ready, data = context.prepare(training), context.dataset(training.dataset).restrict("base")
    prepared, method = TrainingData.of(clip, data, ready.draw, ready.config), context.build(training)
    method.setup(Task(prepared.classes, prepared.template, prepared.images, 0, 1, prepared.features))
    ticks = ticks_of(method, prepared, ready.config)
    seconds = [later - earlier for earlier, later in pairwise(ticks)]
    steps = len(prepared.batches)
    new, kept = statistics.median(seconds[: steps - 1]), statistics.median(seconds[steps - 1 :])
    return {"method": name, "new": new, "kept": kept, "classes": len(prepared.classes)}


def ticks_of(method: Any, data: TrainingData, config: FitConfig) -> list[float]:
    """The processor's clock after every step of a training."""
    from mmrl.engine.loop import Trainer
    from mmrl.engine.pool import shown_in_turn

    ticks: list[float] = []
    with shown_in_turn(data.batches, config, method.clip, None) as batches:
        classes = method.class_list(data.classes, data.template)
        Trainer(method, batches, classes, config, watch=lambda row: ticks.append(time.process_time()), read_every=1).run()
    return ticks


def text_of(rows: list[dict[str, Any]], steps: list[dict[str, Any]], views: list[int | None], options: argparse.Namespace) -> str:
    about = common.about(options)
    where = f"{about['processor']}, {options.threads} thread{'s' if options.threads > 1 else ''}, torch {about['torch']}, processor seconds"
    heading = f"Base-to-novel with published values, {options.shots} shots, {options.backbone}, means over seeds {options.seeds}; {where}."
    text = f"{heading}\n\n{common.markdown(COLUMNS, summary(rows, views))}"
    if steps:
        lines = [[s["method"], f"{s['new']:.2f}", f"{s['kept']:.2f}", f"{s['new'] / s['kept']:.1f}"] for s in steps]
        size = f"{options.step_backbone}, random weights, {steps[0]['classes']} classes, batch {options.step_batch}"
        text += f"\n\nA training step at {size}; {where}, median.\n\n{common.markdown(STEP_COLUMNS, lines)}"
    return text


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", default="coop,kgcoop,mmrl,maple")
    parser.add_argument("--datasets", default="mini:digits,mini:textures")
    parser.add_argument("--views", default="1,2,5", help="sizes of the pool, beside none")
    parser.add_argument("--seeds", default="1,2,3")
    parser.add_argument("--shots", type=int, default=16)
    parser.add_argument("--backbone", default="tiny")
    parser.add_argument("--step-backbone", default="ViT-B-16", help="architecture of open_clip for single steps; '' measures none")
    parser.add_argument("--step-batch", type=int, default=4)
    parser.add_argument("--step-shots", type=int, default=4)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="write the tables there as Markdown, and all numbers beside it as .json")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    names, sizes = options.methods.split(","), [int(word) for word in options.views.split(",")]
    views: list[int | None] = [None, *sizes]
    context, rows = Context(Bench(options.backbone), load_clip(options.backbone)), list[dict[str, Any]]()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Notice)
        for name in names:
            for dataset in options.datasets.split(","):
                for seed in map(int, options.seeds.split(",")):
                    for count in views:
                        given = {} if count is None else {"views": count}
                        rows.append(measure(context, training_of(name, dataset, seed, options.shots, **given)))
                    print(f"done: {name} on {dataset}, seed {seed}", file=sys.stderr)
        clip = common.make_clip(options.step_backbone) if options.step_backbone else None
        steps = [step_seconds(clip, name, options) for name in names] if clip else []
    numbers = {"about": {key: str(value) for key, value in common.about(options).items()}, "trainings": rows, "steps": steps}
    common.report("# Views", text_of(rows, steps, views, options), numbers, options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
