"""Which kernels a training step spends its time in, for the fast path beside the method written plainly.

    python -m benchmarks.kernels --method mmrl --classes 100 --batch 4 --backbone ViT-B-16 --threads 1

Each side takes one step to warm up and is profiled over `--repeats` more. A row is one operator of PyTorch with the time spent in it alone,
not in those it calls: the processor's or, on a GPU, the device's. Shares say where the time goes; the profiler slows many small operators
more than few large ones, so for seconds take `benchmarks.train_step`.
"""

from __future__ import annotations

import argparse
import sys
from contextlib import nullcontext
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks import common
from benchmarks.sides import PLAIN, Step, Work, fast_step, plain_step

KEPT = 24  # operators a side beside the table: what is below them is a thousandth of the step
COLUMNS = ["side", "kernel", "calls a step", "ms a step", "share"]


class Kernel(NamedTuple):
    """One operator: its name, calls a step, and seconds a step spent in it alone."""

    name: str
    calls: float
    seconds: float


def kernels_of(step: Step, repeats: int, device: str) -> list[Kernel]:
    """All operators of a step, the costliest first."""
    on_gpu = torch.device(device).type == "cuda"
    step()
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]) as profiled:
        for _ in range(repeats):
            step()
    found = [
        Kernel(each.key, each.count / repeats, (each.self_device_time_total if on_gpu else each.self_cpu_time_total) / repeats / 1e6)
        for each in profiled.key_averages()
    ]
    return sorted((each for each in found if each.seconds), key=lambda each: -each.seconds)


def lines_of(side: str, kernels: list[Kernel], top: int) -> list[list[str]]:
    whole = sum(each.seconds for each in kernels)
    rest = kernels[top:]
    shown = [*kernels[:top], Kernel(f"{len(rest)} others", sum(each.calls for each in rest), sum(each.seconds for each in rest))]
    return [[side, each.name, f"{each.calls:.0f}", f"{1e3 * each.seconds:.1f}", f"{each.seconds / whole:.1%}"] for each in shown]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", default="mmrl", choices=tuple(PLAIN))
    parser.add_argument("--classes", type=int, default=100)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help="of both sides")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--top", type=int, default=8, help="rows a side; the rest is one row")
    common.add_common_options(parser, batch=4, repeats=2)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    clip = common.make_clip(options.backbone, options.layers).to(options.device)
    work = Work(options.backbone, options.layers, options.method, options.classes, options.batch, device=options.device)
    work = replace(work, precision=options.precision)
    lines: list[list[str]] = []
    numbers: dict[str, Any] = {"about": common.about(options), "kernels": {}}
    for side, made in (("plain", plain_step), ("fast", fast_step)):
        held = clip.weights_in(torch.bfloat16) if side == "fast" and options.precision == "bf16" else nullcontext()  # as in a training
        with held:
            found = kernels_of(made(work, clip), options.repeats, options.device)
        lines += lines_of(side, found, options.top)
        numbers["kernels"][side] = [each._asdict() for each in found[:KEPT]]
    what = f"Kernels of a step of {options.method}, {options.classes} classes, {options.precision}"
    common.report(common.heading(numbers["about"], what), common.markdown(COLUMNS, lines), numbers, options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
