"""Processes that share a results folder: how many threads each has, and what becomes of a job whose process was killed."""

from __future__ import annotations

import json
import multiprocessing
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from mmrl.engine import Context
from mmrl.engine.grid import ResultsFolder, local
from tests.unit.grids import compute, contents, jobs_of, planned, scores


@pytest.mark.parametrize("left", [1, 2, 5])
def test_threads_follow_from_the_command(context: Context, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, left: int) -> None:
    """Not from how much is left to do: a resumed grid would round otherwise than an undisturbed one."""
    started: list[Any] = []

    class Process:
        def __init__(self, target: Any, args: Any, name: str) -> None:
            started.append(args)

        def start(self) -> None: ...

        def join(self) -> None: ...

    monkeypatch.setattr(local, "cores", lambda: 12)
    fake = type("Contexts", (), {"Process": Process})
    monkeypatch.setattr(multiprocessing, "get_context", lambda kind: fake)
    jobs = jobs_of(context, planned(root, seeds=(1, 2, 3, 4)))[:left]
    local.run_here(jobs, context, ResultsFolder(tmp_path), processes=4, say=print)
    assert len(started) == min(4, left) and {arguments[4] for arguments in started} == {3}


def killed_at(store: ResultsFolder, job: str, *times: datetime) -> None:
    """What processes leave that were killed while they had the job, one after the other."""
    (store.folder / "locks").mkdir(exist_ok=True)
    *before, last = [time.isoformat() for time in times]
    (store.folder / "locks" / f"{job}.lock").write_text(json.dumps({"pid": 1, "host": "gone", "since": last, "died": before}))


def test_a_job_of_a_killed_partner_is_tried_once_more(context: Context, root: Path, tmp_path: Path) -> None:
    """Two equal commands; one was killed while it computed a job. The other takes it over, and gives up what killed two."""
    jobs, later = jobs_of(context, planned(root)), datetime.now(timezone.utc) + timedelta(hours=1)
    once = ResultsFolder(tmp_path / "once")
    killed_at(once, jobs[1].key, later)
    outcome, _ = compute(jobs, context, once.folder)
    assert len(outcome.done) == 2 and not contents(once.folder, "failed") and len(scores(once.folder)) == 4
    twice = ResultsFolder(tmp_path / "twice")
    killed_at(twice, jobs[1].key, later, later)
    store = ResultsFolder(twice.folder)
    local.work_through(jobs, context, store, datetime.now(timezone.utc), print)
    (failure,) = contents(twice.folder, "failed").values()
    assert "its process was killed, twice" in failure["error"] and len(scores(twice.folder)) == 2


def test_deaths_before_this_command_do_not_count(context: Context, root: Path, tmp_path: Path) -> None:
    jobs, before = jobs_of(context, planned(root)), datetime.now(timezone.utc) - timedelta(hours=1)
    killed_at(ResultsFolder(tmp_path), jobs[1].key, before, before, before)
    outcome, _ = compute(jobs, context, tmp_path)
    assert len(outcome.done) == 2 and not contents(tmp_path, "failed")


@pytest.mark.parametrize("left", ["[" * 4000, '{"died": [], "since": "2026-01-01T00:00:00"}', '{"died": 3, "since": "now"}', '{"died'])
def test_what_no_claim_leaves_is_no_death(tmp_path: Path, left: str) -> None:
    store = ResultsFolder(tmp_path)
    (tmp_path / "locks").mkdir()
    (tmp_path / "locks" / "job.lock").write_text(left)
    held = store.claim("job")
    assert held is not None and not store.died["job"]
    store.release("job", held)


def test_a_claim_remembers_the_deaths_before_it(tmp_path: Path) -> None:
    first, second = datetime.now(timezone.utc) - timedelta(hours=2), datetime.now(timezone.utc) - timedelta(hours=1)
    store = ResultsFolder(tmp_path)
    killed_at(store, "job", first, second)
    held = store.claim("job")
    assert held is not None and store.died["job"] == (first, second)
    told = json.loads((tmp_path / "locks" / "job.lock").read_text())
    assert [datetime.fromisoformat(time).replace(microsecond=0) for time in told["died"]] == [
        time.replace(microsecond=0) for time in (first, second)
    ]
    store.release("job", held)
    assert store.claim("job") is not None and not store.died["job"]  # it was released: nobody died of it
