"""Rows of a grid that train in one pass over their images: each gives what it gives alone, to the last bit, whatever becomes of the others.

`main` runs in a process of its own, which forks one process for every attempt, as in `test_grid`.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from collections.abc import Sequence
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
import torch

from mmrl.data.preprocess import Preprocess
from mmrl.engine import Bench, Context, Job, record
from mmrl.engine.context import TOGETHER
from mmrl.engine.grid import ResultsFolder, local
from mmrl.engine.shared import Shared
from mmrl.protocols import base_to_novel
from mmrl.reports.status import held_locks, holders
from tests.unit.colours import smallest_clip
from tests.unit.grids import QUICK, compute, contents, jobs_of, scored
from tests.unit.test_grid_together import killed_at
from tests.unit.test_kills import untimed
from tests.unit.test_resume import Moments, in_a_fork, of_a_process

LOOP = importlib.import_module("mmrl.engine.loop")
FIT: dict[str, Any] = {
    "epochs": 2, "warmup_epochs": 0, "batch_size": 2, "drop_last": True, "crop_scale": (0.5, 1.0), "lr": 0.01, "checkpoint_every": 3
}  # fmt: skip
OWN = {name: {key: value for key, value in QUICK.items() if key not in FIT} for name in ("mmrl", "mmrlpp")}
OWN |= {"plot": {"n_ctx": 2}, "prograd": {"n_ctx": 4}, "proda": {"n_ctx": 2, "n_prompts": 4, "prompts_per_step": 2}}
RANDOM = ("mmrl", "clip-lora", "metaprompt")  # the last two draw random numbers in every step
MIXED = (
    *RANDOM, "mmrlpp", "coop", "cocoop", "clip-adapter", "maple", "proda", "plot", "kgcoop", "prograd", "promptsrc", "rpo", "tcp", "provp",
    "tip-adapter-f",
)  # fmt: skip


def context_of(together: int) -> Context:
    return Context(Bench("smallest", together=together), smallest_clip())


def rows(context: Context, root: Path, *each: tuple[str, dict[str, Any]], seeds: Sequence[int] = (1,)) -> list[Job]:
    """A job of each method with options besides `FIT`, and each seed."""
    cells = [
        cell
        for name, more in each
        for cell in base_to_novel((name,), (str(root),), seeds, shots=(4,), overrides={**FIT, **OWN.get(name, {}), **more})
    ]
    return jobs_of(context, cells)


def of_methods(context: Context, root: Path, names: Sequence[str] = RANDOM, **more: Any) -> list[Job]:
    return rows(context, root, *((name, more) for name in names))


def results(folder: Path) -> dict[str, Any]:
    """All that runs gave, but for times: records, which have histories and scores, and the trained tensors."""
    adapters = {path.parent.name: path.read_bytes() for path in (folder / "work").glob("*/adapter_model.safetensors")}
    return {key: (untimed(run), adapters[key]) for key, run in contents(folder, "runs").items()}


@pytest.fixture(scope="module")
def alone(root: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What each of the methods gives by itself."""
    context, folder = context_of(1), tmp_path_factory.mktemp("alone")
    outcome, _ = compute(of_methods(context, root, MIXED), context, folder)
    assert len(outcome.done) == len(MIXED)
    return results(folder)


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Seeds of the training images that are decoded and augmented."""
    seeds, varied = list[int](), Preprocess.varied

    def counted(self: Preprocess, image: Any, seed: int) -> Any:
        seeds.append(seed)
        return varied(self, image, seed)

    monkeypatch.setattr(Preprocess, "varied", counted)
    return seeds


# ---- the same numbers ----


def test_rows_of_all_kinds_give_what_they_give_alone(root: Path, alone: dict[str, Any], made: list[int], tmp_path: Path) -> None:
    context = context_of(len(MIXED))
    before = torch.get_rng_state()
    outcome, _ = compute(of_methods(context, root, MIXED), context, tmp_path)
    assert len(outcome.done) == len(MIXED) and results(tmp_path) == alone
    assert len(made) == 2 * 8 + 10 * 8, "every image of both epochs is made once, and ten views for Tip-Adapter-F's cache"
    assert torch.equal(torch.get_rng_state(), before)


def test_fewer_at_a_time_take_as_many_passes(root: Path, alone: dict[str, Any], made: list[int], tmp_path: Path) -> None:
    context = context_of(2)
    compute(of_methods(context, root), context, tmp_path)
    assert results(tmp_path).items() <= alone.items() and len(made) == 2 * len(set(made)) == 2 * 2 * 8


def test_the_frozen_layers_run_once(root: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def passes(together: int) -> int:
        context, count = context_of(together), 0
        jobs, embed = of_methods(context, root, ("mmrl", "maple", "coop")), context.clip.vision.embed

        def counted(pixels: Any) -> Any:
            nonlocal count
            count += len(pixels) == FIT["batch_size"]
            return embed(pixels)

        monkeypatch.setattr(context.clip.vision, "embed", counted)
        compute(jobs, context, tmp_path / str(together))
        return count

    assert passes(3) == 8 + 1 and passes(1) == 3 * 8  # in the first batch it is not known yet that its embedded patches will be asked for


def test_rows_of_other_lengths_share_as_long_as_they_run(root: Path, made: list[int], tmp_path: Path) -> None:
    lengths = ({"epochs": 1}, {"epochs": 3}, {"iterations": 5}, {"epochs": 2, "lr": 0.1})
    found = {}
    for together in (1, 8):
        context = context_of(together)
        compute(rows(context, root, *(("clip-lora", each) for each in lengths)), context, tmp_path / str(together))
        found[together] = results(tmp_path / str(together)), len(made)
        made.clear()
    assert found[1][0] == found[8][0] and len(found[8][0]) == 4
    assert found[1][1] == (4 + 12 + 5 + 8) * 2 and found[8][1] == 12 * 2


def test_accumulated_batches_are_shared(root: Path, made: list[int], tmp_path: Path) -> None:
    for together in (1, 8):
        context = context_of(together)
        compute(of_methods(context, root, ("mmrl", "clip-lora"), accumulate=3), context, tmp_path / str(together))
    assert results(tmp_path / "1") == results(tmp_path / "8") and len(made) == (2 + 1) * 2 * 8


@pytest.mark.parametrize("other", [{"batch_size": 4}, {"crop_scale": (0.3, 1.0)}, {"drop_last": False}, {"precision": "bf16"}])
def test_other_images_are_not_shared(root: Path, other: dict[str, Any]) -> None:
    context = context_of(8)
    first, same, changed = rows(context, root, ("coop", {}), ("coop", {"lr": 0.5}), ("coop", other))
    assert first.images == same.images != changed.images
    seeds = rows(context, root, ("coop", {}), seeds=(1, 2))
    assert seeds[0].images == first.images != seeds[1].images


# ---- what becomes of the others ----


def test_a_row_that_is_no_more_finite_ends_alone(root: Path, alone: dict[str, Any], tmp_path: Path) -> None:
    context = context_of(8)
    jobs = [*of_methods(context, root, ("clip-lora",), lr=1e30), *of_methods(context, root)]
    outcome, _ = compute(jobs, context, tmp_path)
    assert outcome.failed == [jobs[0].key] and len(outcome.done) == 3
    assert results(tmp_path).items() <= alone.items() and "is not finite" in contents(tmp_path, "failed")[jobs[0].key]["error"]
    assert not list((tmp_path / "locks").iterdir())


def test_an_error_of_one_row_is_its_own(root: Path, alone: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    context, step = context_of(8), LOOP.Trainer._step

    def fails(self: Any, group: Any) -> None:
        if self.method.name == "mmrl" and self.step == 3:
            raise ZeroDivisionError
        step(self, group)

    with monkeypatch.context() as patch:
        patch.setattr(LOOP.Trainer, "_step", fails)
        outcome, _ = compute(of_methods(context, root), context, tmp_path)
    assert len(outcome.failed) == 1 and len(outcome.done) == 2
    compute(of_methods(context, root), context, tmp_path)  # from its last checkpoint, at step 3
    assert results(tmp_path).items() <= alone.items() and len(results(tmp_path)) == 3


def test_an_image_that_cannot_be_read_ends_all_with_the_same_words(root: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    varied, calls = Preprocess.varied, list[int]()

    def broken(self: Preprocess, image: Any, seed: int) -> Any:
        calls.append(seed)
        if seed == bad:
            raise ValueError("a broken image")
        return varied(self, image, seed)

    monkeypatch.setattr(Preprocess, "varied", broken)
    bad, context = -1, context_of(8)
    compute(of_methods(context, root), context, tmp_path / "whole")
    bad = calls[10]
    outcome, _ = compute(of_methods(context, root), context, tmp_path / "broken")
    assert len(outcome.failed) == 3
    assert {failure["error"] for failure in contents(tmp_path / "broken", "failed").values()} == {"a broken image"}


def test_a_user_who_stops_it_stops_all_rows(
    root: Path, alone: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    context, step, taken = context_of(8), LOOP.Trainer._step, list[str]()

    def stopped(self: Any, group: Any) -> None:
        taken.append(self.method.name)
        if len(taken) == 14:
            raise KeyboardInterrupt
        step(self, group)

    before = torch.get_rng_state()
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(LOOP.Trainer, "_step", stopped)
        compute(of_methods(context, root), context, tmp_path)
    assert len(set(taken)) == 3 and torch.equal(torch.get_rng_state(), before)
    assert [failure["kind"] for failure in contents(tmp_path, "failed").values()] == ["cancelled"] * 3
    assert not list((tmp_path / "locks").iterdir()) and not list((tmp_path / "work").glob("*/.lock"))
    compute(of_methods(context, root), context, tmp_path)
    assert results(tmp_path).items() <= alone.items() and len(results(tmp_path)) == 3 and not contents(tmp_path, "failed")


def test_a_row_that_is_further_joins_where_it_is(
    root: Path, alone: dict[str, Any], made: list[int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    context, step = context_of(8), LOOP.Trainer._step

    def stopped(self: Any, group: Any) -> None:
        if self.step == 6:
            raise KeyboardInterrupt
        step(self, group)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(LOOP.Trainer, "_step", stopped)
        compute(of_methods(context, root)[:1], context, tmp_path)
    made.clear()
    compute(of_methods(context, root), context, tmp_path)
    assert results(tmp_path).items() <= alone.items() and len(made) == len(set(made)) == 2 * 8


# ---- who takes which ----


def looked_at(context: Context, root: Path, store: ResultsFolder, *, most: int = 8, names: Sequence[str] = RANDOM) -> list[int]:
    """How many rows are begun together, look after look."""
    look = local._Look(of_methods(context, root, names), context, store, datetime.now(timezone.utc), print)
    taken = []
    while look.ahead:
        turns = list(look.rows(most, Shared()))
        for row in turns:
            next(row)
        taken.append(len(turns))
        for row in turns:
            row.close()
    return taken


def test_rows_are_divided_between_processes(root: Path, tmp_path: Path) -> None:
    context = context_of(TOGETHER)
    taken = list[int]()

    def spied(look: Any, most: int, shared: Shared) -> Any:
        taken.append(most)
        return rows_of(look, most, shared)

    rows_of = local._Look.rows
    jobs, began = of_methods(context, root, MIXED[:7]), datetime.now(timezone.utc)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(local._Look, "rows", spied)
        local.work_through(jobs, context, ResultsFolder(tmp_path), began, lambda line: None, processes=2)
    assert taken == [4, 2, 1]


def test_another_command_on_the_folder_counts(root: Path, tmp_path: Path) -> None:
    store, other = ResultsFolder(tmp_path), ResultsFolder(tmp_path)
    assert holders(held_locks(store.folder)) == 0
    held = [other.claim("one"), other.claim("two")]
    assert holders(held_locks(store.folder)) == 1  # one process, with two claims
    for name, claim in zip(("one", "two"), held, strict=True):
        assert claim is not None
        other.release(name, claim)


def test_what_a_killed_process_had_shares_with_fewer(root: Path, tmp_path: Path) -> None:
    context, names = context_of(8), MIXED[:7]
    before, later = datetime.now(timezone.utc) - timedelta(hours=1), datetime.now(timezone.utc) + timedelta(hours=1)
    assert looked_at(context, root, ResultsFolder(tmp_path / "new"), names=names) == [7]
    earlier = ResultsFolder(tmp_path / "earlier")
    jobs = of_methods(context, root, names)
    for job in jobs[:6]:
        killed_at(earlier, job.key, before)
    assert looked_at(context, root, earlier, names=names) == [4, 3]
    just_now = ResultsFolder(tmp_path / "now")
    killed_at(just_now, jobs[2].key, later)
    assert looked_at(context, root, just_now, names=names) == [6, 1]


# ---- killed, and two at a time ----


def noted(note: Path, root: Path, folder: Path, fatal: int | None) -> None:
    context, moments = context_of(8), Moments(fatal)
    outcome, _ = compute(of_methods(context, root), context, folder)
    assert len(outcome.done) == 3
    note.write_text(json.dumps(moments.names))


def killed(root: Path, place: Path, stride: int) -> dict[str, Any]:
    note, context = place / "moments.json", context_of(1)
    compute(of_methods(context, root), context, place / "alone")
    expected = results(place / "alone")
    assert in_a_fork(lambda: noted(note, root, place / "whole", None))
    moments, differ, again = json.loads(note.read_text()), list[Any](), list[str]()
    for moment in range(1, len(moments), stride):
        folder = place / str(moment)
        assert not in_a_fork(lambda folder=folder, moment=moment: noted(note, root, folder, moment)), "it should have been killed"
        kept = scored(folder)
        assert in_a_fork(lambda folder=folder: noted(note, root, folder, None))
        differ += [moment] if results(folder) != expected else []
        again += [key for key, test in scored(folder).items() if test != kept.get(key, test)]
    tries = 1
    while not in_a_fork(lambda tries=tries: noted(note, root, place / "again", 9 + tries)):
        tries += 1
    differ += ["again"] if results(place / "again") != expected else []
    return {"moments": len(moments), "differ": differ, "again": again, "tries": tries, "whole": results(place / "whole") == expected}


def both(root: Path, place: Path) -> dict[str, Any]:
    """Two processes at the same time on one folder."""

    def work(number: int) -> None:
        local.WAIT = 0.05
        context = context_of(TOGETHER)
        _, said = compute(of_methods(context, root, MIXED[:6]), context, place / "both")
        (place / f"{number}.json").write_text(json.dumps(said))

    children = []
    for number in range(2):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                work(number)
                code = 0
            finally:
                os._exit(code)
        children.append(child)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    context = context_of(1)
    compute(of_methods(context, root, MIXED[:6]), context, place / "one")
    said = [len(json.loads((place / f"{number}.json").read_text())) for number in range(2)]
    return {"codes": codes, "said": said, "same": results(place / "both") == results(place / "one")}


@pytest.fixture(scope="module")
def found(root: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return of_a_process("tests.unit.test_rows_together", root, tmp_path_factory.mktemp("forks"))


def test_killed_at_any_moment_and_started_again_equals_each_alone(found: dict[str, Any]) -> None:
    told = found["killed"]
    assert told["whole"] and told["differ"] == [] and told["again"] == []
    assert told["tries"] > 2 and told["moments"] > 40


def test_two_processes_on_one_folder_do_every_row_once(found: dict[str, Any]) -> None:
    told = found["both"]
    assert told["codes"] == [0, 0] and sum(told["said"]) == 6 and told["same"]


def main(root: Path, place: Path) -> None:
    torch.set_num_threads(1)
    record.source_state = lambda: (None, None)  # git takes longer than a training here
    (place / "killed").mkdir()
    print(json.dumps({"killed": killed(root, place / "killed", 7), "both": both(root, place)}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
