"""Cells of a data set without its published split file say so."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmrl.engine.grid import Bench, Context
from tests.trees import make_tree
from tests.unit.colours import smallest_clip
from tests.unit.grids import compute, contents, groups_of, planned


@pytest.mark.parametrize("raw", [True, False])
def test_a_cell_says_whether_the_split_was_drawn_here(raw: bool, tmp_path: Path) -> None:
    make_tree("dtd", tmp_path / "data", raw=raw, per_class=4, classes=2)
    context = Context(Bench("smallest", root=tmp_path / "data"), smallest_clip())
    cells = planned(Path("dtd"), methods=("zero-shot",))
    compute(groups_of(context, cells), context, tmp_path / "results")
    assert [cell["own_split"] for cell in contents(tmp_path / "results", "cells").values()] == [raw, raw]  # base and novel
