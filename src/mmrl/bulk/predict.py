"""Answers of many images, written as they come, in a file that an interrupted run goes on with."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from mmrl.api import from_pretrained
from mmrl.bulk.answers import TOP, Answer, AskedOfEach
from mmrl.bulk.listed import ListedImage, WantedImages
from mmrl.bulk.output import AnswerFile, check_free, file_format, held, refuse_existing
from mmrl.bulk.progress import shown
from mmrl.bulk.sorting import ANSWERS, Sorter
from mmrl.bulk.stream import BlockJudge, blocks
from mmrl.classifier.judging import Calibrated
from mmrl.data import BrokenImageWarning
from mmrl.errors import UsageError, unknown
from mmrl.files import user_path
from mmrl.templates import Template
from mmrl.trust.answers import SCORE

if TYPE_CHECKING:
    from mmrl.classifier.predictor import Classifier

ENGINES = ("local", "ray")
NAMED = 20  # bad images that are named on stderr


@dataclass(frozen=True)
class Engine:
    """Where images are judged.

    Attributes:
        name: local, or ray.
        workers: threads that decode, of each process; default: one a core, at most 8, and one for each worker of Ray.
        address: of a Ray cluster, or 'auto'; None starts one here.
        gpu_fraction: GPUs a worker of Ray has.
    """

    name: str = "local"
    workers: int | None = None
    address: str | None = None
    gpu_fraction: float = 0.0

    def check(self) -> None:
        """Raises UsageError where options do not go together."""
        if self.name not in ENGINES:
            raise unknown("engine", self.name, ENGINES)
        if self.name == "local" and (self.address is not None or self.gpu_fraction):
            raise UsageError("--address and --gpu-fraction need --engine ray.")
        if self.workers is not None and self.workers < 0:
            raise UsageError(f"workers is {self.workers}; it must be 0 or more.")


@dataclass(frozen=True)
class Target:
    """Where answers go.

    Attributes:
        out: .jsonl, .csv or .parquet.
        resume: keep what is there, and go on.
        overwrite: replace what is there.
        sort_into: folder for copies of the images, by class.
        links: links in place of copies.
    """

    out: Path
    resume: bool = False
    overwrite: bool = False
    sort_into: Path | None = None
    links: bool = False

    @classmethod
    def of(
        cls, out: str | Path | None, *, resume: bool = False, overwrite: bool = False, sort_into: str | Path | None = None,
        links: bool = False,
    ) -> Target | None:  # fmt: skip
        """What a user asks for, checked before anything is loaded; None where nothing is to be written.

        Raises:
            UsageError: options that do not go together, another ending, or a file that is there and may not be replaced.
        """
        folder = None if sort_into is None else user_path(sort_into)
        if out is None and folder is None:
            if resume or overwrite or links:
                raise UsageError(f"{'--resume' if resume else '--overwrite' if overwrite else '--link'} needs --out or --sort-into.")
            return None
        if resume and overwrite:
            raise UsageError("--resume and --overwrite are both given: the one keeps what is there, the other replaces it.")
        if links and folder is None:
            raise UsageError("--link needs --sort-into.")
        path = user_path(out) if out is not None else user_path(f"{folder}/{ANSWERS}")
        file_format(path)
        if not resume:
            check_free(path)
            refuse_existing(path, overwrite=overwrite)
        return cls(path, resume, overwrite, folder, links)


@dataclass(frozen=True)
class Predicted:
    """What came of a prediction in bulk.

    Attributes:
        out: the file.
        images: in it; `unreadable` of them have an error in place of classes, and `before` were there before.
        not_copied: images that could not be copied.
    """

    out: Path
    images: int
    unreadable: int = 0
    before: int = 0
    not_copied: int = 0

    @property
    def answered(self) -> int:
        return self.images - self.unreadable


Problems = Callable[[str], None]


def answers(judge: BlockJudge, listed: Iterable[ListedImage], engine: Engine | None = None, *, start: int = 0) -> Iterator[list[Answer]]:
    """Answers of images by block, in order, wherever they are judged. `listed` begins at place `start`.

    Raises:
        UsageError: there is no image, or there are so few that they are judged together, and none can be read.
        MmrlError: scores are not finite, or Ray fails.
    """
    engine = engine or Engine()
    found: Generator[list[Answer], None, None]
    if engine.name == "ray":
        from mmrl.bulk.cluster import ray_blocks

        found = ray_blocks(judge, listed, engine.address, engine.gpu_fraction, start=start, workers=engine.workers)
    else:
        found = blocks(judge, listed, start=start, workers=engine.workers)
    with closing(found):
        yield from found if start else _some(found)


def _some(found: Iterator[list[Answer]]) -> Iterator[list[Answer]]:
    first = next(found, None)
    if first is None:
        raise UsageError("none of the files given is an image.")
    if all(each.error for each in first):
        second = next(found, None)
        if second is None:
            what = "" if len(first) == 1 else f"none of the {len(first)} images can be read; the first: "
            said = f"{what}{first[0].error}"
            raise UsageError(f"{said}{'' if said.endswith('.') else '.'} Give one that can be read.")
        first = [*first, *second]
    yield first
    yield from found


def write(
    judge: BlockJudge, wanted: WantedImages, target: Target, engine: Engine, *, problem: Problems, progress: bool = True
) -> Predicted:
    """Judge all images and write the answers; what is there already is kept, if the target says so.

    Args:
        problem: told what is wrong with an image, of the first few.
        progress: whether it is shown how far it is.

    Raises:
        UsageError: as `answers`, or the target is held by another process, or is of other options or images.
        MmrlError: as `answers`, or something cannot be written. What is written stays, and can be gone on with.
    """
    clf, names = judge.classifier, judge.judging.head.names
    copies = target.sort_into is not None
    if target.sort_into is not None:
        wanted.refuse_copies_inside(target.sort_into)
    decides = judge.asked.decides(clf, names) | {"sort_into": str(target.sort_into) if copies else None, "links": target.links}
    more = (*judge.asked.columns, *(("copy",) if copies else ()))
    with held(target.out):
        file = AnswerFile(target.out, min(judge.asked.top, len(names)), more, decides)
        sorter = Sorter(target.sort_into, names, links=target.links) if target.sort_into is not None else None
        bad, listed = _Bad(problem), iter(wanted)
        try:
            kept = file.go_on(listed, resume=target.resume, overwrite=target.overwrite)
            pairs = ((image.name, old.copy) for image, old in kept)
            lost = _copied(sorter, ((image, copy) for image, copy in pairs if copy is not None), bad)
            for _ in pairs:  # where nothing is sorted
                pass
            total = wanted.count() if progress else None
            with shown(total, file.count, show=progress) as bar:
                for block in _rest(judge, listed, engine, file.count):
                    placed = sorter.placed(block, file.count) if sorter else block
                    file.append(placed, on_disk=copies)  # so that no copy is there without the line that tells of it
                    lost += _copied(sorter, ((each.image, each.copy) for each in placed if each.copy is not None), bad)
                    for each in placed:
                        bad.tell(each.error)
                    bar.update(len(placed))
            file.finish()
        finally:
            file.close()
        bad.rest(target.out)
    return Predicted(target.out, file.count, file.errors, file.before, lost)


def _rest(judge: BlockJudge, listed: Iterator[ListedImage], engine: Engine, start: int) -> Iterator[list[Answer]]:
    """Answers from place `start` on; none, and no cluster, where all are there."""
    first = next(listed, None)
    if first is not None or not start:
        yield from answers(judge, chain([] if first is None else [first], listed), engine, start=start)


def _copied(sorter: Sorter | None, pairs: Iterable[tuple[str, str]], bad: _Bad) -> int:
    """Make copies; how many images could not be copied."""
    count = 0
    for each in sorter.copy(pairs) if sorter else ():
        count += 1
        bad.tell(each.problem)
    return count


class _Bad:
    """Tells of the first few bad images, and of how many more there are."""

    def __init__(self, problem: Problems) -> None:
        self._problem, self._count = problem, 0

    def tell(self, text: str) -> None:
        if text:
            self._count += 1
            if self._count <= NAMED:
                self._problem(text)

    def rest(self, out: Path) -> None:
        if self._count > NAMED:
            self._problem(f"{self._count - NAMED:,} more; those that cannot be read have an error in {out}.")


def predict_many(
    classifier: Classifier | str | Path, images: str | os.PathLike[str] | Iterable[str | os.PathLike[str]], out: str | Path, *,
    classes: str | Sequence[str] | None = None, top: int = TOP, reject: bool = False, recall: float | None = None,
    threshold: float | None = None, score: str = SCORE, coverage: float | None = None, template: Template | None = None,
    calibrated: Calibrated = True, allow_urls: bool = False, recursive: bool = False, resume: bool = False, overwrite: bool = False,
    sort_into: str | Path | None = None, links: bool = False, engine: str = "local", address: str | None = None,
    gpu_fraction: float = 0.0, workers: int | None = None, progress: bool = True,
) -> Predicted:  # fmt: skip
    """Classify any number of images into a file, in memory that does not grow with them. What `mmrl predict --out` does.

    An image that cannot be read costs no other its answer: its line has the error.

    Args:
        classifier: one, or the folder or hub name of one.
        images: names of files, folders, patterns or URLs, also from a generator; they are asked for as the work goes on. Where it shall be
            resumed they must come in the same order again.
        out: file to write: .jsonl, .csv or .parquet. Lines are there as soon as they are computed; a Parquet file is made in the end.
        classes, top, reject, recall, threshold, score, coverage, template, calibrated: as in `Classifier.judge`.
        allow_urls: whether http:// and https:// names are fetched, of up to 20 MB and 10 s each.
        recursive: a folder stands for the images in its subfolders, too.
        resume: keep the answers that are in `out`, and go on behind them; from the beginning where there are none.
        overwrite: replace `out`. Without it and `resume`, a file that is there is refused.
        sort_into: folder in which each image is copied into a folder of its class.
        links: symbolic links to the images in place of copies.
        engine: "local", or "ray": on a Ray cluster.
        address, gpu_fraction: of Ray: 'auto' or HOST:PORT, by default one is started here; GPUs of each worker.
        workers: threads that decode; default: one a core, at most 8.
        progress: show a bar on a terminal, a line a minute elsewhere.

    Returns:
        how many images there are and how many could not be read.

    Warns:
        BrokenImageWarning: images could not be read or copied.

    Raises:
        UsageError: bad options; `out` is there, held by another process, or of other options or images; no image can be read.
        MmrlError: something cannot be written, or Ray fails. What is written stays, and `resume=True` goes on with it.
    """
    target = Target.of(out, resume=resume, overwrite=overwrite, sort_into=sort_into, links=links)
    where = Engine(engine, workers, address, gpu_fraction)
    where.check()
    asked = AskedOfEach(classes, top, reject, recall, threshold, score, coverage, template, calibrated, allow_urls)
    clf = from_pretrained(classifier) if isinstance(classifier, (str, Path)) else classifier
    given = (images,) if isinstance(images, (str, os.PathLike)) else images
    assert target is not None  # as there is a file to write
    problems: list[str] = []
    wanted = WantedImages(given, recursive=recursive)
    found = write(BlockJudge(clf, asked), wanted, target, where, problem=problems.append, progress=progress)
    if problems:
        first = problems[0].rstrip(".")
        said = f"{found.unreadable:,} of {found.images:,} images could not be read and {found.not_copied:,} not copied"
        warnings.warn(f"{said}; the first: {first}.", BrokenImageWarning, stacklevel=2)
    return found
