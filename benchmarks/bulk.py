"""Predictions in bulk: images a second and memory of `mmrl.predict_many`, against one image at a time and all at once.

    python -m benchmarks.bulk --images 10000

Speed is of the embedded CLIP `tiny`; memory, at N and 10 N images, of a much smaller random one, so that it is soon done. Images are
JPEGs of 320 x 240 pixels, some hundred files under as many names as are asked for (hard links). Each side runs in a process of its own,
whose peak memory is counted from when the model is loaded. All at once is what `mmrl predict` did before: `Classifier.judge` of the
whole list, then one file.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks import common
from mmrl import api, methods
from mmrl.classifier.predictor import Classifier
from mmrl.clip import random_clip
from mmrl.engine.memory import forget_peak, peak_resident, resident

CLASSES = ("badger", "red panda", "wolverine", "pine marten")
FILES = 100  # that are different
FOLDER = 10_000  # names in a folder
SMALL: dict[str, Any] = {
    "embed_dim": 16,
    "vision_cfg": {"layers": 1, "width": 32, "image_size": 32, "patch_size": 16, "head_width": 32},
    "text_cfg": {"layers": 1, "width": 32, "heads": 1, "context_length": 16},
}
SPEED = ["way", "images", "images/s", "of one at a time", "of all at once"]
MEMORY = ["way", "images", "peak above the model, MB", "bytes an image more"]
NAMED = {"one": "one image at a time, `clf.predict(path)`", "all": "all at once, `clf.judge(paths)`", "stream": "`mmrl.predict_many`"}


def make(folder: Path, count: int) -> None:
    """`count` names of some JPEGs that look like photos to a decoder: smooth, with a little noise."""
    random = np.random.default_rng(0)
    for at in range(count):
        place = folder / f"{at // FOLDER:03}" / f"{at:07}.jpg"
        place.parent.mkdir(parents=True, exist_ok=True)
        first = folder / "000" / f"{at % FILES:07}.jpg"
        if at < FILES:
            rough = Image.fromarray(random.integers(0, 255, (6, 8, 3), dtype=np.uint8)).resize((320, 240), Image.Resampling.BICUBIC)
            noise = random.normal(0, 6, (240, 320, 3))
            Image.fromarray(np.clip(np.asarray(rough) + noise, 0, 255).astype(np.uint8)).save(place, quality=85)
        else:
            os.link(first, place)


def names(folder: Path, count: int) -> list[str]:
    return [str(folder / f"{at // FOLDER:03}" / f"{at:07}.jpg") for at in range(count)]


def classifier(backbone: str) -> Classifier:
    if backbone == "tiny":
        return api.zero_shot("tiny", device="cpu")
    return Classifier(methods.build("zero-shot", random_clip("ViT-B-32", **SMALL)))


def one(clf: Classifier, paths: list[str], out: Path) -> None:
    with out.open("w") as file:
        for path in paths:
            file.write(json.dumps({"image": path, "class": clf.predict(path, CLASSES)}) + "\n")


def together(clf: Classifier, paths: list[str], out: Path) -> None:
    found = clf.judge(paths, CLASSES, top=3, reject=False, skip_broken=True)
    lines = [{"image": path, "predictions": [each._asdict() for each in judged.ranked]} for path, judged in zip(paths, found)]
    out.write_text("".join(f"{json.dumps(line)}\n" for line in lines))


def stream(clf: Classifier, folder: Path, out: Path) -> None:
    api_found = _many()(clf, folder, out, classes=CLASSES, recursive=True, progress=False)
    assert not api_found.unreadable


def _many() -> Callable[..., Any]:
    from mmrl.bulk.predict import predict_many

    return predict_many


def side(options: argparse.Namespace) -> None:
    """Run one side and print what it took."""
    torch.set_num_threads(options.threads)
    clf, out = classifier(options.backbone), options.folder.parent / f"{options.side}.jsonl"
    out.unlink(missing_ok=True), out.with_name(f"{out.name}.run.json").unlink(missing_ok=True)
    clf.predict(np.zeros((8, 8, 3), np.uint8), CLASSES)  # what is loaded or computed once
    _many()
    forget_peak()
    before, wall, used = resident(), time.perf_counter(), time.process_time()
    if options.side == "stream":
        stream(clf, options.folder, out)
    else:
        (one if options.side == "one" else together)(clf, names(options.folder, options.images), out)
    took, processor = time.perf_counter() - wall, time.process_time() - used
    assert len(out.read_bytes().splitlines()) == options.images
    print(json.dumps({"seconds": took, "processor": processor, "above": (peak_resident() or 0) - (before or 0)}))


def run(which: str, folder: Path, count: int, backbone: str, threads: int) -> dict[str, Any]:
    words = ["--side", which, "--folder", str(folder), "--images", str(count), "--backbone", backbone, "--threads", str(threads)]
    done = subprocess.run([sys.executable, "-m", "benchmarks.bulk", *words], check=True, stdout=subprocess.PIPE, text=True)
    found = {"way": which, "images": count, "backbone": backbone, **json.loads(done.stdout.splitlines()[-1])}
    print(found, file=sys.stderr)
    return found


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=10_000, help="N (default: %(default)s)")
    parser.add_argument("--speed-images", type=int, help="images whose time is taken (default: N)")
    parser.add_argument("--repeats", type=int, default=2, help="timed runs of each side, in turn; the median counts (default: %(default)s)")
    parser.add_argument("--wall", action="store_true", help="count seconds on the wall, on a quiet machine; default: the processor's")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch (default: %(default)s)")
    parser.add_argument("--out", type=Path, help="write the tables there as Markdown, and all numbers beside it as .json")
    for hidden in ("--side", "--backbone"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.side:
        side(options)
        return 0
    count, timed = options.images, min(options.speed_images or options.images, options.images)
    with tempfile.TemporaryDirectory() as place:
        folders = {size: Path(place) / f"{size}" / "photos" for size in dict.fromkeys((timed, count, 10 * count))}
        for size, folder in folders.items():
            make(folder, size)
        speed = [run(way, folders[timed], timed, "tiny", options.threads) for _ in range(options.repeats) for way in NAMED]
        memory = [run(way, folders[size], size, "small", options.threads) for way in ("all", "stream") for size in (count, 10 * count)]
    clock = "seconds" if options.wall else "processor"
    rate = {way: timed / common.median([row[clock] for row in speed if row["way"] == way]) for way in NAMED}
    speeds = [[NAMED[way], f"{timed:,}", f"{own:.0f}", f"{own / rate['one']:.2f}", f"{own / rate['all']:.2f}"] for way, own in rate.items()]
    peaks = []
    for first, second in (memory[:2], memory[2:]):
        slope = (second["above"] - first["above"]) / (second["images"] - first["images"])
        for row, more in ((first, ""), (second, f"{slope:.0f}")):
            peaks.append([NAMED[row["way"]], f"{row['images']:,}", f"{row['above'] / 2**20:.1f}", more])
    about = common.about(options)
    what = "on the wall" if options.wall else "of the processor, all threads together"
    threads = "1 thread" if options.threads == 1 else f"{options.threads} threads"
    title = f"Predictions in bulk, {threads} of torch; seconds {what}; {about['processor']}."
    text = f"{common.markdown(SPEED, speeds)}\n\n{common.markdown(MEMORY, peaks)}"
    common.report(title, text, about | {"rate": rate, "speed": speed, "memory": memory}, options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
