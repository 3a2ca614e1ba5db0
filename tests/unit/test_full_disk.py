"""Commands on a disk that is full, and fuller or less full: each ends with one line that names a path, what was there is whole, and the
same command completes once there is room.

The disk is a tmpfs of its own, in a name space that ends with the process: `main` runs there, and forks for every command.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from mmrl import engine
from mmrl.cli.main import app
from mmrl.clip import Clip, load_clip
from mmrl.console import boundary
from mmrl.data.benchmark import unpack
from mmrl.engine import record as records
from mmrl.errors import MmrlError
from mmrl.reports import report
from mmrl.reports.records import read_record
from mmrl.reports.results import Results
from tests import results_folder
from tests.trees import make_tree
from tests.unit.colours import NAMES, fresh, smallest_clip
from tests.unit.fuzz_runs import Remembering
from tests.unit.grids import SETTINGS, photos, scores
from tests.unit.test_data_prepare import downloads, files_below
from tests.unit.test_resume import of_a_process

PAGE = 4096  # bytes
PLENTY = 2**30  # of address space: a tmpfs takes memory for what is written
NEW_NAMESPACE = ("unshare", "--map-root-user", "--mount")


@dataclass
class Case:
    """One command.

    Attributes:
        rooms: bytes that are free, more each time, and not enough any time.
        before: what is on the disk beforehand.
        work: the command, which is to write into the folder.
        look: what a user finds there, as plain data; raises what a user must not see.
    """

    rooms: tuple[int, ...]
    before: Callable[[Path], object]
    work: Callable[[Path], object]
    look: Callable[[Path], Any]


def command(*words: object) -> None:
    sys.argv = ["mmrl", *map(str, words)]
    app(standalone_mode=False)


def train(folder: Path) -> None:
    words = ["--shots", 2, "--classes", "base", "--workers", 0, "--quiet", "--resume", *SETTINGS]
    command("train", "--data", PLACE / "photos", "--out", folder, *words)


def look_at_run(folder: Path) -> Any:
    try:
        adapter = engine.load_adapter(folder, load_clip("tiny", device="cpu"))[0].name
    except MmrlError:
        adapter = ""
    recorded = read_record(folder).metrics.model_dump() if (folder / "run.json").exists() else None
    return {"adapter": adapter, "metrics": recorded}


def saved(clip: Clip) -> Case:
    """Over another adapter: the old one, or the new one."""

    def save(folder: Path, lam: float) -> None:
        engine.save_adapter(folder, fresh(clip, lam=lam, rep_dim=2000), classes=NAMES, template="a {}.")

    save(PLACE / "sized", 1.0)
    tensors = -(-(PLACE / "sized" / "adapter_model.safetensors").stat().st_size // PAGE) * PAGE
    return Case(
        (0, tensors // 2, tensors, tensors + PAGE),  # for nothing, half of the tensors, all of them, and the card
        lambda folder: save(folder, 1.0),
        lambda folder: save(folder, 2.0),
        lambda folder: engine.load_adapter(folder, clip)[0].options.model_dump()["lam"],
    )


def benched() -> Case:
    def look(folder: Path) -> Any:
        if not (folder / "results.json").exists():
            return {}
        assert not Results(folder).damaged
        return scores(folder)

    rooms = (0, 20_000, 2_500_000, 4_000_000)  # for nothing, a plan, the pictures to test on, those to train on
    words = ["base-to-novel", "--datasets", "mini:digits", "--methods", "zero-shot,mmrl", "--seeds", 1, "--shots", 1]
    return Case(
        rooms,
        lambda folder: None,
        lambda folder: command("bench", *words, "--backbone", "tiny", "--workers", 0, "--out", folder, *SETTINGS),
        look,
    )


def reported() -> Case:
    """Over a report of older results."""
    slots = results_folder.halves(datasets=("mini:digits",), seeds=(1,))
    for level in (0.6, 0.8):
        results_folder.fill(results_folder.make_results(PLACE / f"{level}" / "results", slots), slots, at=lambda slot, level=level: level)
    return Case(
        (0, 6_000, 20_000),
        lambda folder: command("report", PLACE / "0.6" / "results", "--out", folder),
        lambda folder: command("report", PLACE / "0.8" / "results", "--out", folder),
        lambda folder: (folder / "index.html").read_text(encoding="utf-8"),
    )


def prepared(rooms: tuple[int, ...], *, reserve: int) -> Case:
    """A data set from its archives; with a negative `reserve` the disk fills while they are unpacked."""
    name = "eurosat"
    given = PLACE / "downloads"
    if not given.exists():
        downloads(name, make_tree(name, PLACE / "whole", per_class=12, classes=4), given)

    def work(folder: Path) -> None:
        unpack.RESERVE = reserve
        command("data", "prepare", name, "--root", folder, "--from", given)

    return Case(rooms, lambda folder: folder.mkdir(parents=True), work, lambda folder: sorted(files_below(folder)))


def predicted() -> Case:
    """Answers in a file, which --resume goes on with; a line that was cut short is no answer."""
    images = [PLACE / "photos" / "*" / "*"] * 4

    def look(folder: Path) -> Any:
        out = folder / "x.jsonl"
        lines = out.read_bytes().splitlines(keepends=True) if out.exists() else []
        return {str(at): json.loads(line) for at, line in enumerate(lines) if line.endswith(b"\n")}

    words = ["--classes", "cat,dog", "--resume", "--quiet"]
    return Case(
        (0, PAGE, 2 * PAGE),  # for nothing, what was asked, and the first answers
        lambda folder: None,
        lambda folder: command("predict", "zero-shot", *images, "--out", folder / "x.jsonl", *words),
        look,
    )


PLACE = Path()  # of what is not on the small disk


def cases() -> dict[str, Case]:
    photos(PLACE / "photos", per_class=5)
    return {
        "train": Case((0, 70_000, 600_000), lambda folder: None, train, look_at_run),
        "train again": Case((0, 6_000), train, train, look_at_run),  # which writes the record anew
        "save": saved(smallest_clip()),
        "bench": benched(),
        "report": reported(),
        "predict": predicted(),
        "prepare": prepared((0, 1_000_000), reserve=unpack.RESERVE),
        "prepare meanwhile": prepared((0, 20_000, 70_000), reserve=-PLENTY),
    }


# ---- the disk ----


def resized(disk: Path, room: int | None) -> None:
    """Leave `room` bytes of the disk free; None for plenty."""
    usage = os.statvfs(disk)
    used = (usage.f_blocks - usage.f_bfree) * usage.f_frsize
    size = PLENTY if room is None else max(used + room, PAGE)  # 0 would be no limit
    subprocess.run(["mount", "-o", f"remount,size={size}", str(disk)], check=True)


def said(case: Case, folder: Path, note: Path) -> tuple[int, str]:
    """Exit code and what was said on stderr, of the command in a fork."""
    child = os.fork()
    if child == 0:
        code = 70
        try:
            with note.open("w") as err, Path(os.devnull).open("w") as out, warnings.catch_warnings():
                warnings.simplefilter("ignore")
                sys.stderr, sys.stdout = err, out
                try:
                    boundary.guarded(lambda: case.work(folder))
                    code = 0
                except SystemExit as left:
                    code = int(left.code or 0)
                except BaseException as error:
                    err.write(f"Traceback: {error!r}")
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), note.read_text()


def filled(case: Case, disk: Path) -> dict[str, Any]:
    """The command on a full disk, on one with a little more room, and so on until there is plenty."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={PLENTY}", "tmpfs", str(disk)], check=True)
    note, folder, other, undisturbed = PLACE / "said.txt", disk / "out", disk / "other", PLACE / "undisturbed" / "out"
    shutil.copytree(PLACE / "photos", other)
    with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        case.before(undisturbed)
        case.work(undisturbed)  # in this process, which imports what every fork needs
        case.before(folder)
    kept, old = files_below(other), case.look(folder) if folder.exists() else None
    told: dict[str, Any] = {"codes": [], "lines": [], "moments": [], "left": []}
    found = []
    for room in (*case.rooms, None):
        resized(disk, room)
        code, text = said(case, folder, note)
        resized(disk, None)
        assert files_below(other) == kept
        found.append(case.look(folder) if folder.exists() else None)
        files = sorted(files_below(disk))
        told["left"] += [name for name in files if name.endswith(".partial") or ".prepare-" in name]
        told["codes"].append(code)
        if code:
            told["lines"].append([line for line in text.splitlines() if not line.startswith(("note: ", "warning: "))])
            told["moments"].append([told["lines"][-1], files])
    told["equal"] = found[-1] == case.look(undisturbed)
    told["wrong"] = [each for each in found[:-1] if each != old and not is_part(each, found[-1])]
    subprocess.run(["umount", str(disk)], check=True)
    shutil.rmtree(undisturbed.parent)
    return told


def is_part(found: Any, whole: Any) -> bool:
    """Whether what was found is the whole, or some of it and nothing else."""
    if isinstance(found, dict) and isinstance(whole, dict):
        return all(not value or value == whole.get(key) for key, value in found.items())
    return found == whole


# ---- what came of it ----


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    place = tmp_path_factory.mktemp("disk")
    (place / "small").mkdir()
    if shutil.which("unshare") is None:
        pytest.skip("needs Linux's name spaces")
    probe = [*NEW_NAMESPACE, "mount", "-t", "tmpfs", "-o", "size=4096", "tmpfs", str(place / "small")]
    tried = subprocess.run(probe, capture_output=True, text=True, check=False)
    if tried.returncode:
        pytest.skip(f"no disk may be mounted here: {tried.stderr.strip()}")
    return of_a_process("tests.unit.test_full_disk", place, within=NEW_NAMESPACE)


NAMED = ("train", "train again", "save", "bench", "report", "predict", "prepare", "prepare meanwhile")


@pytest.mark.parametrize("name", NAMED)
def test_a_full_disk_is_said_in_one_line_that_names_a_path(told: dict[str, Any], name: str) -> None:
    found = told[name]
    assert set(found["codes"][:-1]) == {1} and len(found["lines"]) >= 2
    for lines in found["lines"]:
        assert len(lines) == 1 and lines[0].startswith("error: "), lines
        assert "/small/" in lines[0] or "/downloads/" in lines[0], lines
        assert "space" in lines[0] or "`mmrl status" in lines[0], lines


@pytest.mark.parametrize("name", ["train", "train again", "save", "bench", "report", "predict"])
def test_it_fills_at_different_moments(told: dict[str, Any], name: str) -> None:
    moments = [json.dumps(moment) for moment in told[name]["moments"]]
    assert len(set(moments)) >= 2


@pytest.mark.parametrize("name", NAMED)
def test_with_room_the_same_command_completes_as_undisturbed(told: dict[str, Any], name: str) -> None:
    assert told[name]["codes"][-1] == 0 and told[name]["equal"]
    assert told[name]["left"] == []


@pytest.mark.parametrize("name", NAMED)
def test_what_is_there_is_the_old_or_a_part_of_the_new(told: dict[str, Any], name: str) -> None:
    assert told[name]["wrong"] == []


def main(place: Path) -> None:
    global PLACE
    PLACE = place
    torch.set_num_threads(1)
    records.source_state = lambda: (None, None)  # git takes longer than a training here
    report.Environment = Remembering  # type: ignore[misc, assignment]
    load_clip("tiny", device="cpu")
    print(json.dumps({name: filled(case, place / "small") for name, case in cases().items()}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
