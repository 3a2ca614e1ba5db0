"""Training on a draw made before: a run's own JSON, or the CoOp family's pickle."""

from __future__ import annotations

import json

import pytest
from mmrl.engine.setup import prepare, read_draw

from mmrl.data import draw_shots, load_dataset
from mmrl.errors import MmrlError, UsageError

PLAN = {"shots": 16, "classes": "base", "seed": 1, "protocol": "base-to-novel"}


@pytest.fixture
def saved(tmp_path):
    dataset = load_dataset("mini:digits")
    draw = draw_shots(dataset, 2, 5, "base")
    draw.save(tmp_path / "draw.json")
    return dataset, draw, tmp_path / "draw.json"


def test_the_images_are_those_of_the_file(saved):
    dataset, draw, path = saved
    ready = prepare("mmrl", dataset, **PLAN, draw=path)
    assert ready.draw == draw and ready.draw.seed == 5 and ready.config.seed == 1
    assert prepare("mmrl", dataset, **PLAN, draw=draw).draw is draw


def test_a_draw_of_something_else_is_refused(saved):
    dataset, _, path = saved
    with pytest.raises(UsageError, match="'mini:digits', base classes; this run needs 'mini:digits', all classes"):
        read_draw(path, dataset, "all")
    with pytest.raises(UsageError, match="needs 'mini:objects'"):
        read_draw(path, load_dataset("mini:objects"), "base")


def test_images_that_are_not_there_are_named(saved):
    dataset, draw, path = saved
    content = json.loads(path.read_text())
    content["train"][0][0] = "train/one/none.png"
    path.write_text(json.dumps(content))
    with pytest.raises(MmrlError, match="edited"):
        read_draw(path, dataset, "base")
    type(draw)("mini:digits", 2, 5, "base", [type(draw.train[0])("train/one/none.png", 1), *draw.train[1:]], []).save(path)
    with pytest.raises(UsageError, match="train/one/none.png"):
        read_draw(path, dataset, "base")
