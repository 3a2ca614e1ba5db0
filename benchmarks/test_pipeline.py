"""Test images a second: `mmrl.data.test_batches` against torch's DataLoader with torchvision's transforms.

    python -m benchmarks.test_pipeline --images 256 --workers 0,2

Both decode the same generated JPEGs (about 500 x 375 pixels, 100 kB: noise and shapes), resize the shorter side to 224, crop the centre
and normalise, batch by batch, in turn in one process. What comes out of both is compared in the same run. The DataLoader's processes
are started before the clock; our threads are started within it.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset
from torchvision import transforms

from benchmarks import common
from mmrl.data import Dataset, Item, Preprocess, test_batches, to_rgb

SIZE = 224
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # OpenAI's CLIP
SHAPES = ((500, 375), (500, 333), (375, 500), (480, 360))
COLUMNS = ["workers", "DataLoader images/s", "mmrl images/s", "ratio", "largest difference"]


class Plain(TorchDataset[tuple[Tensor, int]]):
    """The files, as one would write it: Pillow and torchvision's transforms."""

    def __init__(self, files: Sequence[Path]) -> None:
        self.files = files
        self.transform = transforms.Compose([
            transforms.Resize(SIZE, transforms.InterpolationMode.BICUBIC),
            transforms.CenterCrop(SIZE),
            transforms.ToTensor(),
            transforms.Normalize(MEAN, STD),
        ])  # fmt: skip

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        with Image.open(self.files[i]) as image:
            return self.transform(image.convert("RGB")), i


def photo(seed: int) -> Image.Image:
    """Soft colours, shapes with edges, and noise: what makes a JPEG of a photograph as large and as slow as it is."""
    random = np.random.default_rng(seed)
    width, height = SHAPES[seed % len(SHAPES)]
    image = Image.fromarray(random.integers(0, 256, (6, 8, 3), dtype=np.uint8)).resize((width, height), Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(image)
    for _ in range(12):
        x, y, w, h = (int(v) for v in random.integers((0, 0, 20, 20), (width, height, 160, 160)))
        draw.ellipse((x, y, x + w, y + h), fill=tuple(int(v) for v in random.integers(0, 256, 3)))
    noisy = np.asarray(image) + random.normal(0, 14, (height, width, 3))
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


def whole_number(least: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        if int(text) < least:
            raise argparse.ArgumentTypeError(f"must be at least {least}")
        return int(text)

    return number


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=whole_number(1), default=256, help="JPEG files (default: %(default)s)")
    parser.add_argument("--workers", default="0,2", help="threads, and processes of the DataLoader: 'a,b,c' (default: %(default)s)")
    parser.add_argument("--batch", type=whole_number(1), default=64, help="images (default: %(default)s)")
    parser.add_argument("--repeats", type=whole_number(1), default=5, help="timed passes of each side, in turn (default: %(default)s)")
    parser.add_argument("--threads", type=whole_number(1), default=2, help="threads of torch (default: %(default)s)")
    parser.add_argument("--out", type=Path, help="write the table there as Markdown, and all numbers beside it as .json")
    return parser


def measure(files: Sequence[Path], workers: int, options: argparse.Namespace) -> dict[str, Any]:
    """One row: seconds of every pass of both sides, and how far their outputs are apart."""
    loader = DataLoader(Plain(files), options.batch, num_workers=workers, persistent_workers=workers > 0)
    items = [Item(str(file), i) for i, file in enumerate(files)]
    dataset = Dataset("photos", tuple(map(str, range(len(files)))), "{}", [], [], items, read=to_rgb)
    preprocess = Preprocess(SIZE, MEAN, STD)

    def ours() -> Iterable[tuple[Tensor, Tensor]]:
        return test_batches(dataset, items, preprocess, options.batch, workers)

    differences = [float((a - b).abs().max()) for (a, _), (b, _) in zip(loader, ours(), strict=True)]  # and a warm-up
    runs = {"plain": lambda: through(loader), "mmrl": lambda: through(ours())}
    seconds = common.interleaved(runs, options.repeats)
    rates = {name: len(files) / common.median(times) for name, times in seconds.items()}
    return {"workers": workers, "images_per_second": rates, "ratio": rates["mmrl"] / rates["plain"], "difference": max(differences)} | {
        "seconds": seconds
    }


def through(batches: Iterable[tuple[Tensor, Tensor]]) -> int:
    return sum(len(labels) for _, labels in batches)


def main(arguments: list[str] | None = None) -> int:
    options = make_parser().parse_args(arguments)
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / f"{i}.jpg" for i in range(options.images)]
        for i, file in enumerate(files):
            photo(i).save(file, quality=92)
        size = sum(file.stat().st_size for file in files) / len(files)
        rows = [measure(files, int(workers), options) for workers in options.workers.split(",")]
    about = common.about(options)
    where = f"{about['processor']}, {about['cores']} cores, torch {about['torch']} with {options.threads} threads"
    title = f"Test pipeline: {len(files)} JPEGs of {size / 1e3:.0f} kB, batch {options.batch}; {where}; {options.repeats} passes each."
    common.report(title, common.markdown(COLUMNS, [cells(row) for row in rows]), about | {"bytes": size, "rows": rows}, options.out)
    return 0 if all(row["difference"] == 0 for row in rows) else 1


def cells(row: dict[str, Any]) -> list[str]:
    rates = row["images_per_second"]
    return [str(row["workers"]), f"{rates['plain']:.0f}", f"{rates['mmrl']:.0f}", f"{row['ratio']:.2f}", f"{row['difference']:.1g}"]


if __name__ == "__main__":
    sys.exit(main())
