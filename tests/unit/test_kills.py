"""SIGKILL before and after every file that is renamed into place, and before every one that is written out: what is there is the old or
the new, byte for byte, or refused; the same command again ends as if nothing had happened.

Trainings are killed in `test_resume`, grids in `test_grid`. `main` runs in a process of its own, which forks one for every attempt.
"""

from __future__ import annotations

import fcntl
import json
import os
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mmrl import api, engine
from mmrl.clip import Clip
from mmrl.data import read_folder
from mmrl.data.benchmark.entries import ENTRIES
from mmrl.data.benchmark.prepare import prepare_dataset
from mmrl.data.mini.sets import MINI_SETS, SPLITS
from mmrl.data.mini.store import Store
from mmrl.engine import record as records
from mmrl.engine.features import FeatureStore
from mmrl.engine.grid import ResultsFolder
from mmrl.errors import MmrlError
from mmrl.files import PARTIAL, sweep, write_text
from mmrl.reports import read_record, report
from mmrl.reports.plans import Plan
from mmrl.reports.results import Results
from tests import results_folder
from tests.trees import make_tree
from tests.unit.colours import NAMES, OPTIONS, base_draw, colours, fresh, smallest_clip
from tests.unit.fuzz_runs import Remembering
from tests.unit.grids import photos
from tests.unit.test_data_prepare import downloads
from tests.unit.test_import_authors import authors_state, trained
from tests.unit.test_resume import Moments, in_a_fork, of_a_process

YESTERDAY = 86_400.0
Content = dict[str, bytes]


class AllMoments(Moments):
    """Also before a file is flushed to the disk, when its temporary one may be of any length, and around renamed folders."""

    def __init__(self, fatal: int | None) -> None:
        super().__init__(fatal)
        fsync, rename = os.fsync, os.rename

        def flushed(descriptor: int) -> None:
            self.pass_by("before fsync")
            fsync(descriptor)

        def renamed(source: Any, target: Any) -> None:
            self.pass_by(f"before {Path(target).name}")
            rename(source, target)
            self.pass_by(f"after {Path(target).name}")

        os.fsync, os.rename = flushed, renamed


@dataclass
class Case:
    """One command.

    Attributes:
        before: makes what is in the folder beforehand.
        work: the command, into the folder.
        look: reads the folder as a user would, and says what it found in a word; raises what a user must not see.
        cuts: moments to kill at, by their number.
        same: of a file's content, what two undisturbed runs have in common.
        twice: files that the command writes once without and once with the scores.
    """

    before: Callable[[Path], object]
    work: Callable[[Path], object]
    look: Callable[[Path], str]
    cuts: Callable[[list[str]], list[int]] = lambda names: list(range(len(names)))
    same: Callable[[str, bytes], bytes] = lambda name, content: content
    twice: tuple[str, ...] = ()


def contents(case: Case, folder: Path) -> Content:
    """By path; without temporary files, locks and what was unpacked halfway."""
    found = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    kept = {name: path for name, path in found.items() if not name.endswith((PARTIAL, ".lock")) and ".prepare-" not in name}
    return {name: case.same(name, path.read_bytes()) for name, path in kept.items()}


def leftovers(folder: Path) -> list[Path]:
    return [path for path in folder.rglob(f".*{PARTIAL}") if path.is_file()]


def everywhere(case: Case, place: Path) -> dict[str, Any]:
    """Kill at every moment, look, and start again."""
    note = place / "moments.json"

    def attempt(folder: Path, fatal: int | None) -> bool:
        def work() -> None:
            moments = AllMoments(fatal)
            case.work(folder)
            note.write_text(json.dumps(moments.names))

        return in_a_fork(work)

    def begun(name: str) -> Path:
        folder = place / name / "out"  # of one name, which a report has in its title
        folder.mkdir(parents=True)
        case.before(folder)
        return folder

    old, whole = contents(case, begun("old")), begun("whole")
    assert attempt(whole, None)
    moments, new = json.loads(note.read_text()), contents(case, whole)
    told: dict[str, Any] = {"moments": moments, "mixed": [], "differ": [], "found": {}, "left": 0, "kept": []}
    told |= {"old": case.look(place / "old" / "out"), "new": case.look(whole)}
    for moment in case.cuts(moments):
        folder = begun(str(moment))
        assert not attempt(folder, moment), "it should have been killed"
        after = contents(case, folder)
        names = sorted({*old, *after} - {*case.twice})
        told["mixed"] += [f"{moment}: {name}" for name in names if after.get(name) not in (old.get(name), new.get(name))]
        told["found"].setdefault(case.look(folder), []).append(moments[moment])
        told["left"] += len(leftovers(folder))
        for path in leftovers(folder):
            os.utime(path, (path.stat().st_atime - YESTERDAY, path.stat().st_mtime - YESTERDAY))
        assert attempt(folder, None)
        told["differ"] += [moment] if contents(case, folder) != new else []
        for each in {path.parent for path in leftovers(folder)}:
            sweep(each)
        told["kept"] += map(str, leftovers(folder))
    return told


# ---- commands ----


def refused(read: Callable[[], str]) -> str:
    try:
        return read()
    except MmrlError as error:
        assert str(error)
        return "refused"


def adapters(clip: Clip) -> Case:
    """An adapter saved over another of the same shapes, whose tensors would do for it but for the hash."""

    def save(folder: Path, seed: float) -> None:
        method = fresh(clip, lam=seed)
        with torch.no_grad():
            method.rep_space.fill_(seed)
        engine.save_adapter(folder, method, classes=NAMES, template=f"{seed} {{}}.")

    def look(folder: Path) -> str:
        method, config = engine.load_adapter(folder, clip)
        seeds = {float(method.rep_space.detach()[0, 0]), method.options.lam, float(str(config.template).split()[0])}
        assert len(seeds) == 1, "mixed"
        return f"adapter {seeds.pop()}"

    return Case(lambda folder: save(folder, 1.0), lambda folder: save(folder, 2.0), lambda folder: refused(lambda: look(folder)))


def imports(clip: Clip, place: Path) -> Case:
    """An import of an authors' checkpoint into a new folder."""
    torch.save({"state_dict": authors_state(trained(clip, "mmrl"))}, place / "model.pth.tar-1")
    return Case(
        lambda folder: None,
        lambda folder: None if (folder / "adapter_config.json").exists() else engine.import_authors(
            place / "model.pth.tar-1", folder, classes=NAMES, clip=clip
        ),
        lambda folder: refused(lambda: engine.load_adapter(folder, clip)[1].method),
    )  # fmt: skip


def runs(clip: Clip) -> Case:
    """What a run writes after its training: draw, record, and the card with its scores."""

    def run(folder: Path) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            overrides = {**OPTIONS, "epochs": 2, "batch_size": 4}
            api.train(
                colours(), backbone=clip, draw=base_draw(), classes="base", overrides=overrides, out=folder, resume=True, progress=False
            )

    def look(folder: Path) -> str:
        record = read_record(folder) if (folder / "run.json").exists() else None
        assert record is None or record.trained.dataset == "colours"
        return refused(lambda: f"{engine.load_adapter(folder, clip)[1].method} {'with' if record else 'without'} record")

    def same(name: str, content: bytes) -> bytes:
        if name != "run.json":
            return b"" if name == "training_state.bin" else content  # which holds seconds, and is compared in test_resume
        return json.dumps(untimed(json.loads(content))).encode()

    def cuts(names: list[str]) -> list[int]:
        last = max(at for at, name in enumerate(names) if name == "after training_state.bin")
        return list(range(last, len(names)))

    return Case(lambda folder: None, run, look, cuts, same, twice=("README.md",))


def untimed(content: Any) -> Any:
    """Without what says when something began and how long it took."""
    if isinstance(content, dict):
        return {key: untimed(value) for key, value in content.items() if key not in ("started", "seconds")}
    return [untimed(value) for value in content] if isinstance(content, list) else content


def results_of(folder: Path, level: float) -> None:
    slots = results_folder.halves(datasets=("mini:digits",), seeds=(1,))
    results_folder.make_results(folder, slots)
    results_folder.fill(folder, slots, at=lambda slot: level)


def results() -> Case:
    """Runs, a plan and costs written over others."""

    def work(folder: Path) -> None:
        store = ResultsFolder(folder)
        for key, run in Results(folder).runs.items():
            tests = tuple(test.model_copy(update={"scores": results_folder.scores(0.9)}) for test in run.tests)
            store.write("runs", key, run.model_copy(update={"tests": tests}))
        more = results_folder.halves(datasets=("mini:objects",), seeds=(1,))
        store.add_plan(Plan(study="base-to-novel", suite="mini", slots=tuple(more)))
        store.add_costs(results_folder.cost_row("mmrl"))

    def look(folder: Path) -> str:
        found = Results(folder)
        levels = {test.scores.top1 for test in found.tests.values()}
        assert not found.damaged and len(found.tests) == 4 and len(found.runs) == 2
        assert len(found.plans["base-to-novel"].slots) in (4, 8)
        return str(sorted(levels))

    return Case(lambda folder: results_of(folder, 0.7), work, look)


def reports(place: Path) -> Case:
    """A report over one of older results."""
    for level in (0.6, 0.8):
        results_of(place / str(level) / "results", level)

    def look(folder: Path) -> str:
        page = (folder / "index.html").read_text(encoding="utf-8")
        assert page.rstrip().endswith("</html>")
        return "80.00" if "80.00" in page else "60.00"

    return Case(
        lambda folder: report.build_report(place / "0.6" / "results", folder),
        lambda folder: report.build_report(place / "0.8" / "results", folder),
        look,
    )


def pictures() -> Case:
    """The file of drawn pictures."""
    mini = replace(MINI_SETS["mini:digits"], sizes=dict.fromkeys(SPLITS, (1,) * 10))
    key = mini.key("val", 3, 0)
    right = mini.render("val", 3, 0)

    def look(folder: Path) -> str:
        there = Store(mini, folder).file("val").exists()
        assert not there or np.array_equal(np.load(Store(mini, folder).file("val"))["pictures"][3], right)
        return "there" if there else "not there"

    return Case(lambda folder: None, lambda folder: Store(mini, folder).pixels(key), look, same=lambda name, content: b"")


def features(clip: Clip, place: Path) -> Case:
    """Features and pixels of images, which another process reads."""
    dataset = read_folder(photos(place / "photos", per_class=2)).held_out(())
    method, expected = fresh(clip), engine.evaluate_dataset(fresh(clip), dataset, seen=True)

    def work(folder: Path) -> None:
        assert engine.evaluate_dataset(method, dataset, seen=True, store=FeatureStore(folder, 1)) == expected

    def look(folder: Path) -> str:
        for path in folder.glob("*.rows"):
            assert np.all(np.fromfile(path, np.uint8).reshape(8, -1)[:, :4].any(1))  # every row has its checksum
        return f"{len(list(folder.glob('*.rows')))} files"

    return Case(lambda folder: None, work, look)


def prepared(place: Path) -> Case:
    """A data set put together from its archives."""
    name = "oxford_flowers"
    given = downloads(name, make_tree(name, place, raw=True, per_class=2, classes=2), place / "downloads")

    def work(folder: Path) -> None:
        assert prepare_dataset(ENTRIES[name], folder, source=given).ready

    return Case(lambda folder: None, work, lambda folder: "looked")


def cases(place: Path) -> dict[str, Case]:
    clip = smallest_clip()
    return {
        "adapter": adapters(clip), "import": imports(clip, place), "run": runs(clip), "results": results(), "report": reports(place),
        "pictures": pictures(), "features": features(clip, place), "prepare": prepared(place),
    }  # fmt: skip


# ---- what came of it ----


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return of_a_process("tests.unit.test_kills", tmp_path_factory.mktemp("kills"))


NAMED = ("adapter", "import", "run", "results", "report", "pictures", "features", "prepare")


@pytest.mark.parametrize("name", NAMED)
def test_every_file_is_the_old_or_the_new(found: dict[str, Any], name: str) -> None:
    told = found[name]
    assert told["mixed"] == [] and len(told["moments"]) >= 3
    assert sum(map(len, told["found"].values())) >= 3


@pytest.mark.parametrize("name", NAMED)
def test_the_same_again_ends_as_undisturbed(found: dict[str, Any], name: str) -> None:
    assert found[name]["differ"] == []


@pytest.mark.parametrize("name", NAMED)
def test_what_killed_processes_left_is_swept(found: dict[str, Any], name: str) -> None:
    assert found[name]["kept"] == [] and found[name]["left"] >= (name != "run" and name != "prepare")


def test_an_adapter_is_the_old_one_the_new_one_or_refused(found: dict[str, Any]) -> None:
    told = found["adapter"]
    assert told["old"] == "adapter 1.0" and told["new"] == "adapter 2.0"
    assert set(told["found"]) == {"adapter 1.0", "adapter 2.0", "refused"}
    assert told["found"]["adapter 2.0"] == ["after adapter_config.json"]


def test_a_page_is_of_the_old_results_or_of_the_new(found: dict[str, Any]) -> None:
    told = found["report"]
    assert told["old"] == "60.00" and told["found"]["80.00"] == ["after index.html"] and len(told["found"]["60.00"]) > 20


def test_only_what_is_old_and_held_by_nobody_is_swept(tmp_path: Path) -> None:
    def left(name: str, age: float) -> Path:
        path = tmp_path / f".{name}{PARTIAL}"
        write_text(path, "half")
        os.utime(path, (path.stat().st_atime - age, path.stat().st_mtime - age))
        return path

    old, young, held = left("old", YESTERDAY), left("young", 1), left("held", YESTERDAY)
    other = left("x", YESTERDAY).rename(tmp_path / f"not-hidden{PARTIAL}")
    with held.open("rb+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        sweep(tmp_path)
        assert not old.exists() and young.exists() and held.exists() and other.exists()
    sweep(tmp_path)
    assert not held.exists() and young.exists()


def main(place: Path) -> None:
    torch.set_num_threads(1)
    records.source_state = lambda: (None, None)  # git takes longer than a training here
    report.Environment = Remembering  # type: ignore[misc, assignment]
    made = cases(place)
    for name, case in made.items():  # what every fork needs is imported before
        case.before(place / "first" / name)
        case.work(place / "first" / name)
    print(json.dumps({name: everywhere(case, place / name) for name, case in made.items()}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
