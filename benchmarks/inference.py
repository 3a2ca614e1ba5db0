"""Images a second of the adapted image tower against open_clip's bare `encode_image`.

    python -m benchmarks.inference --backbone ViT-B-16 --batch 32

Same weights, same precision, in turn in one process. `image_features` gives all that inference needs of an image: the class token's
feature and the representation tokens', projected and normalised.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from typing import Any

import torch

from benchmarks import common
from mmrl import methods

BARE = "open_clip encode_image"
COLUMNS = ["image tower", "images/s", "of bare", "GFLOP an image", "of matrix peak"]
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--precision", choices=PRECISIONS, default="fp32", help="bf16: both sides under autocast (default: %(default)s)")
    parser.add_argument("--cpu-time", action="store_true", help="count the processor's seconds, on a machine that others use; --threads 1")
    common.add_common_options(parser, batch=32, repeats=7)
    return parser


def main(arguments: list[str] | None = None) -> int:
    options = make_parser().parse_args(arguments)
    torch.set_num_threads(options.threads)
    clip = common.make_clip(options.backbone, options.layers)
    images = torch.randn(options.batch, 3, clip.image_size, clip.image_size, generator=torch.Generator().manual_seed(0))
    runs: dict[str, Callable[[], object]] = {BARE: lambda: clip.model.encode_image(images)}
    for name in ("zero-shot", "mmrl", "mmrlpp"):
        method = methods.build(name, clip, seed=0)
        runs[name] = lambda method=method: method.image_features(images)  # type: ignore[misc]
    clock = time.process_time if options.cpu_time else time.perf_counter
    peak = common.matrix_peak(clock=clock) if options.precision == "fp32" else None
    precision = torch.autocast("cpu", PRECISIONS[options.precision], enabled=options.precision != "fp32")
    with torch.no_grad(), precision:
        flops = {name: common.count_flops(run) / options.batch for name, run in runs.items()}
    with torch.inference_mode(), precision:
        common.interleaved(runs, 1)  # warm-up: counting takes another path through open_clip's attention
        seconds = common.interleaved(runs, options.repeats, clock)
    rate = {name: options.batch / common.median(times) for name, times in seconds.items()}
    rows: list[dict[str, Any]] = [
        {
            "tower": name,
            "images_per_second": rate[name],
            "of_bare": rate[name] / rate[BARE],
            "flops_per_image": flops[name],
            "of_peak": rate[name] * flops[name] / peak if peak else None,
            "seconds": times,
        }
        for name, times in seconds.items()
    ]
    about = common.about(options)
    title = common.heading(about, f"Inference, {options.precision}")
    common.report(title, common.markdown(COLUMNS, [cells(row) for row in rows]), about | {"matrix_peak": peak, "rows": rows}, options.out)
    return 0


def cells(row: dict[str, Any]) -> list[str]:
    share = "-" if row["of_peak"] is None else f"{row['of_peak']:.0%}"
    return [row["tower"], f"{row['images_per_second']:.1f}", f"{row['of_bare']:.3f}", f"{row['flops_per_image'] / 1e9:.2f}", share]


if __name__ == "__main__":
    sys.exit(main())
