"""Training steps and inference on a GPU, beside the plain form in the same precision, in one run.

    python -m benchmarks.gpu --out benchmarks/results/gpu.md

Both sides are those of `benchmarks.train_step`, with weights, images and optimiser on the device; *compiled* is the fast side's step as a
training takes it with `compile=auto`: recorded once as a CUDA graph and replayed, its batch copied to where the graph reads it. A row is
one method, batch, number of classes and precision; times are medians of single steps, each waited for. Rows whose plain side does not fit
say so and time the fast side alone; with `--plain-limit` it is left out above that many classes. Where the whole step does not fit, prompts
are encoded in parts, as in a training (`memory_gib`). `--device cpu --layers 2 --backbone ViT-B-32` is a quick look on a processor, where
compiled is the same path without a graph.
"""

from __future__ import annotations

import argparse
import gc
import sys
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch

from benchmarks import common
from benchmarks.common import class_names, gib
from benchmarks.sides import PLAIN, Step, Work, fast_step, make_batch, make_method, plain_step
from benchmarks.train_step import compare_gradients
from mmrl.clip import Clip
from mmrl.engine.config import FitConfig
from mmrl.engine.memory import forget_peak, peak_resident, resident, text_memory
from mmrl.engine.optimizers import make_optimizer
from mmrl.engine.parallel import Peers
from mmrl.engine.precision import autocast
from mmrl.engine.replay import WARM_UP, CudaGraphs, Direct, Recorder, Replay, why_eager
from mmrl.engine.step import Stepper
from mmrl.errors import Notice

TRAINING = [
    "method", "batch", "classes", "precision", "plain ms", "fast ms", "compiled ms", "ratio", "compiled ratio", "images/s",
    "compiled images/s", "fast, of matrix peak", "plain peak", "fast peak", "compiled peak", "largest gradient difference",
]  # fmt: skip
INFERENCE = ["image tower", "precision", "images/s", "of bare"]
BARE = "open_clip encode_image"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
OUT_OF_MEMORY = "out of memory"


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", help="of torch (default: %(default)s)")
    parser.add_argument("--method", default="mmrl,mmrlpp,coop,maple", help=f"some of {', '.join(PLAIN)} (default: %(default)s)")
    parser.add_argument("--classes", default="24,100,500,1000", help="numbers of classes (default: %(default)s)")
    parser.add_argument("--batches", default="4,32", help="images a step (default: %(default)s)")
    parser.add_argument("--precision", default="fp32,bf16", help="of both sides: some of fp32, bf16, fp16 (default: %(default)s)")
    parser.add_argument("--plain-limit", type=int, help="most classes of the plain side; default: all that fit")
    parser.add_argument("--many", type=int, default=21_841, help="classes of one more row of each method, without a plain side; 0: none")
    common.add_common_options(parser, batch=256, repeats=10)  # `batch` is that of inference
    return parser


def main(arguments: list[str] | None = None) -> int:
    parser = make_parser()
    options = parser.parse_args(arguments)
    unknown = sorted({*options.precision.split(",")} - DTYPES.keys())
    if unknown:
        parser.error(f"--precision {unknown[0]}: {', '.join(DTYPES)}")
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.error("torch finds no CUDA device here; --device cpu measures the same code on the processor")
    torch.set_num_threads(options.threads)
    clip = common.make_clip(options.backbone, options.layers).to(device)
    size = 8192 if device.type == "cuda" else 1024
    peaks = {
        precision: common.matrix_peak(size=size, repeats=10, device=device, dtype=DTYPES[precision])
        for precision in options.precision.split(",")
    }
    rows = []
    for work in works(options):
        held = clip.weights_in(DTYPES[work.precision]) if work.precision != "fp32" else nullcontext()  # as in a training
        with held:
            rows.append(measure(work, clip, options, peaks[work.precision]))
        print(f"measured: {work.method}, batch {work.batch}, {work.classes} classes, {work.precision}", file=sys.stderr)
    towers = [row for precision in peaks for row in inference(clip, options, precision)]
    about = common.about(options) | {"gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None}
    where = f" on {about['gpu']}" if about["gpu"] else ""
    shown = ", ".join(f"{precision} {peak / 1e12:.3g} TFLOP/s" for precision, peak in peaks.items())
    tables = [common.markdown(TRAINING, list(map(cells, rows))), common.markdown(INFERENCE, list(map(tower_cells, towers)))]
    title = common.heading(about, f"Steps{where} (matrix peak: {shown}) and inference")
    common.report(title, "\n\n".join(tables), about | {"matrix_peaks": peaks, "rows": rows, "inference": towers}, options.out)
    return 0


def works(options: argparse.Namespace) -> list[Work]:
    """One for each row."""
    batches, counts = list(map(int, options.batches.split(","))), list(map(int, options.classes.split(",")))
    found = []
    for method in options.method.split(","):
        for precision in options.precision.split(","):
            shapes = [(batch, count) for batch in batches for count in counts]
            shapes += [(batches[-1], options.many)] if options.many else []
            found += [
                Work(options.backbone, options.layers, method, count, batch, device=options.device, precision=precision)
                for batch, count in shapes
            ]
    return found


def measure(work: Work, clip: Clip, options: argparse.Namespace, peak: float) -> dict[str, Any]:
    """One row. Sides are made one after the other, so that each has the memory for itself; times are taken in turn where both fit."""
    device, limit = torch.device(work.device), work.classes if options.plain_limit is None else options.plain_limit
    row: dict[str, Any] = {"method": work.method, "batch": work.batch, "classes": work.classes, "precision": work.precision}
    row |= {"flops": None, "peaks": {}, "seconds": {}, "left_out": {}, "gradients": None}
    makers: dict[str, Callable[[Work, Clip], Step]] = {"fast": fast_step, "plain": plain_step}
    if work.classes > min(limit, options.many - 1 if options.many else work.classes):
        del makers["plain"]
        row["left_out"]["plain"] = "left out"
    work = replace(work, text_memory=text_memory(device))
    steps: dict[str, Step] = {}
    for side, make in makers.items():
        try:
            row["peaks"][side] = peak_of(lambda make=make, side=side: steps.setdefault(side, make(work, clip)), device)  # type: ignore[misc]
        except torch.OutOfMemoryError:
            row["left_out"][side] = OUT_OF_MEMORY
            steps.pop(side, None)
            _free(device)
    if len(steps) == 2:
        row["gradients"] = compare_gradients(steps["fast"], steps["plain"], work.method)
    timed = {side: common.waited(step, device) for side, step in sorted(steps.items(), reverse=True)}
    replayed = compiled(work, clip, row)
    if replayed:
        timed["compiled"] = common.waited(replayed, device)
    row["seconds"] = common.interleaved(timed, options.repeats)
    row["median"] = {side: common.median(times) for side, times in row["seconds"].items()}
    if "fast" in steps:
        row["flops"] = common.count_flops(steps["fast"].backward)
        row["of_peak"] = row["flops"] / row["median"]["fast"] / peak
    steps.clear()
    timed.clear()
    del replayed
    _free(device)
    return row


def compiled(work: Work, clip: Clip, row: dict[str, Any]) -> Callable[[], object] | None:
    """A training's step that is recorded already; None, with the reason in `row`, where it cannot be."""
    device = torch.device(work.device)
    recorder: Recorder = CudaGraphs(device) if device.type == "cuda" else Direct()
    _mark(device)
    try:
        method = make_method(work, clip)
        if why_eager(method) or work.precision == "fp16":
            row["left_out"]["compiled"] = "not replayed"
            return None
        config = FitConfig(lr=1e-3, weight_decay=5e-4, precision=work.precision)
        classes = method.class_list(class_names(work.classes), work.template, memory_gib=work.text_memory)
        optimizer = make_optimizer(list(method.parameters()), config, static=recorder.static)
        scaler = torch.amp.GradScaler(device.type, enabled=False)
        replay, batch = Replay(Stepper(method, classes, config, Peers(), optimizer, scaler), recorder, 1), make_batch(work, clip)
        with warnings.catch_warnings():
            warnings.simplefilter("error", Notice)  # of a recording that failed
            for _ in range(WARM_UP + 2):
                replay.step([batch])
    except (torch.OutOfMemoryError, Notice) as error:
        row["left_out"]["compiled"] = OUT_OF_MEMORY if isinstance(error, torch.OutOfMemoryError) else str(error)
        _free(device)
        return None
    row["peaks"]["compiled"] = _peak(device)
    return lambda: replay.step([batch])


def peak_of(make: Callable[[], Step], device: torch.device) -> int:
    """Bytes of the device's memory (of the process's, on a processor) at most in two steps, weights included, the side's own making not."""
    step = make()
    _mark(device)
    step()
    step.backward()
    return _peak(device)


def _mark(device: torch.device) -> None:
    """From here on the peak of memory counts."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        forget_peak()


def _peak(device: torch.device) -> int:
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else max(peak_resident(), resident())


def inference(clip: Clip, options: argparse.Namespace, precision: str) -> list[dict[str, Any]]:
    """Images a second of adapted image towers, beside open_clip's own, in turn."""
    device, work = torch.device(options.device), Work(options.backbone, options.layers, "mmrl", 2, options.batch, device=options.device)
    images, _ = make_batch(work, clip)
    runs: dict[str, Callable[[], object]] = {BARE: lambda: clip.model.encode_image(images)}
    for name in ("mmrl", "mmrlpp", "maple"):
        if name in options.method.split(","):
            method = make_method(replace(work, method=name), clip).eval()
            runs[name] = lambda method=method: method.image_features(images)  # type: ignore[misc,attr-defined]
    with torch.inference_mode(), autocast(precision, device):
        timed = {name: common.waited(run, device) for name, run in runs.items()}
        common.interleaved(timed, 2)
        seconds = common.interleaved(timed, options.repeats)
    rate = {name: options.batch / common.median(times) for name, times in seconds.items()}
    return [{"tower": name, "precision": precision, "images_per_second": each, "of_bare": each / rate[BARE]} for name, each in rate.items()]


def _free(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def cells(row: dict[str, Any]) -> list[str]:
    median, sides, ours = row["median"], ("plain", "fast", "compiled"), ("fast", "compiled")
    times = (f"{1e3 * median[side]:.3g}" if side in median else row["left_out"].get(side, "-") for side in sides)
    ratios = (f"{median['plain'] / median[side]:.2f}" if {"plain", side} <= median.keys() else "-" for side in ours)
    rates = (f"{row['batch'] / median[side]:.1f}" if side in median else "-" for side in ours)
    share = f"{row['of_peak']:.0%}" if row["flops"] else "-"
    difference = f"{row['gradients']['relative']:.1e}" if row["gradients"] else "-"
    memory = (gib(row["peaks"].get(side)) for side in sides)
    shape = [row["method"], str(row["batch"]), str(row["classes"]), row["precision"]]
    return [*shape, *times, *ratios, *rates, share, *memory, difference]


def tower_cells(row: dict[str, Any]) -> list[str]:
    return [row["tower"], row["precision"], f"{row['images_per_second']:.1f}", f"{row['of_bare']:.3f}"]


if __name__ == "__main__":
    sys.exit(main())
