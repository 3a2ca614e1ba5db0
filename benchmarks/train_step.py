"""A training step of the fast path against the same method written plainly, as the authors' code does it.

    python -m benchmarks.train_step --classes 24,100 --batch 4 --backbone ViT-B-16

One step is forward, backward and AdamW in float32. Both sides share frozen random weights and start from the same trained parameters, and
both have the zero-shot class features w_0 before the first step. In a step

- *plain* runs three whole encoders: the adapted text encoder on every prompt, at 77 positions and K more from layer J; the adapted image
  encoder; and the zero-shot image encoder, without gradient;
- *fast* runs the text encoder from layer J on, on prompts cut to the longest one's EOT and on their common beginning once; the image
  encoder below layer J once, and from there an adapted pass and a zero-shot one; and the last layers at the pooled positions alone.

The FLOP ratio is the bound of one float32 run: it is the ratio in time of two sides that run at an equal share of the matrix peak. A ratio
above it means that the plain side runs at a smaller share.
"""

from __future__ import annotations

import argparse
import gc
import sys
from typing import Any

import torch

from benchmarks import common
from benchmarks.common import gib
from benchmarks.memory import available, peak_of, plain_needs
from benchmarks.sides import Step, Work, fast_step, longest_prompt, plain_step
from mmrl.clip import Clip
from tests.oracle.pair import gradients_of_both, relative_error

BOUND = "bound (FLOP ratio)"
SPEED = ["method", "classes", "longest prompt", "plain s/step", "fast s/step", "ratio", BOUND, "largest gradient difference"]
WORK = ["method", "classes", "plain TFLOP", "fast TFLOP", BOUND, "plain, of matrix peak", "fast, of matrix peak"]
MEMORY = ["method", "classes", "plain peak", "fast peak", "fast / plain", "plain, of it in the step", "fast, of it in the step"]


def compare_gradients(fast: Step, plain: Step) -> dict[str, Any]:
    """Largest difference between gradients, relative in the Euclidean norm, over all tensors (layers apart); both ran backward."""
    pairs = gradients_of_both(fast.module, plain.module)  # type: ignore[arg-type]
    worst = max(pairs, key=lambda name: relative_error(*pairs[name]))
    return {"relative": relative_error(*pairs[worst]), "tensor": worst, "tensors": len(pairs)}


def refusal(work: Work, clip: Clip, limit: int | None) -> str | None:
    """Why the plain side is not run, if so."""
    if limit is not None and work.classes > limit:
        return f"over --plain-limit {limit}"
    needed, free = plain_needs(work, clip), available()
    if free is not None and needed > free:
        return f"needs about {gib(needed)}, free are {gib(free)}"
    return None


def measure(work: Work, clip: Clip, options: argparse.Namespace, peak: float) -> dict[str, Any]:
    """One row. The first, counted step also warms up; then both sides are timed in turn."""
    why_not = refusal(work, clip, options.plain_limit)
    steps = {"fast": fast_step(work, clip)}
    if why_not is None:
        steps["plain"] = plain_step(work, clip)
    flops = {side: common.count_flops(step.backward) for side, step in steps.items()}
    row: dict[str, Any] = {"method": work.method, "classes": work.classes, "longest_prompt": longest_prompt(work, clip), "flops": flops}
    row |= {"plain_left_out": why_not, "gradients": None if why_not else compare_gradients(steps["fast"], steps["plain"])}
    row["seconds"] = common.interleaved({side: steps[side] for side in sorted(steps, reverse=True)}, options.repeats)
    row["median"] = {side: common.median(times) for side, times in row["seconds"].items()}
    row["of_peak"] = {side: flops[side] / row["median"][side] / peak for side in flops}
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


def speed_cells(row: dict[str, Any]) -> list[str]:
    plain, fast = _both(row["median"], lambda seconds: f"{seconds:.3g}")
    gradient = "-" if row["gradients"] is None else f"{row['gradients']['relative']:.1e}"
    ratios = (_ratio(row[what], "plain", "fast") for what in ("median", "flops"))
    return [row["method"], str(row["classes"]), str(row["longest_prompt"]), row["plain_left_out"] or plain, fast, *ratios, gradient]


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
    parser.add_argument("--method", default="mmrl,mmrlpp", help="methods (default: %(default)s)")
    parser.add_argument("--plain-limit", type=int, help="most classes of the plain side; it is also left out where memory is short")
    parser.add_argument("--no-memory", action="store_true", help="leave peak memory out (it needs a process for every side and row)")
    common.add_common_options(parser, batch=4, repeats=3)
    return parser


def main(arguments: list[str] | None = None) -> int:
    options = make_parser().parse_args(arguments)
    torch.set_num_threads(options.threads)
    clip = common.make_clip(options.backbone, options.layers)
    peak = common.matrix_peak()
    rows = []
    for method in options.method.split(","):
        for classes in map(int, options.classes.split(",")):
            work = Work(options.backbone, options.layers, method, classes, options.batch)
            rows.append(measure(work, clip, options, peak))
            print(f"measured: {method}, {classes} classes", file=sys.stderr)
    about = common.about(options)
    title = common.heading(about, f"Training step, float32, matrix peak {peak / 1e9:.0f} GFLOP/s")
    tables = [common.markdown(SPEED, list(map(speed_cells, rows))), common.markdown(WORK, list(map(work_cells, rows)))]
    if not options.no_memory:
        tables.append(common.markdown(MEMORY, list(map(memory_cells, rows))))
    common.report(title, "\n\n".join(tables), about | {"matrix_peak": peak, "rows": rows}, options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
