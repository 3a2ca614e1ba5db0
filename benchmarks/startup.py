"""Seconds from the shell to the end of `mmrl --help`, `import mmrl` and `mmrl predict` of one photo with an adapter on `tiny`.

python -m benchmarks.startup [--runs 9] [--method mmrlpp]

Each is beside an interpreter that does nothing and one that imports torch and open_clip, all in turn, so that they meet the same machine.
The seconds are the processor's, which other work on the machine changes little, and those on the wall.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from benchmarks.common import markdown

COMMAND = "from mmrl.cli.main import run; run()"
NOTHING = "python -c pass"
LIBRARIES = "import torch, open_clip"


class Seconds(NamedTuple):
    processor: float
    wall: float


def seconds(code: str, words: Sequence[str] = ()) -> Seconds:
    """User and system time of a fresh interpreter and of what it starts, and the time until it ended."""
    measure = (
        "import resource, subprocess, sys, time\n"
        "began = time.perf_counter()\n"
        "subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL)\n"
        "wall, used = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)\n"
        "print(used.ru_utime + used.ru_stime, wall)"
    )
    done = subprocess.run(
        [sys.executable, "-c", measure, sys.executable, "-c", code, *words], check=True, stdout=subprocess.PIPE, text=True
    )
    return Seconds(*map(float, done.stdout.split()))


def make(folder: Path, method: str) -> tuple[Path, Path]:
    """An adapter of an untrained method, and a photo."""
    from PIL import Image

    from mmrl.clip import load_clip
    from mmrl.engine import save_adapter
    from mmrl.methods import Task, build

    task = Task(("badger", "red panda"), "a photo of a {}.", 32)
    adapter = save_adapter(folder / "adapter", build(method, load_clip("tiny"), task=task), classes=task.names, template=task.template)
    Image.linear_gradient("L").convert("RGB").resize((640, 480)).save(folder / "photo.jpg")
    return adapter, folder / "photo.jpg"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=9)
    parser.add_argument("--method", default="mmrlpp", help="of the adapter that predicts (default: %(default)s)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        adapter, photo = make(Path(folder), options.method)
        sides: dict[str, tuple[str, list[str]]] = {
            NOTHING: ("pass", []),
            LIBRARIES: (LIBRARIES, []),
            "import mmrl": ("import mmrl", []),
            "mmrl --help": (COMMAND, ["--help"]),
            "mmrl predict": (COMMAND, ["predict", str(adapter), str(photo)]),
        }
        for side in sides.values():
            seconds(*side)  # the first run compiles the byte code
        runs = [{name: seconds(*side) for name, side in sides.items()} for _ in range(options.runs)]
    columns = ["", "processor, s", "fastest", "on the wall, s", "fastest", f"of `{NOTHING}`", f"of `{LIBRARIES}`"]
    rows = []
    for name in sides:
        ratios = [statistics.median(run[name].processor / run[other].processor for run in runs) for other in (NOTHING, LIBRARIES)]
        times = [found for clock in zip(*(run[name] for run in runs)) for found in (statistics.median(clock), min(clock))]
        rows.append([name, *(f"{each:.2f}" for each in times), f"{ratios[0]:.1f}", f"{ratios[1]:.2f}"])
    print(markdown(columns, rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
