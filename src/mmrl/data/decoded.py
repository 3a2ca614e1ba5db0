"""Training images that are decoded once: kept in memory, beyond a budget in a temporary file that is mapped, beyond another not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mmrl.data.records import Dataset, Item

Pixels = NDArray[np.uint8]  # (H, W, 3)
PIXEL = 4  # bytes that Pillow keeps for an RGB pixel
FREE = 2**30  # bytes of the disk that are left to others
GIB = 2**30


class Decoded:
    """Images of a data set by item, RGB, for as long as this object lives; thread-safe. What is not kept is decoded whenever it is asked.

    The file has no name, so that nothing of it is left however the process ends.

    Args:
        memory_gib, disk_gib: room in memory, and beyond it in the file.
        folder: where the file is made, when it is first needed; None for the system's folder of temporary files.
    """

    def __init__(self, dataset: Dataset, memory_gib: float, disk_gib: float = 0.0, folder: Path | None = None) -> None:
        self._dataset, self._folder = dataset, folder
        self._memory, self._disk = int(memory_gib * GIB), int(disk_gib * GIB)
        self._held: dict[str, Image.Image | Pixels] = {}
        self._filed: dict[str, tuple[int, tuple[int, ...]]] = {}
        self._file: IO[bytes] | None = None
        self._end = 0
        self._read = set[str]()
        self._lock = threading.Lock()

    def image(self, item: Item) -> Image.Image:
        """As an image of Pillow. Raises UsageError if it cannot be read."""
        kept = self._kept(item)
        if kept is None:
            kept = self._dataset.image(item)
            self._keep(item, kept, kept.width * kept.height * PIXEL)
        return kept if isinstance(kept, Image.Image) else Image.fromarray(kept)

    def pixels(self, item: Item) -> Pixels:
        """As an array (H, W, 3). Raises UsageError if it cannot be read."""
        kept = self._kept(item)
        if kept is None:
            kept = np.asarray(self._dataset.image(item), np.uint8)
            self._keep(item, kept, kept.nbytes)
        return np.asarray(kept, np.uint8) if isinstance(kept, Image.Image) else kept

    def try_once(self, item: Item) -> None:
        """Raises UsageError if the image cannot be read, unless it once could."""
        if item.key not in self._read:
            self.image(item)

    def _kept(self, item: Item) -> Image.Image | Pixels | None:
        held = self._held.get(item.key)
        if held is not None or item.key not in self._filed or self._file is None:
            return held
        at, shape = self._filed[item.key]
        return np.memmap(self._file, np.uint8, "r", at, shape)  # type: ignore[call-overload,no-any-return]  # a file will do

    def _keep(self, item: Item, image: Image.Image | Pixels, size: int) -> None:
        with self._lock:
            self._read.add(item.key)
            if item.key in self._held or item.key in self._filed:
                return
            if size <= self._memory:
                self._memory -= size
                self._held[item.key] = image
            elif self._disk:
                self._write(item.key, np.ascontiguousarray(image, np.uint8))

    def _write(self, key: str, pixels: Pixels) -> None:
        """Into the file, if there is room. A disk that fails once is not tried again."""
        try:
            if pixels.nbytes > self._disk or shutil.disk_usage(self._folder or tempfile.gettempdir()).free < FREE + pixels.nbytes:
                return
            if self._file is None:
                self._file = tempfile.TemporaryFile(dir=self._folder, buffering=0)  # noqa: SIM115  # it ends with this object
            if os.pwrite(self._file.fileno(), pixels.data, self._end) < pixels.nbytes:
                raise OSError("cut short")
        except OSError:
            self._disk = 0
            return
        self._filed[key] = self._end, pixels.shape
        self._end += pixels.nbytes
        self._disk -= pixels.nbytes


def plain(values: Any) -> Pixels:
    """A copy of its own of a part of an image, which may be mapped."""
    return np.array(values, np.uint8, order="C")
