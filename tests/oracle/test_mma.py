"""MMA against its plain form."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from mmrl import methods
from mmrl.clip import Clip
from mmrl.errors import UsageError
from mmrl.methods import Method
from mmrl.methods.mma import MMA, scaled
from tests.oracle.methods.compare import NAMES, TEMPLATE, batch, disturbed, same_logits, same_step, small_clip_in_float64
from tests.oracle.methods.mma import plain


def compare(options: dict[str, Any], template: str | tuple[str, ...] = TEMPLATE, memory: float | None = None) -> Method:
    method = disturbed("mma", options, template=template)
    assert isinstance(method, MMA)
    classes, slow, (images, labels) = method.class_list(NAMES, template, memory_gib=memory), plain(method, NAMES, template), batch()
    loss = method.loss(images, labels, classes)
    same_step(method, slow, loss.total, slow.loss(images, labels))
    same_logits(method, slow, loss.logits, images)
    same_logits(method, slow, method.eval().logits(images, method.head(classes), True), images)
    return method


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"adapter_start": 1},
        {"adapter_start": 2, "adapter_end": 2},
        {"adapter_start": 1, "adapter_end": 2, "adapter_dim": 5},
        {"adapter_start": 3, "adapter_end": 3, "adapter_scale": 0.1},
        {"adapter_start": 2, "adapter_scale": 1.0, "template": None},
        {"adapter_start": 2, "adapter_scale": 10.0, "template": "a drawing of one {} on a wall"},
    ],
)
def test_equal(options: dict[str, Any]) -> None:
    compare(options)


def test_equal_with_several_templates_and_in_chunks() -> None:
    compare({"adapter_start": 2, "template": None}, template=(TEMPLATE, "a {}."))
    compare({"adapter_start": 2}, memory=1e-9)


def test_layers_of_a_shallower_backbone() -> None:
    clip = small_clip_in_float64()  # 4 and 3 layers
    method = methods.build("mma", clip)
    assert isinstance(method, MMA) and (method.first, method.last) == (3, 3) and method.frozen_text_layers == 2
    for options, message in (
        ({"adapter_end": 4}, "adapter_end is 4, but the shallower tower .* has 3 layers"),
        ({"adapter_start": 4}, "adapter_start is 4, but the last layer with adapters is 3"),
        ({"adapter_start": 3, "adapter_end": 2}, "adapter_start is 3, but the last layer with adapters is 2"),
        ({"template": "no place"}, "exactly one"),
    ):
        with pytest.raises(UsageError, match=message):
            methods.build("mma", clip, options)


def test_adapters_learn_as_if_the_scale_were_1_and_states_below_get_their_true_gradient() -> None:
    x, w = torch.randn(3, dtype=torch.float64, requires_grad=True), torch.randn(3, dtype=torch.float64, requires_grad=True)
    scaled(w * scaled(x, gradient=0.01), value=0.01).sum().backward()
    torch.testing.assert_close(w.grad, x.detach())
    torch.testing.assert_close(x.grad, 0.01 * w.detach())


def test_zero_shot_features_are_of_the_data_sets_prompt() -> None:
    clip = small_clip_in_float64()
    classes = methods.build("mma", clip).class_list(NAMES, TEMPLATE)
    assert torch.equal(classes.zero_shot, clip.class_list(NAMES, TEMPLATE).zero_shot)
    assert classes.fed.texts[2] == "a photo of a zig zagged." and classes.fed.start == 2


def test_in_bfloat16(small_clip: Clip, images: Tensor) -> None:
    method = methods.build("mma", small_clip, {"adapter_start": 2}, seed=0)
    classes, labels = method.class_list(NAMES, TEMPLATE), torch.tensor([2, 0, 1])
    exact = method.loss(images, labels, classes).total
    with torch.autocast("cpu", torch.bfloat16):
        loss = method.loss(images, labels, classes).total
    loss.backward()
    assert abs(float(loss.detach() - exact.detach())) < 0.1
    assert all(p.grad is not None and p.grad.dtype == torch.float32 and bool(p.grad.isfinite().all()) for p in method.parameters())
