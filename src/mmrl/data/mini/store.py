"""Pictures of a mini set, drawn when first asked for and kept, in the process and, where a folder is given, on disk."""

from __future__ import annotations

import hashlib
import threading
import zipfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image

from mmrl.data.mini.light import SIZE, Pixels
from mmrl.data.mini.sets import SPLITS, VERSION, MiniSet
from mmrl.data.records import Dataset, Item
from mmrl.errors import UsageError
from mmrl.files import replacing

HEADERS = 4096  # bytes of a cache file besides its pictures, unpacked: headers and a hash


class Store:
    """Pictures of one set.

    Without `cache` each picture is drawn when it is first asked for. With it, a split is drawn as a whole and written
    to one .npz file; a file that is damaged, or of another version, is drawn anew and replaced.
    """

    in_memory = True

    def __init__(self, mini: MiniSet, cache: Path | None = None) -> None:
        self.mini = mini
        self.cache = cache
        self.place = {mini.key(s, c, i): (s, c, i) for s in SPLITS for c, n in enumerate(mini.sizes[s]) for i in range(n)}
        self._drawn: dict[str, Pixels] = {}
        self._loaded: set[str] = set()
        self._lock = threading.Lock()

    def __call__(self, key: str) -> Image.Image:
        """The picture of an item's key."""
        return Image.fromarray(self.pixels(key))

    def stamp(self, keys: Iterable[str]) -> str:
        """What decides the pictures besides their keys."""
        return f"{self.mini.name} v{VERSION}"

    def pixels(self, key: str) -> Pixels:
        """The picture of an item's key, (64, 64, 3).

        Raises:
            UsageError: the set has no such key.
        """
        if key not in self.place:
            raise UsageError(f"'{self.mini.name}' has no image '{key}'; keys look like '{next(iter(self.place))}'.")
        split = self.place[key][0]
        if self.cache is not None and split not in self._loaded:
            with self._lock:
                if split not in self._loaded:
                    self._load(split)
        kept = self._drawn.get(key)
        if kept is None:  # two threads may both draw it, and get the same
            kept = self._drawn[key] = self.mini.render(*self.place[key])
        return kept

    def file(self, split: str) -> Path:
        assert self.cache is not None
        return self.cache / f"{self.mini.name.replace(':', '-')}-{split}-v{VERSION}.npz"

    def _load(self, split: str) -> None:
        keys = [key for key, (s, _, _) in self.place.items() if s == split]
        pictures = _read(self.file(split), len(keys))
        if pictures is None:
            pictures = np.stack([self.mini.render(*self.place[key]) for key in keys])
            with replacing(self.file(split)) as temporary, temporary.open("wb") as out:
                np.savez_compressed(out, pictures=pictures, sha256=np.array(_digest(pictures)))
        self._drawn.update(zip(keys, pictures, strict=True))
        self._loaded.add(split)


def _digest(pictures: Pixels) -> str:
    return hashlib.sha256(np.ascontiguousarray(pictures).tobytes()).hexdigest()


def _read(path: Path, count: int) -> Pixels | None:
    """The pictures (count, 64, 64, 3) in a cache file, or None where there is none, or not what was written."""
    try:
        with zipfile.ZipFile(path) as archive:  # what would inflate to more than was ever written is not unpacked
            if sum(part.file_size for part in archive.infolist()) > count * SIZE * SIZE * 3 + HEADERS:
                return None
        with np.load(path, allow_pickle=False) as file:
            pictures: Pixels = file["pictures"]
            written = str(file["sha256"])
    except Exception:  # whatever a damaged file makes numpy's readers stumble on: it is drawn anew
        return None
    if pictures.shape != (count, SIZE, SIZE, 3) or pictures.dtype != np.uint8 or _digest(pictures) != written:
        return None
    return pictures


def mini_dataset(mini: MiniSet, cache: Path | None = None) -> Dataset:
    """The set as a `Dataset`; `cache`: folder for the drawn pictures, or None to keep them in the process only."""
    store = Store(mini, cache)
    items: dict[str, list[Item]] = {split: [] for split in SPLITS}
    for key, (split, label, _) in store.place.items():
        items[split].append(Item(key, label))
    return Dataset(mini.name, mini.classes, mini.template, items["train"], items["val"], items["test"], read=store, flip=mini.flip)
