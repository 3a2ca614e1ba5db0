"""Missing and broken images: finding them, leaving them out, one warning for all."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from mmrl.data.images import REMEDY
from mmrl.data.parallel import ordered
from mmrl.data.records import Dataset, Item
from mmrl.errors import UsageError

NAMED = 3  # images that a warning names


class BrokenImageWarning(UserWarning):
    """Images were left out because they are missing or broken."""


class Broken(NamedTuple):
    """An image that cannot be read, and why."""

    key: str
    message: str


def readable(dataset: Dataset, items: Sequence[Item], workers: int = 0) -> tuple[list[Item], list[Broken]]:
    """Split `items` into those whose images can be decoded and the others, both in order.

    Args:
        workers: number of decoding threads.
    """

    def problem(item: Item) -> str | None:
        try:
            dataset.image(item)
        except UsageError as error:
            return str(error)
        return None

    good: list[Item] = []
    bad: list[Broken] = []
    for item, message in zip(items, ordered(problem, items, workers, ahead=4 * workers)):
        if message is None:
            good.append(item)
        else:
            bad.append(Broken(item.key, message))
    return good, bad


def require_files(dataset: Dataset, items: Sequence[Item]) -> None:
    """Raises UsageError, as reading it would, for the first of `items` whose file is not there or empty, with the number of such files."""
    absent = dataset.absent(items)
    if not absent:
        return
    try:
        dataset.image(absent[0])
    except UsageError as error:
        more = len(absent) - 1
        others = f" So {'is' if more == 1 else 'are'} {more} more of {len(items)} images of '{dataset.name}'." if more else ""
        raise UsageError(f"{str(error).removesuffix(REMEDY).rstrip()}{others} {REMEDY}") from error


def require_every_class(dataset: Dataset, before: Sequence[Item], good: Sequence[Item]) -> None:
    """Raises UsageError, naming the class, if all images of a class are broken."""
    left = Counter(item.label for item in good)
    for label, count in sorted(Counter(item.label for item in before).items()):
        if not left[label]:
            raise UsageError(
                f"all {count} training images of class '{dataset.classes[label]}' of '{dataset.name}' are missing or broken. "
                "Replace them, draw with another seed, or remove the class."
            )


def describe_broken(bad: Sequence[Broken], total: int, *, of: str = "") -> str:
    """One sentence: how many of `total` images (of the set `of`) were left out, with the first few names."""
    first = "; ".join(one.message.removesuffix(REMEDY).rstrip(". ") for one in bad[:NAMED])
    more = f"; and {len(bad) - NAMED} more" if len(bad) > NAMED else ""
    where = f" of '{of}'" if of else ""
    return f"{len(bad)} of {total} images{where} left out, missing or broken: {first}{more}."


def warn_broken(bad: Sequence[Broken], total: int, *, of: str = "") -> tuple[str, ...]:
    """Warn if images were left out. Returns the text of the warning, if any.

    Warns:
        BrokenImageWarning: `bad` is not empty.
    """
    if not bad:
        return ()
    text = describe_broken(bad, total, of=of)
    warnings.warn(text, BrokenImageWarning, stacklevel=3)
    return (text,)
