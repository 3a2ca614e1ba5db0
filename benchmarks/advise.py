"""How good `mmrl advise` is: its choice, from training images alone, beside what the same methods reach on the test images.

    python -m benchmarks.advise --datasets mini:digits,mini:textures,mini:objects --seeds 1,2,3

For every data set and seed, 16 images a class are drawn. The advice is taken from them; then each method is trained on all of them, and
tested. A row says which method was named, which was best, and how far the named one is below it. It is *as good* where it is the best, or
below it by no more than one standard deviation over seeds of the best one's accuracy on that data set.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import warnings
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch

import mmrl
from benchmarks import common
from mmrl.clip import Clip, load_clip
from mmrl.engine import BelowZeroShotWarning
from mmrl.errors import Notice
from mmrl.files import write_json, write_text

COLUMNS = ["data set", "seed", "advised", "best", "advised, test", "best, test", "below the best", "as good"]


def measure(dataset: str, seed: int, clip: Clip, options: argparse.Namespace) -> dict[str, Any]:
    """The advice and its estimates, and the accuracy of every method on the test images."""
    common_options: dict[str, Any] = {"shots": options.shots, "seed": seed, "backbone": clip, "workers": 0}
    names = options.methods.split(",")
    advice = mmrl.advise(dataset, methods=names, folds=options.folds, minutes=options.minutes, allow_fewer=True, **common_options)
    tested: dict[str, float] = {}
    for name in names:
        record = mmrl.train(dataset, method=name, allow_fewer=True, progress=False, **common_options).record
        (test,) = record.tests
        tested[name] = test.scores.top1
        if test.zero_shot is not None:
            tested["zero-shot"] = test.zero_shot.top1
    return {"dataset": dataset, "seed": seed, "advice": advice.as_json(), "tested": tested}


def summary(rows: list[dict[str, Any]]) -> list[list[str]]:
    """One line a data set and seed."""
    by_dataset: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        for name, value in row["tested"].items():
            by_dataset[row["dataset"]][name].append(value)
    lines = []
    for row in rows:
        advised, tested = row["advice"]["best"], row["tested"]
        best = max(tested, key=tested.__getitem__)
        over_seeds = by_dataset[row["dataset"]][best]
        spread = statistics.stdev(over_seeds) if len(over_seeds) > 1 else 0.0
        below = tested[best] - tested[advised]
        shown = [f"{100 * value:.1f}" for value in (tested[advised], tested[best], below)]
        row["as_good"] = below <= spread
        lines.append([row["dataset"], str(row["seed"]), advised, best, *shown, "yes" if row["as_good"] else "no"])
    return lines


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--datasets", default="mini:digits,mini:textures,mini:objects")
    parser.add_argument("--seeds", default="1,2,3")
    parser.add_argument("--shots", type=int, default=16)
    parser.add_argument("--methods", default="mmrl,gda,tip-adapter,lpp,linear-probe", help="in the race, beside zero-shot CLIP")
    parser.add_argument("--folds", type=int, default=4)
    parser.add_argument("--minutes", type=float, default=30.0, help="for each advice")
    parser.add_argument("--backbone", default="tiny")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="write the table there as Markdown, and all numbers beside it as .json")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    clip, rows = load_clip(options.backbone), list[dict[str, Any]]()
    for dataset in options.datasets.split(","):
        for seed in map(int, options.seeds.split(",")):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", Notice)
                warnings.simplefilter("ignore", BelowZeroShotWarning)  # it is in the numbers
                rows.append(measure(dataset, seed, clip, options))
            lines = summary(rows)
            good = sum(row["as_good"] for row in rows)
            race = f"{options.shots} shots, {options.folds} folds, {options.backbone}, zero-shot and {options.methods}"
            heading = f"{race}: as good in {good} of {len(rows)}."
            text = f"{heading}\n\n{common.markdown(COLUMNS, lines)}"
            if options.out is not None:  # after each, so that none is lost
                write_text(options.out, text + "\n")
                given = {name: str(value) for name, value in vars(options).items() if name != "out"}
                write_json(options.out.with_suffix(".json"), {"options": given, "rows": rows})
            print(f"done: {dataset}, seed {seed}", file=sys.stderr)
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
