"""Calls into open_clip and the hub's library: what they warn of is passed on, and without a network they do not wait for one."""

from __future__ import annotations

import logging
import socket
import urllib.request
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from mmrl.errors import Notice

FOR_PROGRAMMERS = (DeprecationWarning, PendingDeprecationWarning, FutureWarning)


class _Kept(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())


@contextmanager
def heeded(name: str) -> Iterator[None]:
    """What is logged or warned of while the backbone `name` is loaded becomes a `Notice` each; if loading fails, its error says all.

    Warnings that are for programmers (of names that will go away) are left out.

    Warns:
        Notice: for each different text.
    """
    root, kept = logging.getLogger(), _Kept()
    handlers, root.handlers = root.handlers, [kept]
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            yield
    finally:
        root.handlers = handlers
    theirs = [str(each.message) for each in caught if not issubclass(each.category, FOR_PROGRAMMERS)]
    for text in dict.fromkeys([*kept.texts, *theirs]):
        warnings.warn(f"{name}: {text}", Notice, stacklevel=4)


@contextmanager
def without_waiting() -> Iterator[None]:
    """Where the hub's name cannot be resolved, only its cache is asked: else the library tries again and again, most of a minute."""
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = before or not _resolves(constants.ENDPOINT)
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def hub_folder(name: str) -> Path:
    """Where the hub's library keeps the files of the model `name`, ORG/NAME, once they were fetched."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE) / f"models--{name.replace('/', '--')}"


def _resolves(address: str) -> bool:
    """Whether the host of `address` has a network address; taken for granted behind a proxy, which resolves names itself."""
    if urllib.request.getproxies():
        return True
    host = urlsplit(address).hostname or ""
    try:
        socket.getaddrinfo(host, None)
    except OSError:
        return False
    return True
