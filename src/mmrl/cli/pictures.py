"""The images that a command was given: files, folders and patterns, in their order, with what is wrong with those that cannot be read."""

from __future__ import annotations

import glob
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from mmrl.errors import UsageError
from mmrl.files import near_path, user_path


@dataclass(frozen=True)
class Picture:
    """An image that was asked for, and why it cannot be had, where it is known before it is read."""

    name: str
    problem: str = ""


def pictures(given: Sequence[str]) -> list[Picture]:
    """Files as they are, folders and patterns (`photos/*.jpg`) as the images directly in them, sorted; what systems leave is skipped.

    What is missing is in the list, too, with its problem, as long as one of all can be found.

    Warns:
        Notice: HEIC photos of folders were skipped, as the library that reads them is not installed.

    Raises:
        UsageError: none of them is there.
    """
    found = [picture for name in given for picture in _those_of(name)]
    if all(each.problem for each in found):
        raise UsageError(found[0].problem if found else "none of the files given is an image.")
    return found


def _those_of(name: str) -> Iterator[Picture]:
    from mmrl.data.formats import is_litter

    path = user_path(name)
    if path.is_dir():
        yield from _inside(name, path)
    elif not path.exists():
        matching = sorted(glob.glob(str(path))) if glob.has_magic(name) else []
        yield from (each for match in matching for each in _those_of(match))
        if not matching:
            yield Picture(name, f"no such image: {name}.{near_path(path)}")
    elif not is_litter(path.name):
        yield Picture(str(path))


def _inside(name: str, folder: Path) -> Iterator[Picture]:
    from mmrl.data.formats import HEIC_ENDINGS, IMAGE_ENDINGS, is_image, lacks_extra, say_skipped

    try:
        inside = sorted(entry for entry in folder.iterdir() if entry.is_file())
    except OSError as error:
        yield Picture(name, f"cannot look into the folder {name}: {error.strerror}. Check its permissions.")
        return
    say_skipped([entry.name for entry in inside if lacks_extra(entry.name)], folder)
    images = [entry for entry in inside if is_image(entry.name)]
    if not images:
        endings = ", ".join(sorted(IMAGE_ENDINGS | HEIC_ENDINGS))
        yield Picture(name, f"the folder {name} has no images directly in it ({endings}).")
    yield from (Picture(str(entry)) for entry in images)
