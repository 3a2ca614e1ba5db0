"""Draw docs/mini_sheet.png: a row of test pictures of each set of the mini benchmark.

python tools/contact_sheet.py [--out docs/mini_sheet.png] [--columns 11]
"""

from __future__ import annotations

import argparse
from pathlib import Path

from PIL import Image, ImageDraw

from mmrl.data import dataset_names, load_dataset

SIDE, LABEL = 64, 13  # pixels: a picture, the line of text above a row


def sheet(columns: int) -> Image.Image:
    """One row a set; the classes of a row are spread over all of them, base and novel alike."""
    names = [name for name in dataset_names() if name.startswith("mini:")]
    out = Image.new("RGB", (columns * SIDE, len(names) * (SIDE + LABEL)), "white")
    draw = ImageDraw.Draw(out)
    for row, name in enumerate(names):
        dataset = load_dataset(name)
        top = row * (SIDE + LABEL)
        draw.text((2, top), f"{name}: {len(dataset.classes)} classes, {len(dataset.test)} test images", fill="black")
        for column in range(columns):
            label = column * len(dataset.classes) // columns
            items = [item for item in dataset.test if item.label == label]
            out.paste(dataset.image(items[column % len(items)]), (column * SIDE, top + LABEL))
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("docs/mini_sheet.png"))
    parser.add_argument("--columns", type=int, default=11)
    args = parser.parse_args()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    image = sheet(args.columns).quantize(256, Image.Quantize.MEDIANCUT, kmeans=3)
    image.save(args.out, optimize=True)
    print(f"wrote {args.out}: {args.out.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
