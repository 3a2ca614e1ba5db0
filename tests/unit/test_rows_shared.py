"""What rows of a grid have in common besides training batches: a pool of views, passes over test images, and memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from mmrl.data.preprocess import Preprocess
from mmrl.engine import Bench, Context, memory
from mmrl.engine.grid import ResultsFolder
from mmrl.engine.tested import TestPass
from mmrl.errors import UsageError
from mmrl.methods.mmrl import MMRL
from tests.unit import test_rows_together
from tests.unit.colours import smallest_clip
from tests.unit.grids import compute, contents, scored
from tests.unit.test_rows_together import FIT, LOOP, MIXED, context_of, looked_at, of_methods, results, rows

made = test_rows_together.made
NAMES = ("mmrl", "maple", "coop", "clip-lora")


@pytest.fixture(scope="module")
def alone(root: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What each of the methods gives by itself."""
    context, folder = context_of(1), tmp_path_factory.mktemp("alone")
    compute(of_methods(context, root, NAMES), context, folder)
    return results(folder)


# ---- with a pool of views ----

POOLED: tuple[tuple[str, dict[str, Any]], ...] = (
    ("mmrl", {"views": 2, "epochs": 4}), ("clip-lora", {"views": 2, "epochs": 3}), ("coop", {"views": 2, "epochs": 4, "n_ctx": 2}),
    ("mmrl", {"views": 2, "iterations": 5, "lr": 0.1}), ("mmrl", {"views": 2, "epochs": 2}),
)  # fmt: skip


@pytest.fixture(scope="module")
def pooled(root: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What rows with a pool of two views give by themselves; the last one shows each view once, and has none."""
    context, folder = context_of(1), tmp_path_factory.mktemp("pooled")
    outcome, _ = compute(rows(context, root, *POOLED), context, folder)
    assert len(outcome.done) == len(POOLED)
    return results(folder)


def test_rows_with_views_share_one_pool(
    root: Path, pooled: dict[str, Any], made: list[int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    context = context_of(8)
    jobs, embed, passed = rows(context, root, *POOLED), context.clip.vision.embed, list[int]()
    monkeypatch.setattr(context.clip.vision, "embed", lambda pixels: passed.append(len(pixels)) or embed(pixels))
    assert len({job.images for job in jobs[:4]}) == 1 and jobs[4].images != jobs[0].images
    compute(jobs, context, tmp_path)
    assert results(tmp_path) == pooled
    assert len(made) == 2 * 8 + 2 * 8 and len(set(made)) == 2 * 8, "once a view for four rows, and for the one without a pool"
    assert passed.count(FIT["batch_size"]) == 2 * 4 + 1 + 2 * 4, "in the first batch it is not known yet which layers will be asked for"


@pytest.mark.parametrize("until", [2, 9, 17])
def test_rows_with_views_go_on_to_the_same_bits(
    root: Path, pooled: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, until: int
) -> None:
    """Stopped when one has taken a few steps, and then all together, the first of them with an error of its own."""
    context, step, taken = context_of(8), LOOP.Trainer._step, list[int]()

    def stopped(self: Any, group: Any) -> None:
        taken.append(self.step)
        if len(taken) == until:
            raise KeyboardInterrupt
        step(self, group)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(LOOP.Trainer, "_step", stopped)
        compute(rows(context, root, *POOLED)[:1] if until < 17 else rows(context, root, *POOLED), context, tmp_path)

    def fails(self: Any, group: Any) -> None:
        if self.method.name == "clip-lora" and self.step == 10:
            raise ZeroDivisionError
        step(self, group)

    with monkeypatch.context() as patch:
        patch.setattr(LOOP.Trainer, "_step", fails)
        outcome, _ = compute(rows(context, root, *POOLED), context, tmp_path)
    assert len(outcome.failed) == 1 and len(outcome.done) == 4
    compute(rows(context, root, *POOLED), context, tmp_path)
    assert results(tmp_path) == pooled


# ---- tested in one pass ----


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Test images that are decoded; the last may be changed to be the one that breaks."""
    central, count = Preprocess.central, list[int]()

    def counted(self: Preprocess, image: Any) -> Any:
        count.append(1)
        return central(self, image)

    monkeypatch.setattr(Preprocess, "central", counted)
    return count


def test_rows_are_tested_in_one_pass(
    root: Path, alone: dict[str, Any], decoded: list[int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    context = context_of(8)
    embed, passed = context.clip.vision.embed, list[int]()
    monkeypatch.setattr(context.clip.vision, "embed", lambda pixels: passed.append(len(pixels)) or embed(pixels))
    compute(of_methods(context, root, NAMES), context, tmp_path)
    assert results(tmp_path) == alone
    assert len(decoded) == 10 + 10, "each test image of base and novel classes once"
    assert passed.count(10) <= 2 * 3, "at first it is not known which layers are asked for: 0, 1, and features"


def test_the_frozen_layers_run_once_at_test(root: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    context = Context(Bench("smallest", together=8, batch_size=3), smallest_clip())
    embed, passed = context.clip.vision.embed, list[int]()
    monkeypatch.setattr(context.clip.vision, "embed", lambda pixels: passed.append(len(pixels)) or embed(pixels))
    compute(of_methods(context, root, NAMES), context, tmp_path)
    assert 2 * 3 <= passed.count(3) <= 2 * (3 + 1 + 1), "ten images a part: three of the first batch's, one of each other"


def test_a_row_that_fails_at_test_fails_alone_and_is_tested_alone(
    root: Path, alone: dict[str, Any], decoded: list[int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    context, head, calls = context_of(8), MMRL.head, list[int]()

    def fails(self: Any, classes: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:  # of its second test
            raise ZeroDivisionError
        return head(self, classes)

    with monkeypatch.context() as patch:
        patch.setattr(MMRL, "head", fails)
        outcome, _ = compute(of_methods(context, root, NAMES), context, tmp_path)
    assert len(outcome.failed) == 1 and len(outcome.done) == 3 and len(decoded) == 20
    before = scored(tmp_path)
    assert len(before) == 7
    compute(of_methods(context, root, NAMES), context, tmp_path)
    assert results(tmp_path) == alone and len(decoded) == 30
    assert all(scored(tmp_path)[key] == test for key, test in before.items()), "what is there is not done again"


def test_a_test_image_that_cannot_be_read_is_told_to_all(root: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def broken(self: Preprocess, image: Any) -> Any:
        raise UsageError("a broken image")

    monkeypatch.setattr(Preprocess, "central", broken)
    context = context_of(8)
    outcome, _ = compute(of_methods(context, root, NAMES), context, tmp_path)
    assert len(outcome.failed) == 4
    assert {failure["error"] for failure in contents(tmp_path, "failed").values()} == {"a broken image"}


def test_who_is_behind_begins_the_pass_again(root: Path) -> None:
    context = context_of(8)
    part = context.tested(of_methods(context, root)[0].tests[0][0])
    images = TestPass(context.clip, part, part.test, batch_size=4)
    images.ask(images=False, features=True)
    first, second = images.at(0), images.at(1)
    assert first is not None and second is not None and first.images is None and images.at(1) is second
    images.ask(images=True, features=False)  # it joins late
    again = images.at(1)
    assert again is not None and again.images is not None and torch.equal(again.features, second.features)
    back = images.at(0)
    assert back is not None and torch.equal(back.features, first.features) and torch.equal(back.labels, first.labels)
    assert images.at(2) is not None and images.at(3) is None and images.at(3) is None
    assert images.at(0) is not None
    images.close()


# ---- memory ----


def test_no_more_rows_than_memory_allows(root: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    context, names, taken = context_of(8), MIXED[:7], iter(range(0, 10**12, memory.LEAST // 3))
    monkeypatch.setattr(memory, "free_bytes", lambda device="cpu": 4 * memory.LEAST)
    monkeypatch.setattr(memory, "_taken", lambda device: next(taken))
    assert looked_at(context, root, ResultsFolder(tmp_path), names=names) == [3, 3, 1]  # a third of the least for each
    monkeypatch.setattr(memory, "free_bytes", lambda device="cpu": None)
    assert looked_at(context, root, ResultsFolder(tmp_path / "unknown"), names=names) == [7]
