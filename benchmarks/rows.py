"""Processor seconds of a grid's rows that take their images in one pass, beside each row by itself (`--alone`).

    python -m benchmarks.rows

Three grids on one data set and one draw: values of lambda for MMRL, methods with one batch size and augmentation, and these with a pool of
one view. Each is trained and tested twice in this process, each time into an empty results folder with a data set that was just read; then
its records are taken away, so that what was trained is tested once more. Both sides must give the same records, histories and trained
tensors, to the last bit, or it exits with 1.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import torch

from benchmarks import common
from benchmarks.feature_cache import photos
from benchmarks.test_pipeline import whole_number
from mmrl.clip import Clip, load_clip
from mmrl.engine import Bench, Context, bind
from mmrl.engine.context import TOGETHER
from mmrl.engine.grid import ResultsFolder, run_here
from mmrl.protocols import Cell, base_to_novel

LAMBDAS = (0.01, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 2.0, 3.0, 5.0, 10.0)
METHODS = "mmrl,mmrlpp,coop,kgcoop,maple,promptsrc,provp,clip-lora"
SAME = {"batch_size": 4, "drop_last": True, "crop_scale": (0.5, 1.0), "warmup_epochs": 0}  # for all methods, so that they can share
CLASSES, IMAGES, TESTED = 4, 20, 0.2  # of the generated JPEGs; half of the classes train
COLUMNS = ["rows", "alone, s", "together, s", "ratio", "of it training", "tests alone, s", "tests together, s", "ratio of tests"]
SIDES = {"alone": 1, "together": TOGETHER}


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="data set of the catalogue, or a folder (default: generated JPEGs, of which a fifth test)")
    parser.add_argument("--values", type=whole_number(0), default=len(LAMBDAS), help="values of lambda (default: all %(default)s)")
    parser.add_argument("--methods", default=METHODS, help="of the second grid; '' leaves it out (default: %(default)s)")
    parser.add_argument("--epochs", type=whole_number(1), default=3, help="of every row (default: %(default)s)")
    parser.add_argument("--shots", type=whole_number(1), default=16, help="images a class (default: %(default)s)")
    common.add_common_options(parser, batch=4, repeats=1)
    parser.set_defaults(backbone="tiny", threads=1)
    return parser


def grids(options: argparse.Namespace, data: str) -> dict[str, list[Cell]]:
    """Cells of each grid, by what its rows are."""

    def cells(methods: list[str], **more: Any) -> list[Cell]:
        overrides = {**SAME, "batch_size": options.batch, "epochs": options.epochs, **more}
        return base_to_novel(methods, (data,), (1,), shots=(options.shots,), overrides=overrides)

    lambdas = [cell for value in LAMBDAS[: options.values] for cell in cells(["mmrl"], lam=value)]
    names = [name for name in options.methods.split(",") if name]
    found = {f"mmrl, {options.values} values of lambda": lambdas, f"{len(names)} methods": cells(names) if names else []}
    found[f"{len(names)} methods, views=1"] = cells(names, views=1) if names else []
    return {rows: each for rows, each in found.items() if each}


def carried_out(cells: list[Cell], clip: Clip, together: int, folder: Path) -> tuple[float, float, float, dict[str, Any]]:
    """Seconds of the processor, the part that records give to training, seconds of testing again, and what came out but for times."""
    context = Context(Bench(clip.name, test_share=TESTED, together=together), clip)
    jobs, _ = bind(cells, context)

    def computed() -> float:
        gc.collect()
        start = time.process_time()
        outcome = run_here(jobs, context, ResultsFolder(folder), say=lambda line: None)
        seconds = time.process_time() - start
        assert len(outcome.done) == len(jobs), [path.read_text() for path in folder.glob("failed/*")]
        return seconds

    seconds = computed()
    records = {path.stem: json.loads(path.read_text()) for path in folder.glob("runs/*.json")}
    adapters = {path.parent.name: path.read_bytes() for path in folder.glob("work/*/adapter_model.safetensors")}
    trained = sum(record["training"]["seconds"] for record in records.values())
    took = trained + sum(test["seconds"] for record in records.values() for test in record["tests"])
    for path in folder.glob("runs/*.json"):
        path.unlink()
    tests = computed()
    again = {path.stem: json.loads(path.read_text())["tests"] for path in folder.glob("runs/*.json")}
    found = {key: (_untimed(record), adapters[key], _untimed(again[key])) for key, record in records.items()}
    return seconds, trained / took, tests, found


def _untimed(content: Any) -> Any:
    if isinstance(content, dict):
        return {key: _untimed(value) for key, value in content.items() if key not in ("started", "seconds", "commit", "dirty")}
    return [_untimed(value) for value in content] if isinstance(content, list) else content


def measure(cells: list[Cell], clip: Clip, repeats: int) -> dict[str, Any]:
    """Of one grid: seconds of every repeat of both sides, share of training in each, and whether all came out the same."""
    row: dict[str, Any] = {side: [] for side in SIDES} | {"share": {}, "tests": {side: [] for side in SIDES}, "same": True}
    found = []
    for _ in range(repeats):
        for side, together in SIDES.items():
            with tempfile.TemporaryDirectory() as folder:
                seconds, row["share"][side], tests, results = carried_out(cells, clip, together, Path(folder))
            row[side].append(seconds)
            row["tests"][side].append(tests)
            found.append(results)
    return row | {"same": all(each == found[0] for each in found)}


def main(arguments: list[str] | None = None) -> int:
    options = make_parser().parse_args(arguments)
    torch.set_num_threads(options.threads)
    clip = load_clip("tiny") if options.backbone == "tiny" else common.make_clip(options.backbone, options.layers)
    rows: dict[str, dict[str, Any]] = {}
    with warnings.catch_warnings(), tempfile.TemporaryDirectory() as place:
        warnings.simplefilter("ignore")
        if options.data is None:
            photos(Path(place), CLASSES * IMAGES, common.class_names(CLASSES))
        for name, cells in grids(options, options.data or place).items():
            with tempfile.TemporaryDirectory() as folder:
                carried_out(cells[:1], clip, 1, Path(folder))  # a warm-up
            rows[name] = measure(cells, clip, options.repeats)
    table = []
    for name, row in rows.items():
        alone, together = (common.median(row[side]) for side in SIDES)
        shares = ", ".join(f"{row['share'][side]:.0%}" for side in SIDES)
        own, one = (common.median(row["tests"][side]) for side in SIDES)
        tests = [f"{own:.1f}", f"{one:.1f}", f"{own / one:.2f}"]
        table.append([name, f"{alone:.1f}", f"{together:.1f}", f"{alone / together:.2f}", shares, *tests])
    about = common.about(options)
    what = f"{options.data or 'generated JPEGs'}, {options.shots} shots, batch {options.batch}, epochs {options.epochs}"
    where = f"{about['processor']}, threads {options.threads}, torch {about['torch']}"
    title = f"Rows of a grid: {options.backbone}; {what}; {where}; processor seconds."
    common.report(title, common.markdown(COLUMNS, table), about | {"rows": rows}, options.out)
    return 0 if all(row["same"] for row in rows.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
