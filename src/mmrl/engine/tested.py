"""A pass over test images for all methods that are tested on them in turn: each batch is decoded once, and so are its frozen passes."""

from __future__ import annotations

from collections.abc import Generator, Sequence

from mmrl.clip import Clip
from mmrl.data import Broken, Dataset, Item
from mmrl.engine.features import FeatureStore, Shown, shown
from mmrl.errors import UsageError


class TestPass:
    """Batches of `items` in order, for whoever asks; the one that was asked for last is kept, with what was made of it.

    A method gets the numbers of a pass of its own, to the bit. Those that keep together share every batch; for one that is behind the
    others the pass begins again.

    Args:
        batch_size, workers, store: as in `shown`.
        skip_broken: leave out images that are missing or broken, and list them in `skipped`.
    """

    __test__ = False  # for pytest, which would collect it by its name

    def __init__(
        self, clip: Clip, dataset: Dataset, items: Sequence[Item], *, batch_size: int, workers: int = 0, skip_broken: bool = False,
        store: FeatureStore | None = None,
    ) -> None:  # fmt: skip
        self._clip, self._dataset, self._items = clip, dataset, items
        self._batch_size, self._workers, self._skip_broken, self._store = batch_size, workers, skip_broken, store
        self._images = self._features = False
        self._batches: Generator[Shown, None, None] | None = None
        self._at = -1  # of the batch that is kept
        self._last: Shown | None = None
        self._found: list[Broken] = []
        self._unreadable: UsageError | None = None

    @property
    def skipped(self) -> tuple[Broken, ...]:
        """Images that were left out, once the pass has ended."""
        return tuple(self._found)

    def ask(self, *, images: bool, features: bool) -> None:
        """Say what batches shall have. Best before anybody takes the first: else the pass begins again."""
        if images > self._images or features > self._features:
            self.close()
        self._images, self._features = self._images or images, self._features or features

    def at(self, position: int) -> Shown | None:
        """The batch at `position`, from 0; None after the last.

        Raises:
            as `shown`. An image that cannot be read is told to all who come to it.
        """
        if self._unreadable is not None and position >= self._at:
            raise self._unreadable
        if position < self._at or self._batches is None:
            self._begin()
        while self._at < position:
            self._advance()
        return self._last

    def close(self) -> None:
        """Give everything back; what was to be kept of an unfinished pass is not."""
        if self._batches is not None:
            self._batches.close()
        self._batches, self._last, self._at = None, None, -1

    def _begin(self) -> None:
        self.close()
        self._found, self._unreadable = [], None
        self._batches = shown(
            self._clip, self._dataset, self._items, batch_size=self._batch_size, workers=self._workers,
            skipped=self._found if self._skip_broken else None, images=self._images, features=self._features, store=self._store,
        )  # fmt: skip

    def _advance(self) -> None:
        assert self._batches is not None
        self._last = None  # room for the next
        try:
            self._last = next(self._batches, None)
        except UsageError as error:
            self._unreadable = error
            raise
        finally:
            self._at += 1
