"""Class features of the lists that are asked for, kept up to a number and a size. Each is made once, in a thread, however many wait."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from mmrl.classifier.judging import Head
from mmrl.server.adapters import Served
from mmrl.server.metrics import Meters
from mmrl.server.refusals import Refused
from mmrl.server.settings import Limits
from mmrl.templates import Template, template_list

Key = tuple[int, tuple[str, ...] | None, Template | None]  # as they were given: they are checked in the thread
_DEEPEST = 6
_A_TEXT = 100  # bytes beside its letters, about


@dataclass(frozen=True)
class KeptHead:
    head: Head
    bytes: int


@dataclass
class Making:
    """A list that is being made, or waits for that.

    Attributes:
        head: what is made, kept as soon as it is there.
        waiting: how many requests wait for it.
    """

    begun: Future[Head]
    head: asyncio.Task[Head]
    waiting: int = 0


class Heads:
    """The lists that were asked for latest, of all adapters. All of it happens on the event loop, but for the making."""

    def __init__(self, limits: Limits, metrics: Meters) -> None:
        self._limits, self._metrics = limits, metrics
        self._kept: OrderedDict[Key, KeptHead] = OrderedDict()
        self._making: dict[Key, Making] = {}
        self._maker = ThreadPoolExecutor(1, thread_name_prefix="class-list")
        self.bytes = 0

    def __len__(self) -> int:
        return len(self._kept)

    def kept(self, served: Served, classes: Sequence[str] | None, template: Template | None) -> Head | None:
        """The head of a list, where it is there; None for `classes` is the adapter's own, and for `template` its prompt."""
        own, names = served.own, None if classes is None else tuple(classes)
        if own is not None and names in (None, own.names) and template in (None, own.template):
            return own
        key = (served.serial, names, template)
        if key not in self._kept:
            return None
        self._metrics.lists.labels("kept").inc()
        self._kept.move_to_end(key)
        return self._kept[key].head

    async def made(self, served: Served, classes: Sequence[str] | None, template: Template | None) -> Head:
        """The head of a list that is not there, made for all who wait for it.

        Raises:
            Refused: as many lists as are kept wait to be made (429).
            UsageError: as `Classifier.head`.
        """
        key = (served.serial, None if classes is None else tuple(classes), template)
        making = self._making.get(key) or self._begin(key, served)
        making.waiting += 1
        try:
            return await asyncio.shield(making.head)
        finally:
            making.waiting -= 1
            if not making.waiting and making.begun.cancel():  # it waited for its turn; one that is being made may be asked for again
                del self._making[key]

    def _begin(self, key: Key, served: Served) -> Making:
        if len(self._making) >= self._limits.heads:
            raise Refused(429, f"{len(self._making)} class lists are being made; ask again in 1 s.", {"Retry-After": "1"})
        self._metrics.lists.labels("made").inc()
        begun = self._maker.submit(served.head_of, key[1], key[2])
        head = asyncio.get_running_loop().create_task(self._make(key, begun))
        head.add_done_callback(lambda done: done.cancelled() or done.exception())  # whoever asked may have gone
        self._making[key] = made = Making(begun, head)
        return made

    async def _make(self, key: Key, begun: Future[Head]) -> Head:
        try:
            head = await asyncio.wrap_future(begun)
        finally:
            if not begun.cancelled():
                del self._making[key]
        self._keep(key, KeptHead(head, size_of(head)))
        return head

    def _keep(self, key: Key, kept: KeptHead) -> None:
        if kept.bytes > self._limits.head_bytes:
            return
        self._kept[key] = kept
        self.bytes += kept.bytes
        while len(self._kept) > self._limits.heads or self.bytes > self._limits.head_bytes:
            self._forget(next(iter(self._kept)))

    def drop(self, served: Served) -> None:
        """Forget the lists of an adapter that is no longer served."""
        for key in [key for key in self._kept if key[0] == served.serial]:
            self._forget(key)

    def _forget(self, key: Key) -> None:
        self.bytes -= self._kept.pop(key).bytes

    def close(self) -> None:
        self._maker.shutdown(wait=False, cancel_futures=True)


def size_of(head: Head) -> int:
    """Bytes of the tensors in a head and of the texts that it is for, about."""
    texts = sum(_A_TEXT + len(text) for text in (*head.names, *template_list(head.template)))
    return sum({id(each): each.nbytes for each in _tensors((head.head, head.seen), _DEEPEST)}.values()) + texts


def _tensors(thing: Any, deep: int) -> Iterator[Tensor]:
    if isinstance(thing, Tensor):
        yield thing
    elif deep and not isinstance(thing, (str, bytes, nn.Module)):
        inside = thing.values() if isinstance(thing, Mapping) else thing if isinstance(thing, (tuple, list)) else _fields(thing)
        for each in inside:
            yield from _tensors(each, deep - 1)


def _fields(thing: Any) -> list[Any]:
    return list(vars(thing).values()) if hasattr(thing, "__dict__") and not isinstance(thing, type) else []
