"""CoOp against its plain form."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from mmrl import methods
from mmrl.clip import Clip
from mmrl.errors import UsageError
from mmrl.methods.coop import CoOp
from tests.oracle.methods.compare import NAMES, TEMPLATE, batch, disturbed, same_logits, same_step, small_clip_in_float64
from tests.oracle.methods.coop import plain

SHORT = ("x", "zig zagged", "a bird")  # that leave room for 16 tokens among the small CLIP's 24
OTHER = ("zig zagged", "dog", "one of_the others")
POSITIONS = ["end", "middle", "front"]


def compare(options: dict[str, Any], names: tuple[str, ...] = NAMES, memory: float | None = None, then: tuple[str, ...] = ()) -> None:
    """A step on the classes trained on, and the logits of those and of the list `then`."""
    method = disturbed("coop", options, names)
    assert isinstance(method, CoOp)
    classes = method.class_list(names, TEMPLATE, memory_gib=memory)
    slow, (images, labels) = plain(method, names, TEMPLATE), batch(len(names))
    loss = method.loss(images, labels, classes)
    same_step(method, slow, loss.total, slow.loss(images, labels))
    same_logits(method, slow, loss.logits, images)
    method.eval()
    for some in filter(None, (names, then)):
        head = method.head(method.class_list(some, TEMPLATE))
        same_logits(method, plain(method, some, TEMPLATE), method.logits(images, head, True), images)


@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("options", [{"n_ctx": 4}, {"n_ctx": 5}, {"n_ctx": 1}, {"ctx_init": "a photo of a"}])
def test_shared_context(options: dict[str, Any], position: str) -> None:
    compare({**options, "class_token_position": position}, then=OTHER)


@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("options", [{"n_ctx": 5}, {"ctx_init": "a photo of a"}])
def test_context_of_each_class(options: dict[str, Any], position: str) -> None:
    compare({**options, "csc": True, "class_token_position": position}, then=(NAMES[2], NAMES[0], NAMES[3]))


@pytest.mark.parametrize("csc", [False, True])
def test_default_length(csc: bool) -> None:
    compare({"csc": csc}, SHORT, then=SHORT[::-1])


@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("csc", [False, True])
def test_in_chunks_and_with_alike_names(csc: bool, position: str) -> None:
    compare({"n_ctx": 3, "csc": csc, "class_token_position": position}, names=("of", "of of", "of a"), memory=1e-9)


def test_class_specific_context_knows_no_other_class() -> None:
    method = disturbed("coop", {"n_ctx": 3, "csc": True})
    assert not method.open_vocabulary(method.options)
    with pytest.raises(UsageError, match="'dog' is not one of them"):
        method.head(method.class_list(["cat", "dog"], TEMPLATE))


def test_zero_shot_features_are_of_the_data_sets_prompt() -> None:
    method = disturbed("coop", {"n_ctx": 3})
    assert torch.equal(method.class_list(NAMES, TEMPLATE).zero_shot, small_clip_in_float64().class_list(NAMES, TEMPLATE).zero_shot)


@pytest.mark.parametrize("position", POSITIONS)
def test_in_bfloat16(small_clip: Clip, images: Tensor, position: str) -> None:
    method = methods.build("coop", small_clip, {"n_ctx": 4, "class_token_position": position}, seed=0)
    classes, labels = method.class_list(NAMES, TEMPLATE), torch.tensor([2, 0, 1])
    exact = method.loss(images, labels, classes).total
    with torch.autocast("cpu", torch.bfloat16):
        loss = method.loss(images, labels, classes).total
    loss.backward()
    assert abs(float(loss.detach() - exact.detach())) < 0.1
    assert all(p.grad is not None and p.grad.dtype == torch.float32 and bool(p.grad.isfinite().all()) for p in method.parameters())
