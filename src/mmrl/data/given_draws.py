"""Draws made before, here or by the CoOp family's code, found in a folder by data set, shots and seed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from mmrl.data.benchmark.entries import ENTRIES
from mmrl.data.coop_draws import read_coop_draw, read_coop_lists
from mmrl.data.draws import Draw, draw_shots, labels_drawn
from mmrl.data.records import Dataset, Which, relabel
from mmrl.errors import UsageError
from mmrl.files import user_path

LISTS = "preprocessed.pkl"  # CoOp's lists of all images, in the order that its draws follow
FEW_SHOT = "split_fewshot"  # CoOp's folder of draws


def read_draw(path: Path | str, dataset: Dataset, classes: Which | str) -> Draw:
    """The few-shot draw in a file: `draw.json` of a run, or a pickle of the CoOp family (`.pkl`). One of all classes is cut to `classes`.

    Raises:
        UsageError: it is of another data set, of other classes, or has images that are no training (validation) images here.
        MmrlError: it is damaged.
    """
    path = user_path(path)
    if path.suffix == ".pkl":
        return read_coop_draw(path, dataset, classes=classes)
    return fitted(Draw.load(path), path, dataset, classes)


def fitted(draw: Draw, path: Path, dataset: Dataset, classes: Which | str) -> Draw:
    """`draw`, which `path` holds, for `classes` of `dataset`. Raises UsageError as `read_draw`."""
    whole, part, ids = labels_drawn(dataset, classes)
    if draw.dataset != whole.name or draw.classes not in ("all", part):
        raise UsageError(f"{path} is a draw of '{draw.dataset}', {draw.classes} classes; this run needs '{whole.name}', {part} classes.")
    if draw.classes != part:
        draw = replace(draw, classes=part, train=relabel(draw.train, ids), val=relabel(draw.val, ids))
    here = whole.restrict(part)
    for items, known, what in ((draw.train, here.train, "training"), (draw.val, here.val, "validation")):
        strange = sorted(set(items) - set(known))
        if strange:
            raise UsageError(f"{path} has '{strange[0].key}' and {len(strange) - 1} more that are no {what} images of '{whole.name}' here.")
    return draw


class GivenDraws:
    """The draws in a folder, for as many data sets as it has some of.

    It may hold `*draw*.json` files of runs (they say what they are of; those of a results folder are found, too), and for each data set a
    folder of its name, as `$DATA` has it, with CoOp's `split_fewshot/shot_16-seed_1.pkl` or the `preprocessed.pkl` that it draws from.

    Raises:
        UsageError: it is no folder.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = user_path(folder)
        if not self.folder.is_dir():
            raise UsageError(f"folder of draws {self.folder} does not exist, or is none. Give one with draw.json files or CoOp's pickles.")
        self._json: dict[Path, Draw] | None = None
        self._ordered: dict[str, Dataset] = {}

    def draw(self, dataset: Dataset, shots: int, seed: int, classes: Which | str) -> Draw | None:
        """The draw of `shots` images a class with `seed`; None where the folder has nothing of the data set.

        Raises:
            UsageError: the folder has draws of the data set, but not this one, or it does not fit the images here.
            MmrlError: it is damaged.
        """
        name, part = dataset.name, labels_drawn(dataset, classes)[1]
        written = {path: draw for path, draw in self._written().items() if draw.dataset == name}
        for path, draw in written.items():
            if (draw.shots, draw.seed) == (shots, seed) and draw.classes in ("all", part):
                return fitted(draw, path, dataset, classes)
        pickled = [path for place in self._places(name) for path in sorted(place.glob("shot_*-seed_*.pkl"))]
        for path in pickled:
            if path.name == f"shot_{shots}-seed_{seed}.pkl":
                return read_coop_draw(path, dataset, classes=classes)
        lists = next((place / LISTS for place in self._places(name) if (place / LISTS).is_file()), None)
        if lists is not None:
            if name not in self._ordered:
                self._ordered[name] = read_coop_lists(lists, dataset)
            return draw_shots(self._ordered[name], shots, seed, part, allow_fewer=True)
        if written or pickled:
            raise UsageError(
                f"{self.folder} has {len(written) + len(pickled)} draws of '{name}', but none of {shots} shots with seed {seed} of {part} "
                "classes. Add it, ask for one that is there, or take the draws of this data set away to have them drawn here."
            )
        return None

    def _written(self) -> dict[Path, Draw]:
        if self._json is None:
            found = (path for pattern in ("*draw*.json", "*/*draw*.json", "work/*/draw.json") for path in self.folder.glob(pattern))
            self._json = {path: Draw.load(path) for path in sorted(set(found))}
        return self._json

    def _places(self, name: str) -> Iterator[Path]:
        """Folders that may hold pickles of the data set: below this one, or this one where it has the data set's name."""
        names = {name, *({ENTRIES[name].folder} if name in ENTRIES else ())}
        homes = [self.folder / each for each in sorted(names)]
        if self.folder.name in names:
            homes.append(self.folder)
        if self.folder.name == FEW_SHOT and self.folder.parent.name in names:
            homes.append(self.folder.parent)
        for home in homes:
            yield from (home, home / FEW_SHOT)
