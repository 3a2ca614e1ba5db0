"""A training killed with SIGKILL at any moment and resumed ends in the same bytes as one left alone.

`scenarios` runs in a process of its own, which forks one process for every attempt. An attempt kills itself at a given moment: before
a batch, before or after a file is renamed into place.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mmrl import engine
from mmrl.clip import Clip
from tests.unit.colours import fresh, noise, smallest_clip, train

ROOT = Path(__file__).parents[2]
CONFIG = {"epochs": 3, "lr": 1e-2, "checkpoint_every": 2, "accumulate": 2}
FILES = ("adapter_model.safetensors", "adapter_config.json", "README.md")


class Moments:
    """Counts the moments at which a training may be killed, and kills it at one of them."""

    def __init__(self, fatal: int | None) -> None:
        self.fatal, self.names = fatal, list[str]()
        replace = os.replace

        def watched(source: Any, target: Any) -> None:
            self.pass_by(f"before {Path(target).name}")
            replace(source, target)
            self.pass_by(f"after {Path(target).name}")

        os.replace = watched

    def pass_by(self, name: str) -> None:
        if len(self.names) == self.fatal:
            os.kill(os.getpid(), signal.SIGKILL)
        self.names.append(name)


class Shuffled:
    """Other batches in every epoch, decided by its number alone."""

    def __init__(self, moments: Moments) -> None:
        self.moments = moments

    def __len__(self) -> int:
        return 5

    def epoch(self, number: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        for batch in noise(5, seed=number)[start:]:
            self.moments.pass_by(f"batch in epoch {number}")
            yield batch


def attempt(clip: Clip, name: str, out: Path, fatal: int | None) -> list[str]:
    moments = Moments(fatal)
    config = engine.FitConfig(**CONFIG)
    train(fresh(clip, name), Shuffled(moments), config, out, resume=True)
    return moments.names


def in_a_fork(work: Callable[[], object]) -> bool:
    """Whether `work` ended well in a forked process; False if it was killed."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    status = os.waitpid(child, 0)[1]
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
        return False
    assert os.waitstatus_to_exitcode(status) == 0, "the attempt failed; its traceback is above"
    return True


def content(folder: Path) -> list[bytes]:
    return [(folder / name).read_bytes() for name in FILES]


def scenarios(clip: Clip, name: str, folder: Path, stride: int) -> dict[str, Any]:
    """Kill at every `stride`-th moment and resume; also a training killed again and again, a few moments further each time."""
    folder.mkdir()
    listed = folder / "moments.json"
    assert in_a_fork(lambda: listed.write_text(json.dumps(attempt(clip, name, folder / "whole", None))))
    moments, whole = json.loads(listed.read_text()), content(folder / "whole")
    killed, differ, leftovers = [], [], []
    for moment in range(0, len(moments), stride):
        out = folder / str(moment)
        assert not in_a_fork(lambda out=out, moment=moment: attempt(clip, name, out, moment)), "it should have been killed"
        assert in_a_fork(lambda out=out: attempt(clip, name, out, None))
        killed.append(moments[moment])
        differ += [moment] if content(out) != whole else []
        leftovers += [path.name for path in out.iterdir() if path.name not in (*FILES, "training_state.bin")]
    attempts, out = 1, folder / "again"
    while not in_a_fork(lambda: attempt(clip, name, out, 9)):
        attempts += 1
    differ += ["again"] if content(out) != whole else []
    return {"moments": moments, "killed": killed, "differ": differ, "leftovers": leftovers, "attempts": attempts}


def of_a_process(module: str, *arguments: Path, within: Sequence[str] = ()) -> dict[str, Any]:
    """What `module`, run in a process of its own that may fork, prints last; skipped where nothing forks. `within`: words before it."""
    if not hasattr(os, "fork"):
        pytest.skip("needs fork")
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}", "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    command = [*within, sys.executable, "-m", module, *map(str, arguments)]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=280, check=False)
    assert ended.returncode == 0, ended.stderr
    found: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1])
    return found


def test_killed_and_resumed_equals_undisturbed(tmp_path: Path) -> None:
    found = of_a_process("tests.unit.test_resume", tmp_path)
    for name in ("mmrl", "mmrlpp"):
        assert found[name]["differ"] == [] and found[name]["leftovers"] == [], name
        assert found[name]["attempts"] > 2
    assert {moment.split()[0] for moment in found["mmrl"]["killed"]} == {"before", "after", "batch"}
    assert len(found["mmrl"]["killed"]) >= 10 and len(found["mmrlpp"]["killed"]) >= 4
    assert {"before adapter_model.safetensors", "after training_state.bin"} <= set(found["mmrl"]["moments"])


def main(place: Path) -> None:
    torch.set_num_threads(1)
    clip = smallest_clip()
    train(fresh(clip), noise(1), engine.FitConfig(**CONFIG), place / "first")  # imports what every fork needs
    print(json.dumps({name: scenarios(clip, name, place / name, stride) for name, stride in (("mmrl", 3), ("mmrlpp", 11))}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
