"""Training images cropped, flipped and resized a batch at once (`pixels=fast`), beside Pillow's pixels (`pixels=exact`).

    python -m benchmarks.pixels

First table: the same crops and flips by both, of generated JPEGs (to 224) and of mini sets (to 64): how far values from 0 to 255 are apart,
and processor seconds an image, decoding left out. Second table: base-to-novel trainings with both, means
over seeds.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
import warnings
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from benchmarks import common
from benchmarks.feature_cache import photos
from benchmarks.views import measure, training_of
from mmrl.clip import load_clip
from mmrl.data import Dataset, Preprocess, TrainBatches, load_dataset
from mmrl.engine import Bench, Context, harmonic_mean

PIXELS = ["images", "side", "largest", "mean", "differ", "exact, ms/image", "fast, ms/image", "ratio"]
ACCURACY = ["method", "data set", "pixels", "base", "novel", "HM", "training, s"]
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
KINDS = ("exact", "fast")
PHOTOS = 32


def compared(dataset: Dataset, side: int, options: argparse.Namespace) -> dict[str, Any]:
    """Differences of all pixels of some batches, and seconds of making these, in turn; images lie decoded in memory."""
    preprocess = Preprocess(side, MEAN, STD, flip=dataset.flip)
    given = dataset, dataset.train, preprocess, options.batch, 1
    sides = {kind: TrainBatches(*given, fast=kind == "fast", device=options.device) for kind in KINDS}

    def batches(kind: str, epoch: int) -> list[torch.Tensor]:
        return [images.cpu() for images, _ in islice(sides[kind].epoch(epoch), options.batches)]

    scale = torch.tensor(STD).view(3, 1, 1) * 255
    pairs = zip(*(batches(kind, 0) for kind in KINDS), strict=True)
    apart = torch.cat([((one - other).abs() * scale).round().flatten() for one, other in pairs])
    clock = time.process_time if options.device == "cpu" else time.perf_counter
    seconds: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for epoch in range(1, 1 + options.repeats):
        for kind in KINDS:
            batches(kind, epoch)  # decodes what this epoch is the first to show
            start = clock()
            count = sum(map(len, batches(kind, epoch)))
            seconds[kind].append(1e3 * (clock() - start) / count)
    return {
        "side": side, "largest": int(apart.max()), "mean": float(apart.mean()), "differ": float((apart > 0).float().mean()),
        "ms": {kind: common.median(times) for kind, times in seconds.items()},
    }  # fmt: skip


def accuracies(options: argparse.Namespace) -> list[dict[str, Any]]:
    context, rows = Context(Bench(options.backbone), load_clip(options.backbone)), list[dict[str, Any]]()
    for name in options.methods.split(","):
        for dataset in options.datasets.split(","):
            for seed in map(int, options.seeds.split(",")):
                for kind in KINDS:
                    given = {"pixels": kind} if kind == "fast" else {}
                    rows.append(measure(context, training_of(name, dataset, seed, options.shots, **given)) | {"pixels": kind})
                print(f"done: {name} on {dataset}, seed {seed}", file=sys.stderr)
    return rows


def summary(rows: list[dict[str, Any]]) -> list[list[str]]:
    """Means over seeds, and how far the HM of each seed is apart."""
    lines = []
    for method, dataset in dict.fromkeys((row["method"], row["dataset"]) for row in rows):
        for kind in KINDS:
            some = [row for row in rows if (row["method"], row["dataset"], row["pixels"]) == (method, dataset, kind)]
            hms = [harmonic_mean(row["base"], row["novel"]) for row in some]
            scores = [statistics.mean(row[key] for row in some) for key in ("base", "novel")]
            shown = [f"{100 * value:.2f}" for value in (*scores, statistics.mean(hms))]
            lines.append([method, dataset, kind, *shown, f"{statistics.mean(row['seconds'] for row in some):.1f}"])
    return lines


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", default="mmrl", help="trained with both; '' trains none (default: %(default)s)")
    parser.add_argument("--datasets", default="mini:digits,mini:textures")
    parser.add_argument("--seeds", default="1,2,3")
    parser.add_argument("--shots", type=int, default=16)
    parser.add_argument("--backbone", default="tiny")
    parser.add_argument("--batch", type=int, default=32, help="images that are cropped together")
    parser.add_argument("--batches", type=int, default=4, help="of each set that are compared")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cpu", help="of fast pixels")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="write the tables there as Markdown, and all numbers beside it as .json")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    with warnings.catch_warnings(), tempfile.TemporaryDirectory() as place:
        warnings.simplefilter("ignore")
        photos(Path(place), PHOTOS, common.class_names(4))
        sets = {"generated JPEGs": (load_dataset(place), 224), **{name: (load_dataset(name), 64) for name in options.datasets.split(",")}}
        pixels = {name: compared(dataset, side, options) for name, (dataset, side) in sets.items()}
        rows = accuracies(options) if options.methods else []
    lines = [
        [name, str(each["side"]), str(each["largest"]), f"{each['mean']:.3g}", f"{each['differ']:.2%}",
         *(f"{each['ms'][kind]:.2f}" for kind in KINDS), f"{each['ms']['exact'] / each['ms']['fast']:.2f}"]
        for name, each in pixels.items()
    ]  # fmt: skip
    about = common.about(options)
    where = f"{about['processor']}, {options.threads} thread{'s' if options.threads > 1 else ''}, torch {about['torch']}, {options.device}"
    text = f"The same crops by both, values from 0 to 255, batch {options.batch}; {where}.\n\n{common.markdown(PIXELS, lines)}"
    if rows:
        heading = f"Base-to-novel with published values, {options.shots} shots, {options.backbone}, means over seeds {options.seeds}."
        text += f"\n\n{heading}\n\n{common.markdown(ACCURACY, summary(rows))}"
    common.report("# Pixels", text, about | {"pixels": pixels, "trainings": rows}, options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
