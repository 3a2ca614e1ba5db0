"""The images that a prediction is asked for, one after the other: files, folders, patterns, URLs, and lists of them.

Nothing holds all names at once, but for those that a pattern matches: a folder is walked with the names of one folder at a time, a list is
read as it goes.
"""

from __future__ import annotations

import csv
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import IO, NamedTuple

from mmrl.data.formats import is_image, is_litter, lacks_extra, say_skipped
from mmrl.data.globs import image_files
from mmrl.data.sources import is_url
from mmrl.errors import UsageError, first_line
from mmrl.files import near_path, user_path

STDIN = "-"
COLUMN = "image"
LONGEST_LINE = 2**16  # bytes of a line of a list; paths have 4096 at most
DELIMITERS = (",", ";", "\t")


class ListedImage(NamedTuple):
    """An image that is asked for.

    Attributes:
        name: its path or URL, as it was given.
        problem: why it cannot be had, where that is known before it is read.
        named: whether a person wrote it, who is told what is called alike where it is missing; not those of folders and lists.
    """

    name: str
    problem: str = ""
    named: bool = False


@dataclass(frozen=True)
class WantedImages:
    """The images of some files, folders, patterns and URLs, and of lists, in this order; of folders and patterns sorted by name.

    Attributes:
        images: as a user writes them. A folder stands for the images directly in it.
        lists: files with one path or URL a line, .csv, .jsonl or .parquet files with a column `image`, or '-' for lines of stdin. Their
            paths are taken as they are, relative to the working folder: nothing in them is a pattern.
        recursive: a folder stands for the images in its subfolders, too, but for hidden ones and links to folders.
    """

    images: Iterable[str | os.PathLike[str]] = ()
    lists: tuple[str, ...] = ()
    recursive: bool = False

    def __iter__(self) -> Iterator[ListedImage]:
        """Each image, or what is wrong with a name that gives none.

        Warns:
            Notice: HEIC photos of folders were skipped, as the library that reads them is not installed.

        Raises:
            UsageError: a list that cannot be read, or has a line that is no path.
        """
        for image in self.images:
            yield from _those_of(_text(image), self.recursive)
        for each in self.lists:
            yield from (ListedImage(name) for name in _of_list(each))

    def require_some(self) -> None:
        """Raises UsageError if it can be told without reading a list that there is not one image."""
        if self.lists or not isinstance(self.images, (tuple, list)):
            return
        first = ""
        for each in self:
            problem = each.problem or ("" if is_url(each.name) else missing(each))
            if not problem:
                return
            first = first or problem
        raise UsageError(first or "none of the files given is an image.")

    def refuse_copies_inside(self, folder: str | os.PathLike[str]) -> None:
        """Raises UsageError if `folder`, in which copies are made, would be walked for images, too."""
        goal = os.path.realpath(folder)
        for image in self.images if isinstance(self.images, (tuple, list)) else ():
            text = _text(image)
            deep = self.recursive and os.path.isdir(text)
            if "**" in text and not os.path.exists(text):
                text, deep = text.partition("**")[0] or ".", True
                text = text if os.path.isdir(text) else os.path.dirname(text) or "."
            if deep and os.path.commonpath([goal, os.path.realpath(text)]) == os.path.realpath(text):
                raise UsageError(f"--sort-into {os.fspath(folder)} lies in {text}, whose images are asked for: give a folder elsewhere.")

    def count(self) -> int | None:
        """How many there are; None where only reading them once tells: of stdin and other pipes, or of names that are made as they are
        asked for."""
        if not isinstance(self.images, (tuple, list)) or any(each == STDIN or not user_path(each).is_file() for each in self.lists):
            return None
        return sum(1 for _ in self)


def missing(listed: ListedImage) -> str:
    """What to say of a file that is not there; '' for one that is."""
    try:
        path = user_path(listed.name)
        there = os.path.lexists(path)
    except (UsageError, OSError, ValueError) as error:  # a name that no file can have
        return str(error)
    return "" if there else f"no such image: {listed.name}.{(near_path(path) if listed.named else '') or ' Check the path.'}"


def _text(image: object) -> str:
    if not isinstance(image, (str, os.PathLike)):
        raise UsageError(f"images has an object of type {type(image).__name__}; predictions in bulk are of files and URLs: give names.")
    text = os.fspath(image)
    if not isinstance(text, str):
        raise UsageError(f"the path of an image must be a text, not {type(text).__name__}.")
    return text


def _those_of(name: str, recursive: bool) -> Iterator[ListedImage]:
    if is_url(name):
        yield ListedImage(name)
        return
    try:
        path = user_path(name)
        if path.is_dir():
            found: Iterable[ListedImage] = _below(str(path), recursive)
        else:
            found = (ListedImage(file, named=True) for file in image_files(name) if not is_litter(os.path.basename(file)))
        yield from found
    except UsageError as error:
        yield ListedImage(name, str(error))


def _below(top: str, recursive: bool) -> Iterator[ListedImage]:
    """Images in a folder, sorted by name: first those directly in it, then those of its subfolders."""
    some, skipped, folders = False, list[str](), [top]
    while folders:
        folder = folders.pop()
        names, below = list[str](), list[str]()
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    if is_image(entry.name) and entry.is_file():
                        names.append(entry.name)
                    elif lacks_extra(entry.name):
                        skipped.append(entry.name)
                    elif recursive and not entry.name.startswith(".") and not is_litter(entry.name) and entry.is_dir(follow_symlinks=False):
                        below.append(entry.name)
        except OSError as error:
            yield ListedImage(folder, f"cannot look into the folder {folder}: {error.strerror}. Check its permissions.")
            some = True
            continue
        names.sort()
        for name in names:
            some = True
            yield ListedImage(os.path.join(folder, name))
        folders += [os.path.join(folder, name) for name in sorted(below, reverse=True)]
    say_skipped(skipped, top)
    if not some:
        if recursive:
            raise UsageError(f"the folder {top} has no images in it or in its subfolders.")
        image_files(top)  # which says what is the matter


def _of_list(given: str) -> Iterator[str]:
    """Names in a list, as they are.

    Raises:
        UsageError: it cannot be read, or has no column of images, or a line that is no path.
    """
    if given == STDIN:
        yield from _lines(sys.stdin.buffer, "stdin")
        return
    path = user_path(given)
    ending = path.suffix.lower()
    if ending == ".parquet":
        from mmrl.bulk.parquet import texts

        yield from (name for name in texts(path, COLUMN, f"the list {path}") if name.strip())
        return
    reader: Callable[[IO[bytes], str], Iterator[str]] = {".csv": _csv, ".jsonl": _jsonl}.get(ending, _lines)
    try:
        with path.open("rb") as file:
            yield from reader(file, str(path))
    except FileNotFoundError as error:
        raise UsageError(f"the list {path} does not exist.{near_path(path)} Check the path.") from error
    except OSError as error:
        raise UsageError(f"cannot read the list {path}: {error.strerror or error}. Check the path and its permissions.") from error


def _raw_lines(file: IO[bytes], where: str) -> Iterator[tuple[int, bytes]]:
    number = 0
    while line := file.readline(LONGEST_LINE + 1):
        number += 1
        if len(line) > LONGEST_LINE:
            raise UsageError(f"{where}, line {number} has more than {LONGEST_LINE:,} bytes: it is no list of images, one a line.")
        if b"\0" in line:
            raise UsageError(f"{where}, line {number} has a zero byte: it is no list of images, one a line, in UTF-8.")
        yield number, line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line


def _lines(file: IO[bytes], where: str) -> Iterator[str]:
    for _, line in _raw_lines(file, where):
        name = os.fsdecode(line.rstrip(b"\r\n"))  # names may begin or end with spaces, and need not be UTF-8
        if name.strip():
            yield name


def _csv(file: IO[bytes], where: str) -> Iterator[str]:
    lines = (line.decode("utf-8", "surrogateescape") for _, line in _raw_lines(file, where))
    first, number = next(lines, ""), 1
    try:
        columns = {mark: next(csv.reader([first], delimiter=mark), []) for mark in DELIMITERS}
        mark = next((mark for mark, header in columns.items() if COLUMN in header), "")
        if not mark:
            raise UsageError(f"the list {where} has no column '{COLUMN}'; its first line is '{first.strip():.80}'.")
        at, reader = columns[mark].index(COLUMN), csv.reader(lines, strict=True, delimiter=mark)
        for row in reader:
            number = reader.line_num + 1
            if len(row) > at and row[at].strip():
                yield row[at]
    except csv.Error as error:
        raise UsageError(f"{where} is not valid CSV after line {number}: {error}.") from error


def _jsonl(file: IO[bytes], where: str) -> Iterator[str]:
    for number, line in _raw_lines(file, where):
        if not line.strip():
            continue
        try:
            content = json.loads(line.decode("utf-8", "surrogateescape"))
        except (ValueError, RecursionError) as error:
            raise UsageError(f"{where}, line {number} is not valid JSON, or was cut short: {first_line(error)}.") from error
        name = content.get(COLUMN) if isinstance(content, dict) else content
        if not isinstance(name, str):
            raise UsageError(f'{where}, line {number} has no text \'{COLUMN}\'; expected {{"{COLUMN}": "photos/1.jpg"}}.')
        if name.strip():
            yield name
