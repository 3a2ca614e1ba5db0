"""Thousands of damaged files, the same in every run: every reader gives something valid, or says in a line what is wrong.

`python -m tests.unit.test_fuzz NAME SEED FIRST COUNT` does the same for other seeds and numbers, and goes on after a failure.
"""

from __future__ import annotations

import re
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from mmrl.engine.memory import forget_peak, peak_resident, resident
from tests.unit import fuzz_data, fuzz_runs
from tests.unit.fuzz_data import Once
from tests.unit.fuzzing import SEED, fuzz

READERS: dict[str, tuple[Callable[[Path], Once], int]] = {
    "csv": (fuzz_data.listed(".csv"), 300),
    "jsonl": (fuzz_data.listed(".jsonl"), 300),
    "split": (fuzz_data.listed(".json"), 300),
    "folders": (fuzz_data.odd_folders, 250),
    "draws": (fuzz_data.drawn, 300),
    "coop": (fuzz_data.coop_pickles, 400),
    "raw": (partial(fuzz_data.raw_layouts, fuzz_data.RAW), 300),
    "matlab": (partial(fuzz_data.raw_layouts, fuzz_data.MATLAB), 12),
    "listings": (fuzz_data.listings, 150),
    "pictures": (fuzz_data.pictures, 100),
    "images": (fuzz_data.images, 500),
    "prompts": (fuzz_data.prompts, 250),
    "checkpoints": (fuzz_runs.checkpoints, 300),
    "adapters": (fuzz_runs.adapters, 300),
    "states": (fuzz_runs.states, 300),
    "weights": (fuzz_runs.weights, 300),
    "records": (fuzz_runs.records, 300),
    "results": (fuzz_runs.results, 200),
    "options": (fuzz_runs.options, 300),
}
ALWAYS = ("listings", "pictures")  # files that are made anew, so that nothing in them is refused
MOST = 2**29  # bytes that all inputs of a reader together may take


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", READERS)
def test_damaged_files_give_something_valid_or_one_line(name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    make, count = READERS[name]
    once = make(tmp_path)
    forget_peak()
    before = resident()
    refused = fuzz(name, count, once)
    assert peak_resident() - before < MOST
    assert not (tmp_path / "sprung").exists(), "something in a file was executed"
    assert refused == 0 if name in ALWAYS else 0 < refused < count, "the inputs are all whole, or all beyond repair"
    capfd.readouterr()  # what libraries of pictures print of broken ones


def main(name: str, seed: int, first: int, count: int) -> None:
    at = first
    with tempfile.TemporaryDirectory() as place:
        once = READERS[name][0](Path(place))
        while at < first + count:
            try:
                print(f"{fuzz(name, first + count - at, once, seed=seed, first=at)} refused")
                return
            except AssertionError as error:
                print(str(error)[:300].encode("ascii", "backslashreplace").decode())
                at = int(re.search(r"input (\d+)", str(error))[1]) + 1  # type: ignore[index]


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "csv", *map(int, sys.argv[2:] or (SEED, 0, 1000)))
