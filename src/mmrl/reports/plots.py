"""A picture for people: images over their likeliest classes, as PNG."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from PIL import Image

from mmrl.files import write_bytes

TRAINED, NEW = "#0072B2", "#D55E00"  # distinct for colour-blind readers; the new are hatched, too
DPI = 160
_STYLE: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.titleweight": "bold",
    "text.parse_math": False,  # a class may be called "$5 note"
}

Ranked = tuple[str, float, bool]  # name, probability, trained


def predictions_plot(images: Sequence[Path], predictions: Sequence[Sequence[Ranked]], truths: Sequence[str], path: Path) -> None:
    """Each image over its likeliest classes, as bars; classes that were never trained are hatched and marked as new.

    Args:
        predictions: for each image (name, probability, trained), likeliest first.
        truths: the right class of each image, for the titles.
    """
    columns = min(4, len(images))
    rows = -(-len(images) // columns)
    content = io.BytesIO()
    with matplotlib.rc_context(_STYLE):
        drawn = Figure(figsize=(2.3 * columns, 2.9 * rows), layout="constrained", facecolor="white")  # no pyplot: it needs no display
        grid = drawn.subfigures(rows, columns, squeeze=False)
        for place in grid.flat[len(images) :]:
            place.set_visible(False)
        for place, file, ranked, truth in zip(grid.flat, images, predictions, truths):
            upper, lower = place.subplots(2, 1, height_ratios=(3, 1.3))
            with Image.open(file) as image:
                upper.imshow(image.convert("RGB"), interpolation="nearest")
            upper.set_title(f"it is: {_shorten(truth, 20)}")
            upper.axis("off")
            for at, (name, probability, trained) in enumerate(ranked):
                look = {"color": TRAINED} if trained else {"facecolor": "white", "edgecolor": NEW, "hatch": "//////"}
                lower.barh(at + 0.2, probability, height=0.3, **look)
                lower.text(0, at, f"{_shorten(name, 24)}{'' if trained else ' (new)'}", va="bottom", fontsize=7.5)
                lower.text(1, at, f"{probability:.0%}", va="bottom", ha="right", fontsize=7.5)
            lower.set(xlim=(0, 1), ylim=(len(ranked) - 0.5, -0.6), xticks=[], yticks=[])
            lower.spines[:].set_visible(False)
        drawn.savefig(content, format="png", dpi=DPI, metadata={"Software": None})  # no date, no version: the same numbers, the same bytes
    write_bytes(path, content.getvalue())


def _shorten(name: str, limit: int = 22) -> str:
    return name if len(name) <= limit else name[: limit - 1] + "…"
