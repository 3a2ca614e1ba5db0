"""Processor seconds from the shell to the end of `mmrl --help`, `import mmrl` and `mmrl predict` of one photo with an adapter on `tiny`.

python -m benchmarks.startup [--runs 9] [--method mmrlpp]

Each is beside an interpreter that does nothing and one that imports torch and open_clip, all in turn, so that they meet the same machine.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

COMMAND = "from mmrl.cli.main import run; run()"
NOTHING = "python -c pass"
LIBRARIES = "import torch, open_clip"


def seconds(code: str, words: Sequence[str] = ()) -> float:
    """User and system time of a fresh interpreter and of what it starts."""
    measure = (
        "import resource, subprocess, sys\n"
        "subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL)\n"
        "used = resource.getrusage(resource.RUSAGE_CHILDREN)\n"
        "print(used.ru_utime + used.ru_stime)"
    )
    done = subprocess.run(
        [sys.executable, "-c", measure, sys.executable, "-c", code, *words], check=True, stdout=subprocess.PIPE, text=True
    )
    return float(done.stdout)


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
    print(f"{'processor seconds':24} {'median':>8} {'fastest':>8}   / {NOTHING}   / {LIBRARIES}")
    for name in sides:
        ratios = [statistics.median(run[name] / run[other] for run in runs) for other in (NOTHING, LIBRARIES)]
        times = [run[name] for run in runs]
        print(f"{name:24} {statistics.median(times):8.3f} {min(times):8.3f}   {ratios[0]:16.1f}   {ratios[1]:24.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
