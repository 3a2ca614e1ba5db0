"""One visitor's photos by class, in a folder of their own."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from secrets import token_hex

from PIL import Image

from mmrl.app.uploads import Photo, UploadLimits, checked_name, kept, opened, slug, title_of, unpacked
from mmrl.data import Dataset, Item, usual_workers
from mmrl.data.folder import dataset_of
from mmrl.data.parallel import ordered
from mmrl.data.splits import undivided
from mmrl.engine.calibrate import LEAST as LEAST_TO_CALIBRATE
from mmrl.errors import UsageError
from mmrl.names import name_key

NAME = "photos"  # of the data set, in the record
LEAST = 2  # photos a class: one to train on, and one to test on
NAMED = 5  # photos that are named when some are left out
EXAMPLE_SET, EXAMPLES = "mini:textures", 20  # pictures a class
EXAMPLE_CLASSES = ("concentric rings", "spiral", "rays", "crosshatch", "grid lines", "checkerboard")


class Album:
    """Photos by class.

    Args:
        folder: of one visitor; it is made when the first photo comes.
    """

    def __init__(self, folder: Path, limits: UploadLimits) -> None:
        self.folder, self.limits = folder, limits
        self._classes: dict[str, list[Photo]] = {}
        self._digests: set[str] = set()
        self._number = 0

    @property
    def photos(self) -> Path:
        """Where they lie."""
        return self.folder / "photos"

    @property
    def classes(self) -> dict[str, list[Photo]]:
        """Photos by class, in the order in which the classes came."""
        return {name: list(photos) for name, photos in self._classes.items()}

    def add(self, written: str, files: Sequence[Path]) -> list[str]:
        """Put photos into the class called `written`. Returns sentences on what became of them.

        Raises:
            UsageError: a bad name, no photo that can be read, or more than the limits.
        """
        if not files:
            raise UsageError("There are no photos yet: drop some for this class first.")
        return self._add({checked_name(written, self.limits): files})

    def add_zip(self, archive: Path) -> list[str]:
        """The same for every folder of a zip file. Raises as `add`, and as `unpacked`."""
        with self._scratch() as scratch:
            found = unpacked(archive, scratch, self.limits)
            groups: dict[str, list[Path]] = {}
            for name, files in found.groups.items():
                groups.setdefault(checked_name(name, self.limits), []).extend(files)
            return self._add(groups) + found.notes

    def add_examples(self) -> list[str]:
        """Some pictures of the mini benchmark, to look around with."""
        from mmrl.data.mini.sets import MINI_SETS

        mini = MINI_SETS[EXAMPLE_SET]
        with self._scratch() as scratch:
            groups: dict[str, list[Path]] = {}
            for name in EXAMPLE_CLASSES:
                label = mini.classes.index(name)
                groups[name] = [scratch / f"{slug(name)}-{index}.png" for index in range(EXAMPLES)]
                for index, path in enumerate(groups[name]):
                    Image.fromarray(mini.render("train", label, index)).save(path)
            return self._add(groups)

    def remove(self, name: str) -> None:
        """Take a class and its photos away. Raises UsageError where there is none."""
        if name not in self._classes:
            raise UsageError(f"There is no class '{name}'.")
        photos = self._classes.pop(name)
        self._digests.difference_update(photo.digest for photo in photos)
        self._unlink(photos)

    def clear(self) -> None:
        """Take everything away."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self._classes, self._digests = {}, set()

    def made(self, place: Path) -> Path:
        """The folder `place` below the visitor's, made private where it is not there."""
        for each in (self.folder, place):
            each.mkdir(mode=0o700, exist_ok=True)
        return place

    def dataset(self) -> Dataset:
        """The photos as a data set without a test part.

        Raises:
            UsageError: there are fewer than two classes, or a class has fewer than two photos.
        """
        if len(self._classes) < 2:
            has = f"There is only the class '{next(iter(self._classes))}'" if self._classes else "There are no photos yet"
            raise UsageError(f"{has}. A classifier chooses among classes: give at least two, with {LEAST} photos each or more.")
        few = [name for name, photos in self._classes.items() if len(photos) < LEAST]
        if few:
            raise UsageError(f"The class '{few[0]}' has one photo. Each needs {LEAST} or more: some to train on, some to test on.")
        keys = {name: [photo.key for photo in photos] for name, photos in self._classes.items()}
        return dataset_of(undivided(keys), NAME, self.photos)

    @contextmanager
    def _scratch(self) -> Iterator[Path]:
        folder = self.made(self.folder / f"scratch-{token_hex(8)}")
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _add(self, groups: Mapping[str, Sequence[Path]]) -> list[str]:
        """Take the photos that can be read into their classes, which are one where their names are."""
        limits, known = self.limits, {name_key(name): name for name in self._classes}
        there = sum(map(len, self._classes.values()))
        count = sum(map(len, groups.values()))
        if there + count > limits.photos:
            raise UsageError(f"That would be {there + count} photos; at most {limits.photos} are allowed.")
        notes, files, bad = list[str](), dict[str, list[Path]](), list[str]()
        for written, own in groups.items():
            name = known.setdefault(name_key(written), written)
            if name != written:
                notes.append(f"'{written}' and '{name}' are one name, so their photos are together.")
            files.setdefault(name, []).extend(own)
        if len(known) > limits.classes:
            raise UsageError(f"That would be {len(known)} classes; at most {limits.classes} are allowed.")
        photos = self._read(files, bad)
        taken = sum(map(len, photos.values()))
        if not taken:
            raise UsageError(f"None of the {count} photos was added. {_some(bad)}" if count > 1 else _some(bad))
        for name, new in photos.items():
            self._classes.setdefault(name, []).extend(new)
            self._digests.update(photo.digest for photo in new)
        notes.insert(0, f"{taken} photo{'s' if taken > 1 else ''} added.")
        return notes + ([f"{len(bad)} left out: {_some(bad)}"] if bad else [])

    def _read(self, files: Mapping[str, Sequence[Path]], bad: list[str]) -> dict[str, list[Photo]]:
        """The photos of each class among its `files` that are not there yet; what is wrong with the others is added to `bad`.

        On an error, none of them is left on the disk.
        """
        for place in (self.photos, *(self.photos / slug(name) for name in files)):
            self.made(place)
        tasks = [(name, file) for name, own in files.items() for file in own]
        first, self._number = self._number, self._number + len(tasks)
        written = list[Photo]()

        def read(each: tuple[int, tuple[str, Path]]) -> Photo | str:
            number, (name, file) = each
            title = title_of(file.name)
            try:
                photo = kept(opened(file, title, self.limits), self.photos, f"{slug(name)}/{number:04}-{slug(file.stem)}", title)
            except UsageError as error:
                return str(error)
            written.append(photo)
            return photo

        workers = usual_workers()
        try:
            found = ordered(read, enumerate(tasks, first), workers, ahead=2 * workers)
            return self._chosen(zip((name for name, _ in tasks), found), bad)
        except BaseException:
            self._unlink(written)
            raise

    def _chosen(self, found: Iterable[tuple[str, Photo | str]], bad: list[str]) -> dict[str, list[Photo]]:
        """Those of the photos, each with its class, that are new and for which there is room."""
        photos, digests = dict[str, list[Photo]](), set(self._digests)
        room = self.limits.kept_bytes - sum(photo.size for own in self._classes.values() for photo in own)
        for name, photo in found:
            if isinstance(photo, str):
                bad.append(photo)
            elif photo.digest in digests or photo.size > room:
                bad.append(f"'{photo.title}' is there already." if photo.digest in digests else f"There is no room for '{photo.title}'.")
                self._unlink([photo])
            else:
                room -= photo.size
                digests.add(photo.digest)
                photos.setdefault(name, []).append(photo)
        return photos

    def _unlink(self, photos: Iterable[Photo]) -> None:
        for photo in photos:
            (self.photos / photo.key).unlink(missing_ok=True)


def parted(dataset: Dataset, share: float) -> Dataset:
    """`dataset` with a share of each class's photos as test images; half of these validate and calibrate, where they are enough for it."""
    whole, groups = dataset.divided(share), dict[int, list[Item]]()
    for item in whole.test:
        groups.setdefault(item.label, []).append(item)
    val = [item for items in groups.values() for item in items[: len(items) // 2]]
    if len(val) < LEAST_TO_CALIBRATE:
        return whole
    return replace(whole, val=val, test=[item for item in whole.test if item not in val])


def _some(sentences: Sequence[str]) -> str:
    more = len(sentences) - NAMED
    return " ".join(sentences[:NAMED]) + (f" And {more} more." if more > 0 else "")
