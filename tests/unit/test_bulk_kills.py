"""SIGKILL of predictions in bulk, at every moment at which something is written and at random ones: gone on with, file and copies are those
of an undisturbed run, byte for byte, and nothing that was answered is computed again.

`main` runs in a process of its own, which forks one for every attempt.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from mmrl.bulk import output, sorting, stream
from mmrl.bulk.listed import WantedImages
from mmrl.bulk.predict import Engine, Target, write
from tests.unit import bulk_sets
from tests.unit.test_resume import Moments, in_a_fork, of_a_process

ENDINGS = ("jsonl", "csv", "parquet")
RANDOM = 4  # kills


class Writes(Moments):
    """Moments before, amid and after every piece of a file, every copy and every file that is renamed."""

    def __init__(self, fatal: int | None) -> None:
        super().__init__(fatal)
        written, named = output._write, sorting._named

        def in_two(file: Any, content: bytes) -> None:
            self.pass_by("before a write")
            written(file, content[: len(content) // 2])
            self.pass_by("amid a write")
            written(file, content[len(content) // 2 :])
            self.pass_by("after a write")

        def copied(temporary: str, goal: str) -> bool:
            self.pass_by("before a copy")
            found = named(temporary, goal)
            self.pass_by("after a copy")
            return found

        output._write, sorting._named = in_two, copied  # type: ignore[assignment]


def attempt(judge: stream.BlockJudge, photos: Path, place: Path, ending: str, fatal: int | None, note: Path | None = None) -> None:
    """Begin, or go on; what was there before and what was decoded is noted."""
    place.mkdir(parents=True, exist_ok=True)
    os.chdir(place)
    moments, decoded, load = Writes(fatal), list[str](), stream.load

    def counted(listed: Any, *more: Any, **options: Any) -> Any:
        decoded.append(listed.name)
        return load(listed, *more, **options)

    stream.load = counted
    target = Target(Path(f"x.{ending}"), resume=True, sort_into=Path("sorted"))
    found = write(judge, WantedImages((photos,), recursive=True), target, Engine(workers=1), problem=lambda text: None, progress=False)
    if note is not None:
        note.write_text(json.dumps({"moments": moments.names, "before": found.before, "decoded": len(decoded)}))


def files(place: Path) -> dict[str, bytes]:
    return {str(path.relative_to(place)): path.read_bytes() for path in sorted(place.rglob("*")) if path.is_file()}


def whole_lines(place: Path) -> int:
    return sum(path.read_bytes().count(b"\n") for path in place.glob("x.*jsonl"))


def scenario(judge: stream.BlockJudge, photos: Path, place: Path, ending: str, stride: int) -> dict[str, Any]:
    note = place.with_suffix(".json")
    assert in_a_fork(lambda: attempt(judge, photos, place / "whole", ending, None, note))
    expected, moments = files(place / "whole"), json.loads(note.read_text())["moments"]
    told: dict[str, Any] = {"differ": [], "again": [], "killed": [], "moments": sorted(set(moments)), "images": len(expected) - 2}

    def end(name: str) -> None:
        there = whole_lines(place / name)
        assert in_a_fork(lambda: attempt(judge, photos, place / name, ending, None, note))
        for left in (place / name / "sorted").rglob("*.partial"):  # young: swept by a later run
            left.unlink()
        if files(place / name) != expected:
            told["differ"].append(name)
        ended = json.loads(note.read_text())
        if ending != "csv" and (ended["before"] < there or ended["decoded"] > told["images"] + 3 - there):
            told["again"].append([name, there, ended["before"], ended["decoded"]])

    for fatal in range(0, len(moments), stride):
        assert not in_a_fork(lambda fatal=fatal: attempt(judge, photos, place / f"{fatal}", ending, fatal))  # type: ignore[misc]
        told["killed"].append(moments[fatal])
        end(f"{fatal}")
    for _ in range(100):  # again and again
        if in_a_fork(lambda: attempt(judge, photos, place / "often", ending, 9)):
            break
    end("often")
    return told


def at_random(judge: stream.BlockJudge, photos: Path, place: Path) -> dict[str, Any]:
    """Kills by the clock, of a run that goes on each time."""
    draw, killed = random.Random(0), 0
    began = time.monotonic()
    assert in_a_fork(lambda: attempt(judge, photos, place / "whole", "jsonl", None))
    took = time.monotonic() - began
    for _ in range(RANDOM):
        child = os.fork()
        if child == 0:
            try:
                attempt(judge, photos, place / "killed", "jsonl", None)
            finally:
                os._exit(0)
        time.sleep(draw.uniform(0, took / 2))
        os.kill(child, signal.SIGKILL)
        killed += os.WIFSIGNALED(os.waitpid(child, 0)[1])
    assert in_a_fork(lambda: attempt(judge, photos, place / "killed", "jsonl", None))
    found, expected = files(place / "killed"), files(place / "whole")
    return {"killed": killed, "same": {name: each for name, each in found.items() if ".partial" not in name} == expected}


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return of_a_process("tests.unit.test_bulk_kills", tmp_path_factory.mktemp("kills"))


@pytest.mark.parametrize("ending", ENDINGS)
def test_killed_and_gone_on_with_equals_undisturbed(found: dict[str, Any], ending: str) -> None:
    if ending == "parquet":
        pytest.importorskip("pyarrow")
    told = found[ending]
    assert told["differ"] == [] and told["images"] == 15
    assert {"before a write", "amid a write", "after a write", "before a copy", "after a copy"} <= set(told["moments"])
    every = [moment for one in ENDINGS if one in found for moment in found[one]["killed"]]
    assert {moment.split()[0] for moment in every} == {"before", "amid", "after"} and len(told["killed"]) >= 4


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_nothing_that_was_answered_is_computed_again(found: dict[str, Any], ending: str) -> None:
    if ending == "parquet":
        pytest.importorskip("pyarrow")
    assert found[ending]["again"] == []


def test_killed_at_random_moments(found: dict[str, Any]) -> None:
    assert found["random"]["same"]


def main(place: Path) -> None:
    torch.set_num_threads(1)
    stream.BLOCK = 4
    judge, photos = bulk_sets.judge(top=2), bulk_sets.photos(place / "photos", 16)
    told: dict[str, Any] = {}
    for ending, stride in zip(ENDINGS, (7, 11, 11)):
        if ending == "parquet":
            try:
                import pyarrow.parquet  # noqa: F401
            except ImportError:
                continue
        told[ending] = scenario(judge, photos, place / ending, ending, stride)
    told["random"] = at_random(judge, photos, place / "random")
    print(json.dumps(told))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
