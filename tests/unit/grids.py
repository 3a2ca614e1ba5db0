"""A data set of 40 small pictures, trainings of a moment, and what a results folder made of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmrl.engine import Bench, Context, Job, bind
from mmrl.engine.grid import Outcome, ResultsFolder, run_here
from mmrl.protocols import Cell, base_to_novel
from tests.unit.colours import NAMES, read, smallest_clip

QUICK: dict[str, Any] = {"epochs": 2, "warmup_epochs": 0, "rep_tokens": 2, "rep_dim": 8, "first_layer": 2, "first_text_layer": 2}
SETTINGS = [word for key, value in QUICK.items() for word in ("--set", f"{key}={value}")]
COMMON = ["--backbone", "tiny", "--workers", "0", *SETTINGS]


def photos(root: Path, per_class: int = 10) -> Path:
    """A folder of images: base classes blue and green, novel classes grey and red."""
    for name in NAMES:
        (root / name).mkdir(parents=True)
        for number in range(per_class):
            read(f"{name}/{number}").save(root / name / f"{number}.png")
    return root


def smallest() -> Context:
    return Context(Bench("smallest"), smallest_clip())


def planned(
    root: Path, *, methods: Sequence[str] = ("zero-shot", "mmrl"), seeds: Sequence[int] = (1,), shots: int = 2, **more: Any
) -> list[Cell]:
    """Base-to-novel; `more` are options besides `QUICK`."""
    return base_to_novel(methods, (str(root),), seeds, shots=(shots,), overrides={**QUICK, **more})


def jobs_of(context: Context, cells: Sequence[Cell]) -> list[Job]:
    return bind(cells, context)[0]


def compute(jobs: Sequence[Job], context: Context, folder: Path) -> tuple[Outcome, list[str]]:
    """Here, in one process; with the lines that were said."""
    said: list[str] = []
    return run_here(jobs, context, ResultsFolder(folder), say=said.append), said


def contents(folder: Path, part: str) -> dict[str, Any]:
    """The JSON files of `part`, by key."""
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted((folder / part).glob("*.json"))}


def scored(folder: Path) -> dict[str, Any]:
    """Every test of every run, by key."""
    return {test["key"]: test for run in contents(folder, "runs").values() for test in run["tests"]}


def scores(folder: Path) -> dict[str, Any]:
    return {key: test["scores"] for key, test in scored(folder).items()}


def losses(folder: Path) -> dict[str, Any]:
    """Of every step of every training, by the run's key."""
    return {key: run["training"]["history"] for key, run in contents(folder, "runs").items() if run["training"]}


def times(folder: Path, *parts: str) -> dict[Path, int]:
    """When each file of `parts` was last written."""
    return {path: path.stat().st_mtime_ns for part in parts for path in (folder / part).rglob("*") if path.is_file()}
