"""The adapters that are served, on one backbone; one whose folder changed is loaded again, beside the old one, which answers until then."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from mmrl.api import from_pretrained, zero_shot
from mmrl.classifier.judging import Head
from mmrl.classifier.predictor import Classifier
from mmrl.clip import Clip
from mmrl.engine.adapter import CONFIG, TENSORS
from mmrl.errors import MmrlError, UsageError
from mmrl.files import user_path
from mmrl.server.logs import say
from mmrl.server.metrics import Meters
from mmrl.server.refusals import Refused
from mmrl.server.settings import ZERO_SHOT, Settings
from mmrl.templates import Template

Stamp = tuple[tuple[int, int, int], ...]
_ANY_CLASS = ("object",)
_serials = itertools.count(1)


@dataclass(frozen=True)
class Served:
    """One adapter as it was loaded at a time.

    Attributes:
        serial: another one for each loading in this process.
        version: 1 as it was loaded first, and one more each time it is loaded again.
        own: class features of the classes that it was trained on; None for zero-shot.
    """

    name: str
    place: str
    classifier: Classifier
    own: Head | None
    serial: int
    version: int = 1

    def head_of(self, names: tuple[str, ...] | None, template: Template | None) -> Head:
        """Made anew; it may take long. Raises as `Classifier.head`."""
        return self.classifier.head(names, template)


class Adapters:
    """All of them by name; the first is the default.

    Args:
        dropped: told of an adapter that another has taken the place of.

    Raises:
        UsageError: one is not there, or was made for another backbone.
        MmrlError: one is damaged.
    """

    def __init__(self, settings: Settings, metrics: Meters, dropped: Callable[[Served], None] = lambda served: None) -> None:
        self._metrics, self._dropped = metrics, dropped
        self.clip, self._by_name = _load_all(settings)
        self._folders = {name: folder for name, place in settings.adapters if (folder := _folder(place)) is not None}
        self._stamps: dict[str, Stamp | None] = {name: _stamp(folder) for name, folder in self._folders.items()}
        self._seen = dict(self._stamps)

    @property
    def default(self) -> Served:
        return next(iter(self._by_name.values()))

    @property
    def all(self) -> list[Served]:
        return list(self._by_name.values())

    def get(self, name: str | None) -> Served:
        """Raises Refused (404) where there is no such adapter."""
        if name is None:
            return self.default
        if name not in self._by_name:
            raise Refused(404, f"no adapter of that name is served here; there are: {', '.join(self._by_name)}.")
        return self._by_name[name]

    async def watch(self, seconds: float) -> None:
        """Look at the folders from time to time, for ever."""
        while True:
            await asyncio.sleep(seconds)
            await self.look()

    async def look(self) -> None:
        """Load what has changed and is as it was at the look before: whoever writes it has finished."""
        for name, folder in self._folders.items():
            now = await asyncio.to_thread(_stamp, folder)
            settled, self._seen[name] = now == self._seen[name], now
            if now == self._stamps[name] or not settled:
                continue
            self._stamps[name] = now
            await self._reload(name)

    async def _reload(self, name: str) -> None:
        old = self._by_name[name]
        try:
            new = await asyncio.to_thread(_loaded, name, old.place, self.clip, old.version + 1)
        except Exception as error:
            told = isinstance(error, MmrlError)
            said = "the adapter changed and cannot be loaded; the old one is kept"
            say(logging.ERROR, said, trace=not told, adapter=name, why=str(error))
            self._metrics.reloads.labels(name, "failed").inc()
            return
        self._by_name[name] = new
        self._dropped(old)
        self._metrics.reloads.labels(name, "loaded").inc()
        say(logging.INFO, "the adapter changed and was loaded again", adapter=name, version=new.version)


def _load_all(settings: Settings) -> tuple[Clip, dict[str, Served]]:
    clip: Clip | str | None = settings.backbone
    found: dict[str, Served] = {}
    trained_first = sorted(settings.adapters, key=lambda each: each[1] == ZERO_SHOT)  # they name the backbone
    for name, place in trained_first:
        found[name] = _loaded(name, place, clip, 1, device=settings.device)
        clip = found[name].classifier.method.clip
    assert isinstance(clip, Clip)
    return clip, {name: found[name] for name, _ in settings.adapters}


def _loaded(name: str, place: str, clip: Clip | str | None, version: int, *, device: str = "auto") -> Served:
    """An adapter that was tried: it has class features, and scores that are numbers."""
    if place == ZERO_SHOT:
        classifier = zero_shot(clip or "tiny", device=device)
    else:
        try:
            classifier = from_pretrained(place, backbone=clip, device=device)
        except UsageError as error:
            hint = " All adapters of a server share one backbone; serve the others on another port." if isinstance(clip, Clip) else ""
            raise type(error)(f"{error}{hint}") from error
    own = classifier.head() if classifier.trained else None
    side = classifier.method.clip.image_size
    grey = torch.zeros(1, 3, side, side, device=classifier.device)
    classifier.score_pixels(grey, [(own or classifier.head(_ANY_CLASS), (0,))])
    return Served(name, place, classifier, own, next(_serials), version)


def _folder(place: str) -> Path | None:
    """The folder to look at; None for a name on a hub, which is what was fetched, and for zero-shot."""
    if place == ZERO_SHOT:
        return None
    folder = user_path(place)
    return folder if folder.exists() else None


def _stamp(folder: Path) -> Stamp | None:
    """What changes when the adapter is written again; None where a file is missing."""
    try:
        found = [(folder / name).stat() for name in (CONFIG, TENSORS)]
    except OSError:
        return None
    return tuple((each.st_mtime_ns, each.st_size, each.st_ino) for each in found)
