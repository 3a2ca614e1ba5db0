"""MaPLe against its plain form."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from mmrl import methods
from mmrl.clip import Clip
from mmrl.errors import UsageError
from mmrl.methods.maple import MaPLe
from tests.oracle.methods.compare import NAMES, TEMPLATE, batch, disturbed, same_logits, same_step, small_clip_in_float64
from tests.oracle.methods.maple import plain


def compare(options: dict[str, Any], names: tuple[str, ...] = NAMES, memory: float | None = None) -> None:
    method = disturbed("maple", options, names)
    assert isinstance(method, MaPLe)
    classes = method.class_list(names, TEMPLATE, memory_gib=memory)
    slow, (images, labels) = plain(method, names, TEMPLATE), batch(len(names))
    loss = method.loss(images, labels, classes)
    same_step(method, slow, loss.total, slow.loss(images, labels))
    same_logits(method, slow, loss.logits, images)
    same_logits(method, slow, method.eval().logits(images, method.head(classes), True), images)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"depth": 1},
        {"depth": 2},
        {"n_ctx": 4},
        {"n_ctx": 1, "depth": 2},
        {"n_ctx": 3, "ctx_init": ""},
        {"ctx_init": "one drawing on a wall of the", "n_ctx": 3},
    ],
)
def test_equal(options: dict[str, Any]) -> None:
    compare(options)


def test_equal_with_alike_names_and_in_chunks() -> None:
    compare({}, names=("of", "of of", "of a"))  # the names begin as the frozen words end
    compare({"depth": 2}, memory=1e-9)


def test_only_the_first_words_are_learned() -> None:
    clip = small_clip_in_float64()
    method = methods.build("maple", clip, seed=0)
    assert isinstance(method, MaPLe)
    ids = clip.tokenize(["a photo of a cat."])[0][0]
    assert torch.equal(method.ctx.double(), clip.text.words(ids[1:3]))
    classes = method.class_list(NAMES, TEMPLATE)
    assert classes.fed.texts[0] == "a photo of a cat." and classes.fed.hidden.slots == 2
    assert classes.fed.hidden.prefix.shape[1] == 5  # BOT, the context and "of a" run once for all classes
    assert torch.equal(classes.zero_shot, clip.class_list(NAMES, TEMPLATE).zero_shot)


def test_the_maps_of_the_deeper_layers_start_equal() -> None:
    method = methods.build("maple", small_clip_in_float64(), seed=0)
    assert isinstance(method, MaPLe) and method.depth == 3  # of 4 and 3 layers
    weight = method.deep_projections.weight
    assert torch.equal(weight[0], weight[1]) and not torch.equal(weight[0], method.projection.weight)


def test_what_cannot_be() -> None:
    clip = small_clip_in_float64()
    with pytest.raises(UsageError, match="depth is 4, but the shallower tower .* has 3 layers; give 1 to 3"):
        methods.build("maple", clip, {"depth": 4})
    with pytest.raises(UsageError, match="ctx_init"):
        methods.build("maple", clip, {"n_ctx": 5})


def test_in_bfloat16(small_clip: Clip, images: Tensor) -> None:
    method = methods.build("maple", small_clip, seed=0)
    classes, labels = method.class_list(NAMES, TEMPLATE), torch.tensor([2, 0, 1])
    exact = method.loss(images, labels, classes).total
    with torch.autocast("cpu", torch.bfloat16):
        loss = method.loss(images, labels, classes).total
    loss.backward()
    assert abs(float(loss.detach() - exact.detach())) < 0.1
    assert all(p.grad is not None and p.grad.dtype == torch.float32 and bool(p.grad.isfinite().all()) for p in method.parameters())
