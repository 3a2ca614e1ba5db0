"""Copies of images in a folder for each class. Nothing is overwritten, and nothing is moved.

Where a copy goes is decided before the answer is written, and stands in it; the copy is made after. So what a kill left out is known, and
made when the work goes on.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import NamedTuple

from mmrl.bulk.answers import Answer
from mmrl.data.parallel import ordered, usual_workers
from mmrl.data.sources import is_url
from mmrl.errors import MmrlError, UsageError
from mmrl.files import LONGEST_NAME, PARTIAL, sweep
from mmrl.names import distinct_names
from mmrl.trust.rejection import UNKNOWN

ANSWERS = "predictions.jsonl"  # what is written into the folder where no other file is named
_UNSAFE = re.compile(r'[\x00-\x1f\x7f<>:"/\\|?*]')  # in names of files, somewhere
_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)
_LONGEST = 120  # bytes of the name of a class's folder
_HASH = 8  # digits


class NotCopied(NamedTuple):
    """An image that could not be copied, and why."""

    image: str
    problem: str


def folder_names(names: Sequence[str]) -> list[str]:
    """A name of a folder for each class: safe on every system, and none twice.

    What would lead elsewhere or is refused somewhere is an underscore: "AC/DC" is in "AC_DC", ".." in "_".
    """
    safe = []
    for name in names:
        text = _UNSAFE.sub("_", name).rstrip(". ").lstrip()
        text = text.encode()[:_LONGEST].decode(errors="ignore").rstrip(". ")
        if text.startswith(".") or _RESERVED.fullmatch(text) or not text:
            text = f"_{text.removeprefix('.')}"
        safe.append(text)
    taken = (ANSWERS, f"{ANSWERS}.run.json", f"{ANSWERS}.lock")
    return distinct_names([*taken, *safe])[len(taken) :]


class Sorter:
    """Sorts images into `folder`, by the likeliest of the classes `names`, or as unknown.

    Args:
        links: make symbolic links to the images instead of copies.

    Raises:
        UsageError: `folder` is a file.
    """

    def __init__(self, folder: Path, names: Sequence[str], *, links: bool = False) -> None:
        if folder.exists() and not folder.is_dir():
            raise UsageError(f"--sort-into {folder} is a file; give a folder.")
        self.folder, self.links = folder, links
        every = list(dict.fromkeys([*names, UNKNOWN]))
        self._of = dict(zip(every, folder_names(every), strict=True))
        for name in self._of.values():
            sweep(folder / name)

    def placed(self, answers: Sequence[Answer], first: int) -> list[Answer]:
        """The answers, with where a copy of each goes: the name of the file, or another where that is taken.

        Args:
            first: place of the first of them in the list of images.
        """
        taken = set[str]()
        return [self._placed(answer, first + at, taken) for at, answer in enumerate(answers)]

    def _placed(self, answer: Answer, at: int, taken: set[str]) -> Answer:
        if not answer.ranked or is_url(answer.image):
            return answer
        name = os.path.basename(os.path.abspath(answer.image))
        digest = hashlib.sha256(os.fsencode(os.path.abspath(answer.image))).hexdigest()[:_HASH]
        folder = self.folder / self._of[UNKNOWN if answer.unknown else answer.ranked[0].name]
        for more in ("", f"-{digest}", f"-{digest}-{at}"):
            path = folder / _with(name, more)
            if str(path).casefold() not in taken and not os.path.lexists(path):
                taken.add(str(path).casefold())
                return answer._replace(copy=str(path))
        raise MmrlError(f"{path} is there already, and is no copy of this prediction. Give another --sort-into.")

    def copy(self, answers: Iterable[tuple[str, str]]) -> Iterator[NotCopied]:
        """Make the copies of images, each with where it goes, that are not there yet. Yields those that cannot be read.

        Raises:
            MmrlError: a copy cannot be written.
        """
        function = partial(_link if self.links else _copy)
        workers = usual_workers()
        yield from (each for each in ordered(lambda pair: function(*pair), answers, workers, ahead=4 * workers) if each)


def _with(name: str, more: str) -> str:
    """`name` with `more` in front of its ending, no longer than names may be."""
    stem, ending = os.path.splitext(name)
    room = LONGEST_NAME - len(os.fsencode(more + ending))
    return os.fsdecode(os.fsencode(stem)[: max(room, 1)]) + more + ending


def _copy(image: str, goal: str) -> NotCopied | None:
    try:
        size = os.stat(image).st_size
        if os.path.lexists(goal):
            return None if os.path.exists(goal) and os.stat(goal).st_size == size else _in_the_way(image, goal)
        source = open(image, "rb")  # noqa: SIM115
    except OSError as error:
        if isinstance(error, FileNotFoundError) and os.path.exists(goal):
            return None  # it was copied before the image was taken away
        return NotCopied(image, f"{image} could not be copied: {error.strerror or error}.")
    with source, _explained(goal):
        os.makedirs(os.path.dirname(goal), exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=os.path.dirname(goal), prefix=".copy.", suffix=PARTIAL)
        try:
            with open(handle, "wb") as file:
                shutil.copyfileobj(source, file, 2**20)
            with suppress(OSError):  # times and modes, which not every file system keeps
                shutil.copystat(image, temporary)
            return None if _named(temporary, goal) else _in_the_way(image, goal)
        finally:
            with suppress(FileNotFoundError):
                os.unlink(temporary)


def _named(temporary: str, goal: str) -> bool:
    """Give a whole file its name, unless something has it."""
    try:
        os.link(temporary, goal)
    except FileExistsError:
        return False
    except OSError:  # a file system without hard links
        if os.path.lexists(goal):
            return False
        os.rename(temporary, goal)
    return True


def _link(image: str, goal: str) -> NotCopied | None:
    source = os.path.abspath(image)
    with _explained(goal):
        os.makedirs(os.path.dirname(goal), exist_ok=True)
        try:
            os.symlink(source, goal)
        except FileExistsError:
            if not os.path.islink(goal) or os.readlink(goal) != source:
                return _in_the_way(image, goal)
    return None


def _in_the_way(image: str, goal: str) -> NotCopied:
    return NotCopied(image, f"{image} could not be copied: another file is at {goal}. Move that, and --resume copies it.")


@contextmanager
def _explained(goal: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        said = f"cannot write {goal}: {error.strerror or error}. Answers and copies that are there stay: free some space"
        raise MmrlError(f"{said} or mend what is in the way, and the same command with --resume goes on.") from error
