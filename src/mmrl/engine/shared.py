"""What runs that take turns in one process have in common: the images that they train on, and passes over those that they are tested on."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from mmrl.clip import Clip
from mmrl.engine.batches import Batches, OnePass
from mmrl.engine.config import FitConfig
from mmrl.engine.pool import Repeatable, ViewPool
from mmrl.engine.tested import TestPass

if TYPE_CHECKING:
    from typing_extensions import Self

    from mmrl.engine.fit import TrainingData


class Shared:
    """Made by whoever asks first, and found by the others, until the block ends."""

    def __init__(self) -> None:
        self._data: dict[str, TrainingData] = {}
        self._passes: dict[Hashable, TestPass] = {}
        self._open = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def data(
        self, key: str, make: Callable[[], TrainingData], config: FitConfig, clip: Clip, *, folder: Path | None, processes: int = 1
    ) -> TrainingData:
        """What all trainings of one `Context.images_key` train on, in one pass and, where `config` asks for views, with one pool.

        Args:
            folder: where the pool may make a temporary file.
            processes: how many share the machine's memory.
        """
        if key not in self._data:
            made = make()
            batches: Batches = made.batches
            if config.pool is not None:
                assert isinstance(batches, Repeatable)
                batches = self._open.enter_context(closing(ViewPool(batches, config, clip, folder, processes)))
            self._data[key] = replace(made, batches=OnePass(batches, clip.device, keep=config.accumulate))
        return self._data[key]

    def test_pass(self, key: Hashable, make: Callable[[], TestPass]) -> TestPass:
        """The pass of all tests that fall on the same images."""
        if key not in self._passes:
            self._passes[key] = self._open.enter_context(closing(make()))
        return self._passes[key]
