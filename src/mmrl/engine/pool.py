"""A pool of augmented views of the training images, shown in turn: what the frozen image tower makes of a view is computed once.

Epoch `e` (from 0) has the order that it always has, and shows every image as epoch `e mod N` does. So the first N epochs are those of a
training without a pool. What a method asks of the frozen tower there (states that enter a layer, features) is kept, a row for each image
and view, and later epochs are put together from these rows: no image is decoded, and no frozen layer run.

The last bits of a row may depend on the images that it was computed with, so these are fixed: those of its batch in epoch `view`, or of the
rest that this epoch drops. A row that is not there (it was dropped, there is no room, the training was resumed, another process had it) is
computed with these again. So what comes out depends neither on the room nor on interruptions.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from mmrl.clip import Clip, Images
from mmrl.clip.vision import ImageHidden
from mmrl.engine.batches import Batch, Batches, OnePass, on_the_way, placed
from mmrl.engine.config import FitConfig
from mmrl.engine.kept import Kept
from mmrl.engine.memory import GIB, room
from mmrl.engine.schedule import length_of
from mmrl.errors import Notice, UsageError

WIDEST = 4  # bytes of a number


@runtime_checkable
class Repeatable(Protocol):
    """Batches whose epochs can be shown again, image by image, as `mmrl.data.TrainBatches`."""

    def __len__(self) -> int: ...

    def epoch(self, number: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]: ...

    @property
    def count(self) -> int:
        """Images of an epoch, those that it drops included."""
        ...

    @property
    def size(self) -> int:
        """Images of a full batch."""
        ...

    def again(self, number: int, view: int, start: int = 0) -> Iterator[tuple[list[int], Tensor]]:
        """For every batch of epoch `number`: where epoch `view` shows its images, and labels."""
        ...

    def at(self, view: int, positions: Sequence[int]) -> Tensor:
        """Images (B, 3, H, W) at positions of epoch `view`."""
        ...


@contextmanager
def shown_in_turn(batches: Batches, config: FitConfig, clip: Clip, folder: Path | None, processes: int = 1) -> Iterator[Batches]:
    """`batches` with the views that `config` asks for; the same where it asks for as many as there are epochs, or for none, and where
    several trainings take them together: those have one pool, behind their `OnePass`.

    Args:
        folder: where a temporary file may be made for what does not fit in memory.
        processes: how many share the machine's memory.

    Raises:
        UsageError: the batches cannot be shown again.
    """
    if config.views is None or isinstance(batches, OnePass) or config.views >= length_of(config, len(batches))[1]:
        yield batches
        return
    if not isinstance(batches, Repeatable):
        raise UsageError(f"views is {config.views}, but a {type(batches).__name__} cannot show an epoch again; leave views out.")
    with closing(ViewPool(batches, config, clip, folder, processes)) as pool:
        yield pool


def most_kept(config: FitConfig, images: int, clip: Clip, *, states: bool) -> int:
    """Bytes of what a pool makes of so many images: features and, of a method that changes the image tower, `states` that enter a layer."""
    tokens, width = clip.vision.visual.positional_embedding.shape if states and clip.not_staged is None else (0, 0)
    return (config.pool or 0) * images * (clip.embed_dim + tokens * width) * WIDEST


class ViewPool:
    """Batches of which epoch `e` shows the views of epoch `e mod N`, with what the frozen tower made of them."""

    placed = True  # on the device

    def __init__(self, batches: Repeatable, config: FitConfig, clip: Clip, folder: Path | None, processes: int = 1) -> None:
        assert config.views is not None
        self._batches, self._config, self._views, self._clip = batches, config, config.views, clip
        need, memory, disk = self._rows * clip.embed_dim * WIDEST, room(config.views_gib, processes), int(config.views_disk_gib * GIB)
        small, filed = min(need, memory), min(max(0, need - memory), disk)  # features are small, and have their place first
        self._features = Kept(small, filed, folder)
        self._states = Kept(memory - small, disk - filed, folder)
        self._layers: set[int] = set()
        self._said = False

    @property
    def _rows(self) -> int:
        return self._views * self._batches.count

    @property
    def held(self) -> int:
        """Bytes that are kept."""
        return self._features.size + self._states.size

    def __len__(self) -> int:
        return len(self._batches)

    def close(self) -> None:
        self._features.close()
        self._states.close()

    def epoch(self, number: int, start: int = 0) -> Iterator[Batch]:
        """Batches of epoch `number` from `start` on. Raises UsageError for an image that cannot be read, before it is shown."""
        view, again = number % self._views, self._batches.again(number, number % self._views, start)
        if number < self._views:
            shown = on_the_way(self._batches.epoch(number, start), self._clip.device)
            for (images, _), (positions, labels) in zip(shown, again, strict=True):
                yield _Shown(self, view, positions, placed(images, self._clip.device).pixels, first=True), labels
        else:
            for positions, labels in again:
                yield _Shown(self, view, positions, self._pixels(view, positions)), labels

    def _pixels(self, view: int, positions: Sequence[int]) -> Callable[[], Tensor]:
        return lambda: self._batches.at(view, positions).to(self._clip.device)

    def keep(self, view: int, positions: Sequence[int], layer: int | None, values: Tensor) -> None:
        """Keep rows of values (B, ...): states that enter `layer`, or with None features, in the present precision."""
        kept = self._features if layer is None else self._states
        if layer is not None:
            self._layers.add(layer)
        there = [kept.put(self._key(view, position, layer), row) for position, row in zip(positions, values, strict=True)]
        if not all(there) and not self._said:
            self._said = True
            self._tell(values[0].nbytes)

    def rows(self, view: int, positions: Sequence[int], layer: int | None) -> Tensor:
        """Values as in `keep`, computed with the images of their batch where they are not kept."""
        kept = self._features if layer is None else self._states
        found = {position: kept.get(self._key(view, position, layer)) for position in positions}
        size = self._batches.size
        for batch in dict.fromkeys(position // size for position, row in found.items() if row is None):
            whole = range(batch * size, min((batch + 1) * size, self._batches.count))
            computed = self._computed(view, whole, layer)
            self.keep(view, whole, layer, computed)
            found |= {position: row.cpu() for position, row in zip(whole, computed, strict=True) if position in found}
        return torch.stack([row for position in positions if (row := found[position]) is not None]).to(self._clip.device)

    def _computed(self, view: int, positions: Sequence[int], layer: int | None) -> Tensor:
        """By the frozen tower, from the nearest states that are kept of all these images."""
        images = Images(self._pixels(view, positions))
        for below in sorted((each for each in self._layers if layer is None or each < layer), reverse=True):
            if all(self._key(view, position, below) in self._states for position in positions):
                images.states[below] = ImageHidden(self.rows(view, positions, below))
                break
        return images.encoded(self._clip) if layer is None else images.entering(self._clip, layer).main

    def _key(self, view: int, position: int, layer: int | None) -> tuple[object, ...]:
        kind = self._clip.device.type
        return layer, view, position, torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None

    def _tell(self, row: int) -> None:
        config, size, count = self._config, self._batches.size, self._batches.count
        warnings.warn(
            f"views={config.views}: what the frozen layers make of {count:,} images takes {self._rows * row / GIB:.1f} GiB, and there is "
            f"room for no more (views_gib={config.views_gib:g}, views_disk_gib={config.views_disk_gib:g}). The rest is computed again when "
            f"it is shown, each image with all {size} of its batch: slow, with the same numbers. Give more room, fewer views, or none.",
            Notice, stacklevel=2,
        )  # fmt: skip


class _Shown(Images):
    """A batch of the pool: passes of images that are shown for the `first` time are kept there, others are looked up."""

    def __init__(
        self, pool: ViewPool, view: int, positions: Sequence[int], pixels: Tensor | Callable[[], Tensor], *, first: bool = False
    ) -> None:
        super().__init__(pixels)
        self._pool, self._view, self._positions, self._first = pool, view, positions, first

    def __len__(self) -> int:
        return len(self._positions)

    def _entering(self, clip: Clip, layer: int) -> ImageHidden:
        if layer not in self.states:
            if self._first:
                self._pool.keep(self._view, self._positions, layer, super()._entering(clip, layer).main)
            else:
                self.states[layer] = ImageHidden(self._pool.rows(self._view, self._positions, layer))
        return self.states[layer]

    @torch.no_grad()
    def encoded(self, clip: Clip) -> Tensor:
        if self.features is None:
            if self._first:
                self._pool.keep(self._view, self._positions, None, super().encoded(clip))
            else:
                self.features = self._pool.rows(self._view, self._positions, None)
        assert self.features is not None
        return self.features
