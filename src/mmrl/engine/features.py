"""What the frozen image tower makes of images, computed once for all methods that ask.

In a store, the features of a list of images lie under a key of everything that decides them, to the bit: the images (names, sizes and times
of their files), how they are decoded, transformed and put into batches, the backbone, its precision, and the machine's arithmetic. So they
are the numbers that the pass would give. Decoded pixels of image files are kept, too, for methods that read the images themselves.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Generator, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import PIL
import torch
from torch import Tensor

from mmrl.clip import Clip, Images
from mmrl.clip.device import arithmetic
from mmrl.data import Broken, Dataset, Item, Preprocess, test_batches
from mmrl.data.central import Planes
from mmrl.data.loader import KeptPlanes
from mmrl.engine.batches import Batch, on_the_way
from mmrl.engine.states import StateFiles
from mmrl.errors import UsageError
from mmrl.rows import SPARE, NewRows, RowsFolder, Table, row_type, table_of, written

FORMAT = 1  # a new one whenever equal keys would hold other numbers
DTYPES: dict[torch.dtype, np.dtype[Any]] = {torch.float16: np.dtype("<f2"), torch.float32: np.dtype("<f4"), torch.float64: np.dtype("<f8")}


def preprocess_of(clip: Clip, *, flip: bool = True, crop_scale: tuple[float, float] = (0.5, 1.0)) -> Preprocess:
    """The transforms that make images into inputs of `clip`."""
    return Preprocess(clip.image_size, clip.mean, clip.std, clip.interpolation, flip=flip, crop_scale=crop_scale)


class Shown(NamedTuple):
    """A batch at test: images and what the frozen tower puts out for them (B, embed_dim), not normalised, where each was asked
    for, and labels (B,)."""

    images: Images | None
    features: Tensor | None
    labels: Tensor


class Found(NamedTuple):
    """Kept features (N, embed_dim), not normalised, and labels (N,) of the images that could be read, and those that cannot."""

    features: Tensor
    labels: Tensor
    broken: list[Broken]


class FeatureFile:
    """The place of the features of some images, one row for each and each of its views."""

    def __init__(self, folder: RowsFolder, name: str, count: int, row: np.dtype[np.void]) -> None:
        self.folder, self.name, self.count, self.row = folder, name, count, row

    def whole(self) -> Tensor | None:
        """Features (N, embed_dim) of all images; None where they are not there, or damaged."""
        table = self.folder.read(self.name, self.count, self.row)
        if table is None:
            return None
        values = [written(table, at) for at in range(self.count)]
        if any(each is None for each in values):
            self.folder.forget(self.name)
            return None
        return torch.from_numpy(np.stack(values))  # type: ignore[arg-type]  # none is None

    def found(self, dataset: Dataset, items: Sequence[Item]) -> Found | None:
        """As `whole`, of the images that can be read. A row is missing where one could not; if now it can, all is computed anew."""
        table = self.folder.read(self.name, self.count, self.row)
        if table is None:
            return None
        values, labels, broken = list[Any](), list[int](), list[Broken]()
        for at, item in enumerate(items):
            if (row := written(table, at)) is not None:
                values.append(row)
                labels.append(item.label)
                continue
            try:
                if int(table["sum"][at]):
                    raise ValueError("damaged")
                dataset.image(item)
                raise ValueError("readable")
            except UsageError as error:
                broken.append(Broken(item.key, str(error)))
            except ValueError:
                self.folder.forget(self.name)
                return None
        return Found(torch.from_numpy(np.stack(values)), torch.tensor(labels), broken) if values else None

    def keep(self, features: Tensor, present: Sequence[int] | None = None) -> None:
        """Write features (N, embed_dim), of the rows `present` where some images could not be read."""
        values = features.detach().cpu().numpy()
        table: Table = np.zeros(self.count, self.row)
        at = range(self.count) if present is None else present
        if len(at) != len(values) or values.dtype != self.row["values"].base or values.shape[1:] != self.row["values"].shape:
            return  # not what was announced: better nothing
        table[at] = table_of(values)
        self.folder.write(self.name, table)


class FeatureStore:
    """Features and pixels in `folder`, which may take `gib` GiB; 0 keeps none. Several processes may share it, and be killed."""

    def __init__(self, folder: Path, gib: float) -> None:
        self.folder = RowsFolder(folder, gib)

    def entry(
        self, clip: Clip, dataset: Dataset, items: Sequence[Item], *, batch_size: int, views: int = 0, varied: tuple[object, ...] = ()
    ) -> FeatureFile | None:
        """Where the features of `items` belong; None where nothing is kept, or not all is known that decides them.

        Args:
            batch_size: of the passes.
            views: number of augmented views of each image; 0 for the test transform.
            varied: what decides the views.
        """
        stamp, dtype = dataset.stamp(items) if self.folder.most and items else None, next(clip.model.parameters()).dtype
        if stamp is None or dtype not in DTYPES or torch.is_autocast_enabled(clip.device.type):
            return None
        key = _hash(
            "features", stamp, preprocess_of(clip).decides, clip.mean, clip.std, clip.identity, str(dtype), batch_size, views, varied,
            arithmetic(clip.device),
        )  # fmt: skip
        return FeatureFile(self.folder, f"features-{key}", max(1, views) * len(items), row_type(DTYPES[dtype], (clip.embed_dim,)))

    def states(self, clip: Clip, dataset: Dataset, items: Sequence[Item], *, batch_size: int) -> StateFiles | None:
        """Where the states of `items` between layers belong; None as for `entry`, and where they are not kept."""
        entry = self.entry(clip, dataset, items, batch_size=batch_size)
        if entry is None or clip.device.type != "cpu" or clip.not_staged is not None:
            return None
        return StateFiles(self.folder, f"{SPARE}{entry.name.replace('features', 'states')}", clip, entry.count, entry.row["values"].base)

    @contextmanager
    def pixels(
        self, clip: Clip, dataset: Dataset, items: Sequence[Item], *, new: bool = True
    ) -> Iterator[_ReadPixels | _NewPixels | None]:
        """Decoded images of files, to read, or if `new` where they are to be put: kept if the block ends well."""
        stamp = None if not self.folder.most or not items or getattr(dataset.read, "in_memory", False) else dataset.stamp(items)
        if stamp is None:
            yield None
            return
        size, mode = preprocess_of(clip).decides
        name, row = f"{SPARE}pixels-{_hash('pixels', stamp, size, mode)}", row_type(np.dtype("u1"), (3, size, size))
        table = self.folder.read(name, len(items), row)
        if table is not None:
            kept = _ReadPixels(table)
            yield kept
            if kept.damaged:
                self.folder.forget(name)
            return
        if not new:
            yield None
            return
        with self.folder.writing(name, len(items), row) as rows:
            yield _NewPixels(rows) if rows else None


class _ReadPixels:
    """Pixels that are kept. One that is missing is decoded: it could not be read, or its row is damaged."""

    def __init__(self, table: Table) -> None:
        self.damaged = False
        self._table = table

    def get(self, position: int) -> Planes | None:
        return written(self._table, position)

    def put(self, position: int, planes: Planes) -> None:
        self.damaged = True


class _NewPixels:
    """Pixels that are being kept."""

    def __init__(self, rows: NewRows) -> None:
        self._rows = rows

    def get(self, position: int) -> Planes | None:
        return None

    def put(self, position: int, planes: Planes) -> None:
        self._rows.put(position, table_of(planes[None]))


def shown(
    clip: Clip, dataset: Dataset, items: Sequence[Item], *, batch_size: int, workers: int = 0, skipped: list[Broken] | None = None,
    images: bool, features: bool, store: FeatureStore | None = None,
) -> Generator[Shown, None, None]:  # fmt: skip
    """Batches of `items` in order, with `images`, with frozen `features`, or with both. Where the store has the features, no image passes.

    Args:
        workers, skipped: as in `mmrl.data.test_batches`.

    Raises:
        UsageError: as `mmrl.data.test_batches`.
    """
    entry = store.entry(clip, dataset, items, batch_size=batch_size) if store and features else None
    found = entry.found(dataset, items) if entry else None
    new = entry is not None and found is None
    if found and found.broken and (skipped is None or images):
        found = None  # the pass stops at the first; or images are left out on the way
    if found and not images:
        if skipped is not None:
            skipped.extend(found.broken)
        for some, true in zip(found.features.split(batch_size), found.labels.split(batch_size), strict=True):
            yield Shown(None, some.to(clip.device), true)
        return
    made, at, before, asked = list[Tensor](), 0, len(skipped or ()), set[int]()
    with ExitStack() as stack:
        states = store.states(clip, dataset, items, batch_size=batch_size) if store and images else None
        states = stack.enter_context(states) if states else None
        there = bool(states and states.tables)
        kept = stack.enter_context(store.pixels(clip, dataset, items, new=not there)) if store and images else None
        source = _Decoding(clip, dataset, items, batch_size, workers, skipped, kept)
        for seen, labels in source.from_states(states) if states and there else source.whole():
            frozen = None
            seen.expect(asked)  # the same methods ask the next batch
            if found and len(skipped or ()) == before:  # none was left out, so places agree
                seen.features = frozen = found.features[at : at + len(labels)].to(clip.device)
            elif features:
                frozen = clip.encode_image(seen, normalise=False)
            if new and frozen is not None:
                made.append(frozen.cpu())
            yield Shown(seen if images else None, frozen, labels)
            if states:
                states.keep(at, seen)
            at += len(labels)
            asked = seen.asked
    if entry and made:
        broken = {each.key for each in (skipped or ())[before:]}
        entry.keep(torch.cat(made), [at for at, item in enumerate(items) if item.key not in broken])


class _Decoding(NamedTuple):
    """Batches of test images, with labels (B,)."""

    clip: Clip
    dataset: Dataset
    items: Sequence[Item]
    batch_size: int
    workers: int
    skipped: list[Broken] | None
    kept: _ReadPixels | _NewPixels | None

    def whole(self) -> Iterator[tuple[Images, Tensor]]:
        for pixels, labels in on_the_way(self._read(self.items, self.batch_size, self.skipped, self.kept), self.clip.device):
            yield Images.of(pixels), labels

    def from_states(self, states: StateFiles) -> Iterator[tuple[Images, Tensor]]:
        """Of images that can all be read, as they have states; pixels are made where a method works below these."""
        for first in range(0, len(self.items), self.batch_size):
            some = self.items[first : first + self.batch_size]
            yield states.images(partial(self._pixels, first, some), first, len(some)), torch.tensor([item.label for item in some])

    def _pixels(self, first: int, some: Sequence[Item]) -> Tensor:
        ((pixels, _),) = self._read(some, len(some), None, _Behind(self.kept, first) if self.kept else None)
        return Images.of(pixels).pixels

    def _read(
        self, items: Sequence[Item], size: int, skipped: list[Broken] | None, kept: KeptPlanes | None
    ) -> Iterator[Batch]:
        return test_batches(
            self.dataset, items, preprocess_of(self.clip), size, self.workers, device=self.clip.device, skipped=skipped, kept=kept
        )


class _Behind(NamedTuple):
    """Pixels of the images from position `first` on."""

    kept: _ReadPixels | _NewPixels
    first: int

    def get(self, position: int) -> Planes | None:
        return self.kept.get(self.first + position)

    def put(self, position: int, planes: Planes) -> None:
        self.kept.put(self.first + position, planes)


def _hash(*decides: object) -> str:
    text = json.dumps([FORMAT, PIL.__version__, *decides], separators=(",", ":"))
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:20]
