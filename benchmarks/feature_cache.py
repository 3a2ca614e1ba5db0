"""Seconds to test many methods on one data set, without and with the features that a results folder keeps.

    python -m benchmarks.feature_cache --images 96 --classes 4 --backbone ViT-B-32

Each method's whole test (reading files, image tower, class features, logits, scores) is timed twice in turn: without a store, and with the
one that all methods before it share. The store is empty at the beginning of every repeat, so the first method fills it: that is a grid. The
files are generated JPEGs, as in `benchmarks.test_pipeline`. Both sides must give equal scores, to the last bit, or it exits with 1.
"""

from __future__ import annotations

import argparse
import gc
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from benchmarks import common
from benchmarks.test_pipeline import photo, whole_number
from mmrl import engine, methods
from mmrl.clip import Clip
from mmrl.data import Dataset, read_folder
from mmrl.engine.features import FeatureStore
from mmrl.methods import Method, Task

SHOTS = 4  # training images of a class, for a method that holds them all; their features are random
GIB = 4.0  # as `mmrl bench` has it
COLUMNS = ["method", "reads", "without, s", "with, s", "ratio"]
READS = {True: "frozen features", False: "images"}


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=whole_number(1), default=96, help="JPEG files to test on (default: %(default)s)")
    parser.add_argument("--classes", type=whole_number(2), default=4, help="number of classes (default: %(default)s)")
    parser.add_argument("--method", default="all", help="methods, or all; zero-shot comes first, as in a grid (default: %(default)s)")
    parser.add_argument("--cpu-time", action="store_true", help="count the processor's seconds, on a machine that others use; --threads 1")
    common.add_common_options(parser, batch=32, repeats=3)
    return parser


def photos(folder: Path, images: int, names: list[str]) -> Dataset:
    """A folder of JPEGs as a data set, all of which test."""
    for name in names:
        (folder / name).mkdir(parents=True)
    for i in range(images):
        photo(i).save(folder / names[i % len(names)] / f"{i}.jpg", quality=92)
    return read_folder(folder).held_out(())


def ready(name: str, clip: Clip, dataset: Dataset) -> Method:
    """The method with its initial values, or fitted to random features."""

    def features(part: Literal["train", "val"], views: int = 0) -> tuple[Tensor, Tensor]:
        labels = torch.arange(len(dataset.classes)).repeat(SHOTS)
        return torch.randn(max(1, views), len(labels), clip.embed_dim, generator=torch.Generator().manual_seed(views)), labels

    count = SHOTS * len(dataset.classes)
    task = Task(dataset.classes, dataset.template, images=count, validation=count, features=features)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return methods.build(name, clip, {}, seed=0, task=task)


def measure(chosen: list[Method], dataset: Dataset, options: argparse.Namespace) -> tuple[list[dict[str, Any]], bool]:
    """A row for each method, with the seconds of every repeat; and whether all scores agree."""
    rows: list[dict[str, Any]] = [
        {"method": method.name, "frozen": method.frozen_images, "seconds": {"without": [], "with": []}} for method in chosen
    ]
    clock = time.process_time if options.cpu_time else time.perf_counter
    same = True
    engine.evaluate_dataset(chosen[0], dataset, seen=True, batch_size=options.batch)  # a warm-up
    for _ in range(options.repeats):
        with tempfile.TemporaryDirectory() as folder:
            store = FeatureStore(Path(folder), GIB)
            for method, row in zip(chosen, rows, strict=True):
                found = []
                for side, kept in (("without", None), ("with", store)):
                    gc.collect()
                    start = clock()
                    found.append(
                        engine.evaluate_dataset(
                            method, dataset, seen=True, batch_size=options.batch, beside_zero_shot=False, store=kept
                        ).adapted
                    )
                    row["seconds"][side].append(clock() - start)
                same &= found[0] == found[1]
    return rows, same


def cells(name: str, reads: str, rows: list[dict[str, Any]]) -> list[str]:
    """One row, or a sum over several."""
    without, kept = (sum(common.median(row["seconds"][side]) for row in rows) for side in ("without", "with"))
    return [name, reads, f"{without:.2f}", f"{kept:.2f}", f"{without / max(kept, 1e-9):.1f}"]


def main(arguments: list[str] | None = None) -> int:
    options = make_parser().parse_args(arguments)
    torch.set_num_threads(options.threads)
    clip = common.make_clip(options.backbone, options.layers)
    names = methods.names() if options.method == "all" else options.method.split(",")
    names.sort(key=lambda name: name != "zero-shot")
    with tempfile.TemporaryDirectory() as folder:
        dataset = photos(Path(folder), options.images, common.class_names(options.classes))
        rows, same = measure([ready(name, clip, dataset) for name in names], dataset, options)
    table = [cells(row["method"], READS[row["frozen"]], [row]) for row in rows]
    for frozen, reads in READS.items():
        some = [row for row in rows if row["frozen"] is frozen]
        table += [cells(f"{len(some)} method{'s' if len(some) > 1 else ''}", reads, some)] if some else []
    table.append(cells(f"all {len(rows)}", "", rows))
    about = common.about(options)
    title = common.heading(about, f"Tests of {len(rows)} methods on {options.images} JPEGs of {options.classes} classes")
    common.report(title, common.markdown(COLUMNS, table), about | {"same": same, "rows": rows}, options.out)
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
