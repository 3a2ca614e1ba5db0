"""Small models and data that many tests share."""

from __future__ import annotations

import atexit
import gc
import os
import shutil
import tempfile

os.environ.setdefault("HF_HUB_OFFLINE", "1")
if "MMRL_CACHE" not in os.environ:  # not the one of whoever runs the tests
    os.environ["MMRL_CACHE"] = tempfile.mkdtemp(prefix="mmrl-tests-")
    atexit.register(shutil.rmtree, os.environ["MMRL_CACHE"], ignore_errors=True)

import pytest
import torch

from mmrl.clip import Clip, random_clip

torch.set_num_threads(1)  # tiny tensors: a second thread costs more than it gives


def pytest_collection_finish() -> None:
    """Modules and collected tests live to the end: no garbage collection need look at them again, of which tests ask for many."""
    gc.collect()
    gc.freeze()


SMALL = {
    "embed_dim": 48,
    "vision_cfg": {"layers": 4, "width": 64, "head_width": 32, "patch_size": 16, "image_size": 32},
    "text_cfg": {"layers": 3, "width": 32, "heads": 2, "context_length": 24},
}


@pytest.fixture(scope="session")
def small_clip() -> Clip:
    """A random CLIP whose towers differ in depth, width and heads, so that nothing can be mixed up unnoticed."""
    return random_clip("ViT-B-32", **SMALL)


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
