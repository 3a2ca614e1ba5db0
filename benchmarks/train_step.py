"""A training step of the fast path against the same method written plainly, as the authors' code does it.

    python -m benchmarks.train_step --method all --classes 24,100 --batch 4 --backbone ViT-B-16

One step is forward, backward and AdamW in float32. Both sides share frozen random weights and start from the same trained parameters, and
both have what is constant for a class list, such as the zero-shot class features, before the first step. In a step

- *plain* runs whole encoders: the adapted ones on every prompt, at all 77 positions, and on every image; and the frozen image encoder again
  where the method compares with it, without gradient;
- *fast* leaves out what the result does not depend on (see benchmarks/README.md), and gives the same loss and gradients.

The FLOP ratio is the bound of one float32 run: it is the ratio in time of two sides that run at an equal share of the matrix peak. A ratio
above it means that the plain side runs at a smaller share. Where the plain side is left out, its FLOP are extrapolated from steps with few
classes.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch

from benchmarks import common
from benchmarks.common import gib
from benchmarks.memory import peak_of, plain_needs
from benchmarks.sides import PLAIN, Step, Work, fast_step, gradients_of, plain_step, without_dropout
from mmrl.clip import Clip
from mmrl.engine.memory import free_bytes
from tests.oracle.pair import relative_error

CHOICE = {"method", "classes", "plain_memory", "plain_limit"}  # which rows, and which of their plain sides
BOUND = "bound (FLOP ratio)"
SPEED = ["method", "classes", "longest prompt", "plain s/step", "fast s/step", "ratio", BOUND, "largest gradient difference"]
WORK = ["method", "classes", "plain TFLOP", "fast TFLOP", BOUND, "plain, of matrix peak", "fast, of matrix peak"]
MEMORY = ["method", "classes", "plain peak", "fast peak", "fast / plain", "plain, of it in the step", "fast, of it in the step"]


def compare_gradients(fast: Step, plain: Step, method: str) -> dict[str, Any]:
    """Largest difference between gradients, relative in the Euclidean norm, over all tensors (layers apart); both ran backward."""
    ours, theirs = gradients_of(fast, method), gradients_of(plain, method)
    if ours.keys() != theirs.keys():
        raise RuntimeError(f"{method}: the two sides train different tensors: {sorted(ours.keys() ^ theirs.keys())}")
    errors = {name: relative_error(ours[name], theirs[name]) for name in ours}
    worst = max(errors, key=errors.__getitem__)
    return {"relative": errors[worst], "tensor": worst, "tensors": len(errors)}


def refusal(work: Work, clip: Clip, most_classes: int | None, most_gib: float | None = None) -> str | None:
    """Why the plain side is not run, if so."""
    if most_classes is not None and work.classes > most_classes:
        return f"over --plain-limit {most_classes}"
    needed, free = plain_needs(work, clip), free_bytes()
    if most_gib is not None and needed > most_gib * 2**30:
        return f"needs about {gib(needed)}, over --plain-memory {most_gib:g}"
    if free is not None and needed > free:
        return f"needs about {gib(needed)}, free are {gib(free)}"
    return None


def extrapolated_flops(work: Work, clip: Clip) -> int:
    """Of a plain step that is not taken, from steps with 2, 4 and 6 classes; exact where the count is a parabola of the classes.

    All but PLOT's are: how many iterations its transport takes depends on the numbers. They are less than a thousandth of its step.
    """
    points = (2, 4, 6)
    counts = {c: common.count_flops(plain_step(work, clip, classes=c).backward) for c in points}
    total = Fraction()
    for c in points:
        total += math.prod((Fraction(work.classes - other, c - other) for other in points if other != c), start=Fraction(counts[c]))
    return round(total)


def same_step(work: Work, clip: Clip, steps: dict[str, Step]) -> dict[str, Any]:
    """The largest gradient difference of two sides that ran backward; with dropout, of a step without it."""
    options = without_dropout(work)
    if options:
        work = replace(work, options=work.options | options)
        steps = {"fast": fast_step(replace(work, precision=steps["fast"].work.precision), clip), "plain": plain_step(work, clip)}
        for step in steps.values():
            step.backward()
    return compare_gradients(steps["fast"], steps["plain"], work.method) | {"options": options}


def clock_of(options: argparse.Namespace) -> Callable[[], float]:
    return time.process_time if options.cpu_time else time.perf_counter


def measure(work: Work, clip: Clip, options: argparse.Namespace, peak: float) -> dict[str, Any]:
    """One row. The first, counted step also warms up; then both sides are timed in turn."""
    why_not = refusal(work, clip, options.plain_limit, options.plain_memory)
    steps = {"fast": fast_step(replace(work, precision=options.precision), clip)}
    if why_not is None:
        steps["plain"] = plain_step(work, clip)
    flops = {side: common.count_flops(step.backward) for side, step in steps.items()}
    row: dict[str, Any] = {"method": work.method, "classes": work.classes, "longest_prompt": steps["fast"].longest_prompt}
    row |= {"plain_left_out": why_not, "gradients": None if why_not else same_step(work, clip, steps)}
    runs = {side: steps[side] for side in sorted(steps, reverse=True)}
    row["seconds"] = common.interleaved(runs, options.repeats, clock_of(options))
    row["median"] = {side: common.median(times) for side, times in row["seconds"].items()}
    row["matrix_peak"] = peak
    row["of_peak"] = {side: flops[side] / row["median"][side] / peak for side in flops}
    row["flops"] = flops if why_not is None else flops | {"plain": extrapolated_flops(work, clip)}
    sides = sorted(steps)
    steps.clear()
    gc.collect()
    row["memory"] = {}
    if not options.no_memory:
        for side in sides:
            found = peak_of(work, side, threads=options.threads)
            row["memory"][side] = found._asdict() if found else None
    return row


def _both(values: dict[str, Any], show: Any) -> tuple[str, str]:
    plain, fast = (show(values[side]) if values.get(side) is not None else "-" for side in ("plain", "fast"))
    return plain, fast


def _ratio(values: dict[str, Any], over: str, under: str) -> str:
    return f"{values[over] / values[under]:.2f}" if values.get(over) and values.get(under) else "-"


def gradient_cell(found: dict[str, Any] | None) -> str:
    """Of what `same_step` gives: the largest difference, and the options that it was found with where they are not those that are timed."""
    if found is None:
        return "-"
    options = ", ".join(f"{name} {value:g}" for name, value in found["options"].items())
    return f"{found['relative']:.1e} ({options})" if options else f"{found['relative']:.1e}"


def speed_cells(row: dict[str, Any]) -> list[str]:
    plain, fast = _both(row["median"], lambda seconds: f"{seconds:.3g}")
    ratios = (_ratio(row[what], "plain", "fast") for what in ("median", "flops"))
    longest = str(row["longest_prompt"] or "-")
    return [row["method"], str(row["classes"]), longest, row["plain_left_out"] or plain, fast, *ratios, gradient_cell(row["gradients"])]


def work_cells(row: dict[str, Any]) -> list[str]:
    counts = _both(row["flops"], lambda count: f"{count / 1e12:.3g}")
    shares = _both(row["of_peak"], lambda share: f"{share:.0%}")
    return [row["method"], str(row["classes"]), *counts, _ratio(row["flops"], "plain", "fast"), *shares]


def memory_cells(row: dict[str, Any]) -> list[str]:
    found = {side: peak for side, peak in row["memory"].items() if peak}
    peaks = {side: peak["most"] for side, peak in found.items()}
    plain, fast = (
        "killed: out of memory" if side in row["memory"] and side not in found else gib(peaks.get(side)) for side in ("plain", "fast")
    )
    steps = _both({side: peak["most"] - peak["before"] for side, peak in found.items()}, gib)
    return [row["method"], str(row["classes"]), plain, fast, _ratio(peaks, "fast", "plain"), *steps]


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--classes", default="24,100", help="numbers of classes (default: %(default)s)")
    parser.add_argument("--method", default="mmrl,mmrlpp", help=f"some of {', '.join(PLAIN)}, or all (default: %(default)s)")
    parser.add_argument("--plain-memory", type=float, help="most GiB that the plain side may need, by an estimate")
    parser.add_argument("--plain-limit", type=int, help="most classes of the plain side; it is also left out where memory is short")
    parser.add_argument(
        "--precision", choices=("fp32", "bf16"), default="fp32",
        help="of the fast side, which then has no peaks; the plain one stays in float32 (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--no-memory", action="store_true", help="leave peak memory out (it needs a process for every side and row)")
    parser.add_argument(
        "--cpu-time", action="store_true", help="time that the processor spent, for a machine that others use too; with --threads 1"
    )
    common.add_common_options(parser, batch=4, repeats=3)
    return parser


def main(arguments: list[str] | None = None) -> int:
    parser = make_parser()
    options = parser.parse_args(arguments)
    options.no_memory |= options.precision != "fp32"
    if options.cpu_time and options.threads != 1:
        parser.error("--cpu-time counts the time that threads wait for each other too; give --threads 1")
    torch.set_num_threads(options.threads)
    clip = common.make_clip(options.backbone, options.layers)
    peak = common.matrix_peak(clock=clock_of(options))
    about = common.about(options)
    rows = kept(options.out, about)
    for method in PLAIN if options.method == "all" else options.method.split(","):
        for classes in map(int, options.classes.split(",")):
            work = Work(options.backbone, options.layers, method, classes, options.batch)
            with clip.weights_in(torch.bfloat16) if options.precision == "bf16" else nullcontext():
                rows[method, classes] = measure(work, clip, options, peak)
            print(f"measured: {method}, {classes} classes", file=sys.stderr)
            text = write(about, rows, options)
    print(text)
    return 0


def kept(out: Path | None, about: dict[str, Any]) -> dict[tuple[str, int], dict[str, Any]]:
    """Rows measured before in the same way, whose place new ones take: a table of many methods need not be measured at one go."""
    file = out and out.with_suffix(".json")
    if file is None or not file.is_file():
        return {}
    before = {"precision": "fp32"} | json.loads(file.read_text(encoding="utf-8"))
    differ = sorted(key for key in about if key not in CHOICE and before.get(key) != about[key])
    if differ:
        raise SystemExit(f"{file} was measured with other {', '.join(differ)}; give another --out.")
    return {(row["method"], row["classes"]): row for row in before["rows"]}


def write(about: dict[str, Any], rows: dict[tuple[str, int], dict[str, Any]], options: argparse.Namespace) -> str:
    """The tables of all rows, also into --out: after each row, so that none is lost."""
    order = list(PLAIN)
    found = [rows[key] for key in sorted(rows, key=lambda key: (order.index(key[0]), key[1]))]
    arithmetic = "float32" if options.precision == "fp32" else f"{options.precision} beside the plain form in float32"
    peaks = " to ".join(dict.fromkeys(f"{end(row['matrix_peak'] for row in found) / 1e9:.0f}" for end in (min, max)))
    title = common.heading(about, f"Training step, {arithmetic}, matrix peak {peaks} GFLOP/s")
    tables = [common.markdown(SPEED, list(map(speed_cells, found))), common.markdown(WORK, list(map(work_cells, found)))]
    if not options.no_memory:
        tables.append(common.markdown(MEMORY, list(map(memory_cells, found))))
    text = "\n\n".join([title, *tables])
    common.save(text, about | {"rows": found}, options.out)
    return text


if __name__ == "__main__":
    sys.exit(main())
