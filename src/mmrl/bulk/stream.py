"""Answers in a stream: threads decode ahead of the model, and memory does not grow with the number of images.

Images are judged in blocks of 64, those of the first 64 places of the list, of the next 64, and so on. An image has the same place in the
same block however often the work was interrupted: so its answer is the same to the last bit, and does not depend on which others can be
read. Places of others are left grey.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from mmrl.bulk.answers import Answer, AskedOfEach
from mmrl.bulk.listed import ListedImage, missing
from mmrl.classifier import web
from mmrl.classifier.judging import Judged
from mmrl.data import to_rgb
from mmrl.data.central import Planes
from mmrl.data.images import REMEDY
from mmrl.data.parallel import ordered, usual_workers
from mmrl.data.preprocess import Preprocess
from mmrl.data.sources import is_url
from mmrl.errors import UsageError

if TYPE_CHECKING:
    from mmrl.classifier.predictor import Classifier

BLOCK = 64
AHEAD = 2  # blocks that are decoded in advance


class Loaded(NamedTuple):
    """An image as the backbone takes it, or why it cannot be read."""

    name: str
    planes: Planes | None
    problem: str = ""


def load(listed: ListedImage, preprocess: Preprocess, allow_urls: bool) -> Loaded:
    """Read and decode one image. What is wrong with it is in the answer, and ends nothing."""
    name = listed.name
    if listed.problem:
        return Loaded(name, None, listed.problem)
    try:
        return Loaded(name, preprocess.central(to_rgb(_content(name, allow_urls) if is_url(name) else name)))
    except UsageError as error:
        said = str(error).removesuffix(REMEDY).rstrip()
        if is_url(name):
            return Loaded(name, None, said if name in said else f"{name}: {said}")
        return Loaded(name, None, missing(listed) or said)
    except Exception as error:  # of memory, or of a library: one image must not end the others
        return Loaded(name, None, f"{name} cannot be read: {type(error).__name__}: {error}".rstrip(": "))


def _content(url: str, allowed: bool) -> bytes:
    if not allowed:
        raise UsageError(f"'{url}' is a URL, and fetching is off: give --allow-urls, or download it and give the file.")
    return web.fetched(url, web.Urls())


class BlockJudge:
    """Answers a block of loaded images at once.

    Raises:
        UsageError: the classifier cannot be asked that.
    """

    def __init__(self, classifier: Classifier, asked: AskedOfEach) -> None:
        self.classifier, self.asked = classifier, asked
        self.judging = asked.judging(classifier)

    def __call__(self, images: Sequence[Loaded], before: int = 0) -> list[Answer]:
        """Answers of the images of a block from place `before` on.

        Raises:
            MmrlError: a score is not finite.
        """
        planes = [*[None] * before, *(each.planes for each in images)]
        grey = next((np.full_like(each, 128) for each in planes if each is not None), None)
        if grey is None:
            return [Answer(each.name, [], each.problem) for each in images]
        clf = self.classifier
        pixels = clf.preprocess.batch([grey if each is None else each for each in planes], clf.device)
        (logits,) = clf.score_pixels(pixels, [(self.judging.head, range(len(planes)))])
        found = self.asked.judged(clf, self.judging, logits)
        return [self._answer(each, own) for each, own in zip(images, found[before:], strict=True)]

    def _answer(self, image: Loaded, own: Judged) -> Answer:
        if image.planes is None:
            return Answer(image.name, [], image.problem)
        score, unknown = (own.score, own.unknown) if self.asked.rejects else (None, None)
        return Answer(image.name, own.ranked, "", score, unknown, own.within if self.asked.coverage is not None else None)


def blocks(
    judge: BlockJudge, listed: Iterable[ListedImage], *, start: int = 0, workers: int | None = None
) -> Generator[list[Answer], None, None]:
    """Answers of all images, by block.

    Args:
        listed: from place `start` of the whole list on.
        workers: threads that decode; default: one a core, at most 8. 0 decodes between the blocks.
    """
    read = partial(load, preprocess=judge.classifier.preprocess, allow_urls=judge.asked.allow_urls)
    loaded = ordered(read, listed, usual_workers() if workers is None else workers, ahead=AHEAD * BLOCK)
    before = start % BLOCK
    while images := list(islice(loaded, BLOCK - before)):
        yield judge(images, before)
        before = 0
