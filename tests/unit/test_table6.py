"""Trained parameters at the sizes of ViT-B/16, with the published recipes, beside what the paper's Table 6 prints."""

from __future__ import annotations

import pytest
import torch

from mmrl import methods
from mmrl.clip import Clip, random_clip
from mmrl.engine.context import settings
from mmrl.methods import Task
from mmrl.reports import paper

PRINTED = {row["method"]: row for row in paper.rows("table6_cost")}
OURS = {cls.published or cls.title: name for name, cls in methods.registered().items()}
REDUCED = {"MMRL*": ("MMRL", {"rep_dim": 32})}  # supplement C: the representation space of 32 dimensions instead of 512
TASK = Task(("cat", "dog", "great white shark"), "a photo of a {}.", images=48)


@pytest.fixture(scope="module")
def b16() -> Clip:
    """Of its weights only the shapes matter, so nothing is drawn."""
    with torch.device("meta"):
        clip = random_clip("ViT-B-16")
    clip.model.to_empty(device="cpu")
    return clip


def count(clip: Clip, method: str, **overrides: object) -> int:
    """Of the recipe for ImageNet, 16 shots, base classes, which Table 6 was measured with."""
    options = settings(method, protocol="base-to-novel", dataset="imagenet", shots=16, overrides=overrides).method
    return sum(p.numel() for p in methods.build(method, clip, options, task=TASK).parameters())


@pytest.mark.parametrize("row", PRINTED)
def test_trained_parameters_are_the_printed_ones(b16: Clip, row: str) -> None:
    published, overrides = REDUCED.get(row, (row, {}))
    name = OURS[published]
    assert f"{count(b16, name, **overrides) / 1e6:.3f}M" == PRINTED[row]["learnable_params"]


@pytest.mark.parametrize("row", PRINTED)
def test_the_towers_are_the_printed_ones(b16: Clip, row: str) -> None:
    name = OURS[REDUCED.get(row, (row, {}))[0]]
    assert methods.build(name, b16).modality.replace(" ", "") == PRINTED[row]["modality"]
