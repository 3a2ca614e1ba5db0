"""Training on a draw made before: a run's own JSON, or the CoOp family's pickle."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mmrl.data import Dataset, Draw, draw_shots, load_dataset, read_draw
from mmrl.engine import Bench, Context
from mmrl.engine.context import Prepared
from mmrl.errors import MmrlError, UsageError
from mmrl.protocols import Training
from tests.unit.colours import smallest_clip

Saved = tuple[Dataset, Draw, Path]


@pytest.fixture
def saved(tmp_path: Path) -> Saved:
    dataset = load_dataset("mini:digits")
    draw = draw_shots(dataset, 2, 5, "base")
    draw.save(tmp_path / "draw.json")
    return dataset, draw, tmp_path / "draw.json"


def prepared(dataset: Dataset, draw: Draw | Path) -> Prepared:
    """A run that asks for 16 shots, with a draw of 2."""
    context = Context(Bench("smallest", draw=draw), smallest_clip(), datasets={dataset.name: dataset})
    return context.prepare(Training("mmrl", dataset.name, "base", 16, 1, "base-to-novel"))


def test_the_images_are_those_of_the_file(saved: Saved) -> None:
    dataset, draw, path = saved
    ready = prepared(dataset, path)
    assert ready.draw == draw and ready.draw.seed == 5 and ready.config.seed == 1
    assert prepared(dataset, draw).draw is draw


def test_a_draw_of_something_else_is_refused(saved: Saved) -> None:
    dataset, _, path = saved
    with pytest.raises(UsageError, match="'mini:digits', base classes; this run needs 'mini:digits', all classes"):
        read_draw(path, dataset, "all")
    with pytest.raises(UsageError, match="needs 'mini:objects'"):
        read_draw(path, load_dataset("mini:objects"), "base")
    with pytest.raises(UsageError, match="needs 'mini:objects'"):
        prepared(load_dataset("mini:objects"), path)


def test_images_that_are_not_there_are_named(saved: Saved) -> None:
    dataset, draw, path = saved
    content = json.loads(path.read_text())
    content["train"][0][0] = "train/one/none.png"
    path.write_text(json.dumps(content))
    with pytest.raises(MmrlError, match="edited"):
        read_draw(path, dataset, "base")
    type(draw)("mini:digits", 2, 5, "base", [type(draw.train[0])("train/one/none.png", 1), *draw.train[1:]], []).save(path)
    with pytest.raises(UsageError, match="train/one/none.png"):
        read_draw(path, dataset, "base")
