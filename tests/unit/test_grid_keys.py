"""Keys of a grid's cells: what makes another result, and what is the same one asked for in another way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mmrl.engine import Context, bind
from mmrl.errors import UsageError
from mmrl.methods.mmrl import MMRL
from mmrl.protocols import ABLATIONS, Tower, ablate, base_to_novel
from tests.unit.grids import photos, planned, smallest


@pytest.mark.parametrize(
    "changed",
    [{"lam": 2}, {"epochs": 3}, {"lr": 0.01}, {"regulariser": "l1"}, {"seeds": (2,)}, {"shots": 3}, {"views": 1}, {"methods": ("mmrlpp",)}],
    ids=str,
)
def test_a_changed_option_has_keys_of_its_own(context: Context, root: Path, changed: dict[str, Any]) -> None:
    before, after = (bind(planned(root, **{"methods": ("mmrl",), **more}), context)[1] for more in ({}, changed))
    assert len(before) == len(after) == 2
    assert not {slot.key for slot in before} & {slot.key for slot in after}
    assert not {slot.run for slot in before} & {slot.run for slot in after}


@pytest.mark.parametrize(
    "same",
    [{"lam": 1}, {"lam": 1.0}, {"rep_dim": 8.0}, {"alpha": 0.7}, {"memory_gib": 3}, {"epochs": 2}, {"views": 2}, {"views_gib": 0.5}],
    ids=str,
)
def test_a_value_written_in_another_way_is_the_same_training(context: Context, root: Path, same: dict[str, Any]) -> None:
    assert bind(planned(root, **same), context)[0][1].key == bind(planned(root), context)[0][1].key


@pytest.mark.parametrize("name", sorted(set(ABLATIONS) - {"lambda"}))  # the value of a folder's recipe, 1, is not in the paper's sweep
def test_an_ablations_unchanged_row_is_that_of_bench(context: Context, root: Path, name: str) -> None:
    depth = context.clip.vision.depth
    unchanged = bind(base_to_novel(("mmrl",), (str(root),), (1,)), context)[1]
    slots = bind(ablate(name, (str(root),), (1,), tower=Tower(depth, MMRL.default_layer(depth))), context)[1]
    assert {slot.key for slot in unchanged} <= {slot.key for slot in slots}


def test_rows_that_differ_at_test_only_share_the_training(context: Context, root: Path) -> None:
    jobs, slots = bind(ablate("variants", (str(root),), (1,)), context)
    keys = {label: [slot.key for slot in slots if slot.variant == label] for label in ("full", "w/o DS1", "w/o DS2")}
    (shared,) = {slot.run for slot in slots if slot.variant in keys}
    assert len(jobs) == 5 and len({key for pair in keys.values() for key in pair}) == 6
    assert {key for job in jobs if job.key == shared for _, key in job.tests} == {key for pair in keys.values() for key in pair}


def test_other_pictures_and_another_prompt_are_other_results(context: Context, root: Path, tmp_path: Path) -> None:
    copy = photos(tmp_path / root.name)
    keys = set()
    for change in (lambda: None, lambda: (copy / "red" / "0.png").unlink(), lambda: (copy / "red").rename(copy / "crimson")):
        change()
        keys |= {slot.key for slot in bind(planned(copy), smallest())[1]}
    assert len(keys) == 3 * 4


def test_everything_wrong_is_said_at_once(context: Context, root: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    cells = [*planned(tmp_path / "nowhere"), *planned(tmp_path / "empty"), *planned(root, alpha=3, rep_dmi=1)]
    with pytest.raises(UsageError) as caught:
        bind(cells, context)
    message = str(caught.value)
    for part in ("nowhere", "empty", "rep_dim"):
        assert part in message, message
    assert len(message.splitlines()) == len(set(message.splitlines())) >= 3
