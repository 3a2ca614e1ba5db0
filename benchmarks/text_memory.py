"""Peak memory of a training step with many classes, whole and with the text encoded in chunks.

    python -m benchmarks.text_memory --classes 1000 --batch 4 --backbone ViT-B-16 --memory 0.5,1,2

A chunk's activations are computed anew in the backward pass, so memory grows with the chunk and not with the classes; the numbers stay
the same. With two limits or more, a straight line through what the steps take says how much a prompt more in the chunk costs, and how far
the measured ones are from it. `--template` with a long prompt shows the worst case.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

from benchmarks import common
from benchmarks.common import gib
from benchmarks.memory import Peak, peak_of
from benchmarks.sides import Work, longest_prompt

COLUMNS = ["method", "text memory", "prompts in a chunk", "s/step", "peak", "of it in the step"]


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--classes", type=int, default=1000, help="number of classes (default: %(default)s)")
    parser.add_argument("--method", default="mmrl,mmrlpp", help="methods (default: %(default)s)")
    parser.add_argument("--memory", default="0.5,1,2", help="memory of the text activations in GiB, one or more (default: %(default)s)")
    parser.add_argument("--template", default=common.TEMPLATE, help="prompt (default: %(default)s)")
    parser.add_argument("--goal", type=float, default=8.0, help="exit with 1 if a chunked step needs more GiB (default: %(default)s)")
    parser.add_argument("--cpu-time", action="store_true", help="count the processor's seconds, on a machine that others use; --threads 1")
    common.add_common_options(parser, batch=4, repeats=2)
    return parser


class Line(NamedTuple):
    """What the steps of a method take, in bytes: at once, for a prompt more in the chunk, and the furthest that a step is from that."""

    method: str
    rest: float
    prompt: float
    off: float


def line(method: str, found: Sequence[Peak]) -> Line | None:
    """Of steps with different chunks; None where there are fewer than two. Least squares."""
    points = {peak.chunk or 0: peak.most - peak.before for peak in found}
    if len(points) < 2:
        return None
    slope, rest = statistics.linear_regression(list(points), list(points.values()))
    return Line(method, rest, slope, max(abs(taken - rest - slope * chunk) for chunk, taken in points.items()))


def sentence(line: Line) -> str:
    return (
        f"{line.method}: a step takes {gib(line.rest)}, and {line.prompt / 2**20:.2f} MiB for each prompt in the chunk; "
        f"the measured ones are at most {gib(line.off)} from that line."
    )


def cells(method: str, memory: float | None, peak: Peak | None) -> list[str]:
    allowed = "no limit" if memory is None else f"{memory:g} GiB"
    if peak is None:
        return [method, allowed, "-", "-", "killed: out of memory", "-"]
    return [method, allowed, str(peak.chunk or "all"), f"{peak.seconds:.3g}", gib(peak.most), gib(peak.most - peak.before)]


def main(arguments: list[str] | None = None) -> int:
    options = make_parser().parse_args(arguments)
    length = longest_prompt(_work(options, "mmrl", None), common.make_clip(options.backbone, options.layers))
    rows: list[dict[str, Any]] = []
    table, lines, over = [], list[Line](), False
    clock = time.process_time if options.cpu_time else time.perf_counter
    for method in options.method.split(","):
        limited: list[Peak] = []
        for memory in (None, *map(float, options.memory.split(","))):
            peak = peak_of(_work(options, method, memory), "fast", threads=options.threads, steps=options.repeats, clock=clock)
            limited += [peak] if peak and peak.chunk and peak.chunk < options.classes else []
            rows.append({"method": method, "memory_gib": memory, "peak": peak and peak._asdict()})
            table.append(cells(method, memory, peak))
            over |= memory is not None and (peak is None or peak.most > options.goal * 2**30)
        lines += [found] if (found := line(method, limited)) else []
    about = common.about(options)
    title = common.heading(about, f"Training step, {options.classes} classes, longest prompt {length} tokens")
    text = "\n\n".join([common.markdown(COLUMNS, table), *map(sentence, lines)])
    numbers = {"longest_prompt": length, "rows": rows, "lines": [each._asdict() for each in lines]}
    common.report(title, text, about | numbers, options.out)
    return int(over)


def _work(options: argparse.Namespace, method: str, memory: float | None) -> Work:
    return Work(options.backbone, options.layers, method, options.classes, options.batch, options.template, memory)


if __name__ == "__main__":
    sys.exit(main())
