"""The images that a command was given: files, folders and patterns, in their order, with what is wrong with those that cannot be read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from mmrl.errors import UsageError
from mmrl.files import near_path


@dataclass(frozen=True)
class Picture:
    """An image that was asked for, and why it cannot be had, where that is known before it is read."""

    name: str
    problem: str = ""
    content: bytes | None = None  # of what was fetched

    @property
    def source(self) -> str | bytes:
        return self.name if self.content is None else self.content


def pictures(given: Sequence[str], *, allow_urls: bool = False) -> list[Picture]:
    """Files as they are, folders and patterns (`photos/*.jpg`) as the images in them, sorted; what systems leave beside photos is skipped.
    URLs are fetched, if they may be.

    What is missing is in the list, too, with its problem, as long as one of all can be found.

    Warns:
        Notice: HEIC photos of folders were skipped, as the library that reads them is not installed.

    Raises:
        UsageError: none of them is there.
    """
    from mmrl.classifier.web import is_url

    found = [picture for name in given for picture in ([_fetched(name, allow_urls)] if is_url(name) else _those_of(name))]
    if all(each.problem for each in found):
        raise UsageError(found[0].problem if found else "none of the files given is an image.")
    return found


def _fetched(url: str, allowed: bool) -> Picture:
    from mmrl.classifier.web import Urls, fetched
    from mmrl.data.images import REMEDY

    if not allowed:
        return Picture(url, f"'{url}' is a URL, and fetching is off: give --allow-urls, or download it and give the file.")
    try:
        return Picture(url, content=fetched(url, Urls()))
    except UsageError as error:
        return Picture(url, str(error).removesuffix(REMEDY).rstrip())


def _those_of(name: str) -> Iterator[Picture]:
    from mmrl.data.formats import is_litter
    from mmrl.data.globs import image_files

    try:
        for file in image_files(name):
            path = Path(file)
            if not path.exists():
                yield Picture(file, f"no such image: {file}.{near_path(path) or ' Check the path.'}")
            elif not is_litter(path.name):
                yield Picture(file)
    except UsageError as error:
        yield Picture(name, str(error))
