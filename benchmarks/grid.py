"""How much faster a grid is with N processes (`--jobs N`) than with one, each on a core of its own and with one thread.

    python -m benchmarks.grid --processes 1,2

The same runs (MMRL on `tiny`, one for each seed, so that none shares its images with another) are computed by `mmrl bench` into an empty
results folder, with each number of processes in turn; the command's start is in its time. The goal is 0.9 N. What else ran meanwhile is in
the table: with more than a few hundredths of a core the ratio says little. The processor's seconds of all processes tell how much work the
others add, whatever else runs. Scores must be equal to the last bit, or it exits with 1.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import common
from benchmarks.feature_cache import photos
from benchmarks.test_pipeline import whole_number

CLASSES, IMAGES = 4, 24
GOAL = 0.9  # of the number of processes
COLUMNS = ["processes", "on the wall, s", "ratio", "of N", "processor seconds in all", "cores that others took"]
COMMAND = "import os, sys; os.sched_setaffinity(0, range(int(sys.argv.pop(1)))); from mmrl.cli.main import run; run()"


class Took(NamedTuple):
    """Seconds on the wall; the processor's, of the command and all it started; and the cores that other programs kept busy meanwhile."""

    wall: float
    processor: float
    others: float


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", default="1,2", help="numbers of processes, 1 among them; no more than cores (default: %(default)s)")
    parser.add_argument("--seeds", type=whole_number(1), default=16, help="runs of the grid (default: %(default)s)")
    parser.add_argument("--epochs", type=whole_number(1), default=10, help="of each (default: %(default)s)")
    parser.add_argument("--repeats", type=whole_number(1), default=1, help="each number of processes in turn (default: %(default)s)")
    parser.add_argument("--out", type=Path, help="write the table there as Markdown, and all numbers beside it as .json")
    return parser


def busy() -> float | None:
    """Seconds that all cores have been busy since the machine started; None where the system does not say."""
    try:
        user, nice, system, _idle, _waiting, *rest = map(int, Path("/proc/stat").read_text().splitlines()[0].split()[1:8])
    except (OSError, ValueError):
        return None
    return (user + nice + system + sum(rest)) / os.sysconf("SC_CLK_TCK")


def compute(data: Path, out: Path, processes: int, options: argparse.Namespace) -> tuple[Took, dict[str, Any]]:
    """The grid in `processes` processes; and the scores of its tests, by key."""
    seeds = ",".join(str(seed) for seed in range(1, options.seeds + 1))
    words = ["bench", "base-to-novel", "--methods", "mmrl", "--datasets", str(data), "--backbone", "tiny", "--shots", "16"]
    words += ["--seeds", seeds, "--set", f"epochs={options.epochs}"]
    words += ["--workers", "0", "--device", "cpu", "--jobs", str(processes), "--out", str(out)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    used, ran, began = resource.getrusage(resource.RUSAGE_CHILDREN), busy(), time.perf_counter()
    call = [sys.executable, "-c", COMMAND, str(processes), *words]
    done = subprocess.run(call, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    wall, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise RuntimeError(done.stdout)
    processor = after.ru_utime + after.ru_stime - used.ru_utime - used.ru_stime
    ended = busy()
    others = max(0.0, (ended - ran - processor) / wall) if ran is not None and ended is not None else float("nan")
    records = [json.loads(path.read_text()) for path in out.glob("runs/*.json")]
    return Took(wall, processor, others), {test["key"]: test["scores"] for record in records for test in record["tests"]}


def main(arguments: list[str] | None = None) -> int:
    options = make_parser().parse_args(arguments)
    counts = sorted({1, *map(int, options.processes.split(","))})
    took: dict[int, list[Took]] = {count: [] for count in counts}
    found = []
    with tempfile.TemporaryDirectory() as place:
        data = Path(place) / "photos"
        photos(data, CLASSES * IMAGES, common.class_names(CLASSES))
        for repeat in range(options.repeats):
            for count in counts:
                each, scores = compute(data, Path(place) / f"{repeat}-{count}", count, options)
                took[count].append(each)
                found.append(scores)
    same = all(scores == found[0] for scores in found) and len(found[0]) == 2 * options.seeds
    alone, table = common.median([each.wall for each in took[1]]), []
    for count, runs in took.items():
        wall, processor, others = (common.median(values) for values in zip(*runs))
        ratio = alone / wall
        table.append([str(count), f"{wall:.1f}", f"{ratio:.2f}", f"{ratio / count:.2f}", f"{processor:.1f}", f"{others:.2f}"])
    about = common.about(argparse.Namespace(**vars(options), threads=1, layers=None, backbone="tiny"))
    title = (
        f"A grid of {options.seeds} runs of {options.epochs} epochs: tiny; {about['processor']}, {about['cores']} cores, "
        f"one thread a process, torch {about['torch']}; goal {GOAL} of N."
    )
    numbers = about | {"same": same, "took": {count: [each._asdict() for each in runs] for count, runs in took.items()}}
    common.report(title, common.markdown(COLUMNS, table), numbers, options.out)
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
