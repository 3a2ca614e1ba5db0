"""States of test images that enter a layer of the frozen tower, kept in a results folder: those below the first layer that a method edits.

They take more room than pixels (at ViT-B/16 600 kB an image in place of 150), and save the layers below: 5 of 12 for MMRL. So they are the
first to make room, with the pixels, and they are kept on a CPU alone, where those layers take hundreds of times longer than reading.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from mmrl.clip import Clip, Images
from mmrl.clip.vision import ImageHidden
from mmrl.rows import NewRows, NoRoomError, RowsFolder, Table, row_type, table_of, written

if TYPE_CHECKING:
    from typing_extensions import Self


class StateFiles:
    """The states of `count` images, a file a layer. What a pass makes of all of them is kept if the block ends well.

    Args:
        folder: where the files are.
        name: of everything that decides the states, but for the layer.
        dtype: of the numbers.
    """

    def __init__(self, folder: RowsFolder, name: str, clip: Clip, count: int, dtype: np.dtype[Any]) -> None:
        tokens, width = clip.vision.visual.positional_embedding.shape
        self._folder, self._name, self._count, self._row = folder, name, count, row_type(dtype, (tokens, width))
        read = {layer: folder.read(self._file(layer), count, self._row) for layer in range(1, clip.vision.depth)}
        self.tables: dict[int, Table] = {layer: table for layer, table in read.items() if table is not None}
        self._layer: int | None = None  # that is being kept; 0 for none
        self._rows: NewRows | None = None
        self._put = 0
        self._open = ExitStack()

    def _file(self, layer: int) -> str:
        return f"{self._name}-{layer}"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *thrown: object) -> None:
        if self._rows is not None and self._put < self._count:  # an image was left out, or a method ended before the others
            self._rows.failed = self._rows.failed or NoRoomError("the pass is not whole.")
        self._open.__exit__(*thrown)  # type: ignore[arg-type]  # what `__exit__` gets

    def images(self, pixels: Callable[[], Tensor], first: int, count: int) -> Images:
        """A batch from position `first` on, which starts from what is kept, and makes `pixels` only if it must."""
        return _Kept(self, pixels, first, count)

    def rows(self, layer: int, first: int, count: int) -> Tensor | None:
        """States (count, 1 + M, d); None where they are not kept, or damaged."""
        if layer not in self.tables:
            return None
        values = [written(self.tables[layer], at) for at in range(first, first + count)]
        if any(each is None for each in values):
            del self.tables[layer]
            self._folder.forget(self._file(layer))
            return None
        return torch.from_numpy(np.stack(values))  # type: ignore[arg-type]  # none is None

    def keep(self, first: int, seen: Images) -> None:
        """Keep the states of `seen`, a batch from position `first` on: of the lowest layer, but 0, that was asked of the first batch."""
        if self._layer is None:
            self._layer = min((layer for layer in seen.asked if layer), default=0)
            if self._layer and self._layer not in self.tables:
                new = self._folder.writing(self._file(self._layer), self._count, self._row)
                self._rows = self._open.enter_context(new)
        hidden = seen.states.get(self._layer)
        if self._rows is not None and hidden is not None and hidden.main.shape[1:] == self._row["values"].shape:
            self._rows.put(first, table_of(hidden.main.numpy()))
            self._put += len(hidden.main)


class _Kept(Images):
    """A batch whose states are read where they are kept."""

    def __init__(self, files: StateFiles, pixels: Callable[[], Tensor], first: int, count: int) -> None:
        super().__init__(pixels, expected=files.tables)
        self._files, self._first, self._count = files, first, count

    def __len__(self) -> int:
        return self._count

    def _entering(self, clip: Clip, layer: int) -> ImageHidden:
        if layer not in self.states and (rows := self._files.rows(layer, self._first, self._count)) is not None:
            self.states[layer] = ImageHidden(rows)
        return super()._entering(clip, layer)

