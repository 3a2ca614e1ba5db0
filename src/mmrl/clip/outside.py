"""Calls into open_clip and the hub's library: what they warn of is passed on, and without a network they do not wait for one."""

from __future__ import annotations

import logging
import ssl
import urllib.error
import urllib.request
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path

from mmrl.errors import Notice, first_line

PATIENCE = 5.0  # seconds that the hub may take to be connected to, and to answer
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

    Warnings that are for programmers (of names that will go away) are left out, and tqdm's, of a notebook without widgets.

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
    told = [each for each in caught if not (issubclass(each.category, FOR_PROGRAMMERS) or each.category.__module__.startswith("tqdm"))]
    theirs = [str(each.message) for each in told]
    for text in dict.fromkeys([*kept.texts, *theirs]):
        warnings.warn(f"{name}: {text}", Notice, stacklevel=4)


@contextmanager
def without_waiting() -> Iterator[bool]:
    """Where the hub does not answer, only its cache is asked: else the library tries again and again, a minute or two.

    Yields:
        whether the hub is asked.
    """
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = before or not _answers(constants.ENDPOINT)
    try:
        yield not constants.HF_HUB_OFFLINE
    finally:
        constants.HF_HUB_OFFLINE = before


def why_not_fetched(error: Exception, *, asked: bool) -> str:
    """Why something could not be had from the hub: what its library says, or that the hub was not asked."""
    if asked:
        return first_line(error).partition(". ")[0].rstrip(".")
    from huggingface_hub import constants

    why = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else f"{constants.ENDPOINT} does not answer"
    return f"it was not downloaded before, and {why}"


def hub_folder(name: str) -> Path:
    """Where the hub's library keeps the files of the model `name`, ORG/NAME, once they were fetched."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE) / f"models--{name.replace('/', '--')}"


def _answers(address: str) -> bool:
    """Whether something answers at `address`, be it with an error, within seconds; a proxy of the environment is used."""
    try:
        urllib.request.build_opener().open(urllib.request.Request(address, method="HEAD"), timeout=PATIENCE).close()
    except urllib.error.HTTPError:
        return True
    except (OSError, HTTPException) as error:  # a certificate that Python does not know, the library may
        return isinstance(getattr(error, "reason", None), ssl.SSLError)
    return True
