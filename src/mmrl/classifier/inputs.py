"""Batches of pixels of everything that is an image (`mmrl.data.sources`), URLs among them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from PIL import Image
from torch import Tensor

from mmrl.classifier.web import Urls, fetched
from mmrl.data import Broken, Item, Preprocess, image_batches, to_rgb, usual_workers
from mmrl.data.sources import Given, is_url

BATCH = 64


def pixel_batches(
    given: Given, preprocess: Preprocess, device: Any, *, allow_urls: bool | Urls = False, skipped: list[Broken] | None = None
) -> Iterator[Tensor]:
    """Batches (B, 3, H, W) of the images as the backbone takes them.

    Args:
        skipped: images that cannot be read are left out and appended to this list, with their positions as keys; with None they raise.

    Raises:
        UsageError: an image that cannot be read, or none that can.
    """
    limits = allow_urls if isinstance(allow_urls, Urls) else Urls()
    sources = given.sources

    def read(item: Item) -> Image.Image:
        source = sources[item.label]
        return to_rgb(fetched(source, limits) if is_url(source) else source)

    files = len(sources) > 1 and all(isinstance(source, str) for source in sources)  # other kinds may be the same object twice
    items = [Item(str(at), at) for at in range(len(sources))]
    workers = usual_workers() if files else 0
    for pixels, _ in image_batches(read, items, preprocess, BATCH, workers, device=device, skipped=skipped):
        yield pixels


