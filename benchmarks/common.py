"""What the benchmarks share: models and names to measure with, timing, counting, tables."""

from __future__ import annotations

import argparse
import gc
import os
import platform
import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from mmrl.clip import Clip, random_clip
from mmrl.files import write_json, write_text

CPU = torch.device("cpu")
TEMPLATE = "a photo of a {}."
NOUNS = """
    abbey airplane albatross anemone barn beagle bicycle bonsai buttercup cabin canyon castle cheesecake chickadee
    clematis cormorant daffodil dahlia donut falcon ferry finch forest foxglove glacier grosbeak guitar gull
    hibiscus highway hummingbird iris jay kingfisher lagoon lasagna lily lotus magnolia marigold oriole orchid
    paella pansy pelican pigeon poinsettia primrose puffin ravioli redstart rose runway sedan sparrow stadium
    steak sunflower swallow tanager tern thistle tulip vireo wagon warbler waxwing woodpecker wren
"""
ADJECTIVES = """
    alpine arctic baby bearded black blue brown canna common crested desert double evening field fire glossy
    golden grey herring indigo ivory king lesser long-tailed mountain northern orange painted pale pink pine
    prairie purple red rock royal ruby-throated scarlet sea slaty-backed snow spotted spring stemless striped
    sweet tree white wild winter yellow yellow-bellied
"""


def class_names(count: int) -> list[str]:
    """Distinct names of 1 to 5 words, as fine-grained data sets have them; the first n are the same for every count."""
    draw, nouns, adjectives = random.Random(0), NOUNS.split(), ADJECTIVES.split()
    names: dict[str, None] = {}
    while len(names) < count:
        words = draw.choices((1, 2, 3, 4, 5), weights=(20, 40, 25, 10, 5))[0]
        names[" ".join([*draw.sample(adjectives, words - 1), draw.choice(nouns)])] = None
    return list(names)


def make_clip(backbone: str, layers: int | None = None) -> Clip:
    """A random CLIP of an architecture of open_clip, for a quick look with fewer `layers` in both towers."""
    smaller: dict[str, Any] = {} if layers is None else {"vision_cfg": {"layers": layers}, "text_cfg": {"layers": layers}}
    return random_clip(backbone, **smaller)


def add_common_options(parser: argparse.ArgumentParser, *, batch: int, repeats: int) -> None:
    parser.add_argument("--backbone", default="ViT-B-16", help="architecture of open_clip; weights are random (default: %(default)s)")
    parser.add_argument("--layers", type=int, help="layers of both towers, for a quick look at a smaller model")
    parser.add_argument("--batch", type=int, default=batch, help="images (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=repeats, help="timed runs of each side, in turn (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="threads of torch (default: %(default)s)")
    parser.add_argument("--out", type=Path, help="write the table there as Markdown, and all numbers beside it as .json")


def interleaved(
    runs: Mapping[str, Callable[[], object]], repeats: int, clock: Callable[[], float] = time.perf_counter
) -> dict[str, list[float]]:
    """Seconds of each run, one after the other in every repeat, so that a change of the machine's speed meets all of them."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            gc.collect()
            start = clock()
            run()
            seconds[name].append(clock() - start)
    return seconds


def count_flops(run: Callable[[], object]) -> int:
    """Floating-point operations of matrix products, convolutions and attention in `run`, which is executed once.

    The fused attention of `nn.MultiheadAttention` is switched off meanwhile: the counter does not know that operation.
    """
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with FlopCounterMode(display=False) as counter:
            run()
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)
    return int(counter.get_total_flops())


def waited(run: Callable[[], object], device: torch.device) -> Callable[[], object]:
    """`run`, until the device has done it."""

    def whole() -> None:
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return whole


def matrix_peak(
    size: int = 2048, repeats: int = 5, clock: Callable[[], float] = time.perf_counter, *,
    device: torch.device = CPU, dtype: torch.dtype = torch.float32,
) -> float:  # fmt: skip
    """Operations a second of this machine: the fastest of some products of square matrices, with torch's present threads."""
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    product = waited(lambda: a @ b, device)
    product()
    seconds = interleaved({"product": product}, repeats, clock)["product"]
    return 2 * size**3 / min(seconds)


def median(seconds: Sequence[float]) -> float:
    return statistics.median(seconds)


def about(options: argparse.Namespace) -> dict[str, Any]:
    """What was measured and where, for the report."""
    processor = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        found = (line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name"))
        processor = next(found, processor)
    given = {key: value for key, value in vars(options).items() if key != "out"}
    return given | {"processor": processor, "cores": os.cpu_count(), "torch": torch.__version__, "python": platform.python_version()}


def heading(about: dict[str, Any], what: str) -> str:
    """One line that says what `what` was measured with."""
    cut = f" cut to {about['layers']} layers" if about["layers"] else ""
    where = f"{about['processor']}, {about['threads']} thread{'s' if about['threads'] > 1 else ''}, torch {about['torch']}"
    runs = "1 run" if about["repeats"] == 1 else f"{about['repeats']} runs"
    clock = ", processor seconds" if about.get("cpu_time") else ""
    return f"{what}: {about['backbone']}{cut}, random weights, batch {about['batch']}; {where}; {runs} each{clock}."


def markdown(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [columns, ["---", *["---:"] * (len(columns) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def report(title: str, text: str, numbers: dict[str, Any], out: Path | None) -> None:
    """Print, and with `out` write Markdown there and the numbers beside it."""
    print(f"{title}\n\n{text}")
    save(f"{title}\n\n{text}", numbers, out)


def save(text: str, numbers: dict[str, Any], out: Path | None) -> None:
    """Where there is an `out`, Markdown goes there and the numbers beside it."""
    if out is not None:
        write_text(out, f"{text}\n")
        write_json(out.with_suffix(".json"), numbers)


def gib(count: float | None) -> str:
    return "-" if count is None else f"{count / 2**30:.2f} GiB"
