"""CLIP-Adapter against its plain form."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mmrl import methods
from mmrl.clip import Clip
from mmrl.errors import UsageError
from mmrl.methods.clip_adapter import CLIPAdapter
from tests.oracle.methods.clip_adapter import plain
from tests.oracle.methods.compare import NAMES, TEMPLATE, batch, disturbed, same_logits, same_step, small_clip_in_float64

OTHER = ("dog", NAMES[2], "small red bird")


@pytest.mark.parametrize("last_relu", [True, False])
@pytest.mark.parametrize("options", [{}, {"ratio": 0.6}, {"ratio": 1.0, "reduction": 3}, {"reduction": 1}, {"reduction": 10}])
def test_equals_its_plain_form(options: dict[str, Any], last_relu: bool) -> None:
    method, (images, labels) = disturbed("clip-adapter", {**options, "last_relu": last_relu}), batch()
    assert isinstance(method, CLIPAdapter)
    slow = plain(method, NAMES, TEMPLATE)
    loss = method.loss(images, labels, method.class_list(NAMES, TEMPLATE))
    same_step(method, slow, loss.total, slow.loss(images, labels))
    same_logits(method, slow, loss.logits, images)
    for names in (NAMES, OTHER):
        found = method.logits(images, method.head(method.class_list(names, TEMPLATE)), True).detach()
        same_logits(method, plain(method, names, TEMPLATE), found, images)


def test_several_templates() -> None:
    method, images = disturbed("clip-adapter", {}, template=(TEMPLATE, "a {}.")), batch()[0]
    found = method.logits(images, method.head(method.class_list(NAMES, (TEMPLATE, "a {}."))), True).detach()
    same_logits(method, plain(method, NAMES, (TEMPLATE, "a {}.")), found, images)  # type: ignore[arg-type]


def test_without_a_share_it_is_zero_shot_clip() -> None:
    method, images = disturbed("clip-adapter", {"ratio": 0.0}), batch()[0]
    classes = method.class_list(NAMES, TEMPLATE)
    expected = methods.build("zero-shot", method.clip)
    torch.testing.assert_close(
        method.logits(images, method.head(classes), True), expected.logits(images, expected.head(classes), True), rtol=1e-12, atol=1e-12
    )


def test_it_starts_as_layers_of_torch_do() -> None:
    method = methods.build("clip-adapter", small_clip_in_float64(), seed=3)
    assert isinstance(method, CLIPAdapter) and method.modality == "V" and method.frozen_images
    torch.manual_seed(3)
    down, up = nn.Linear(48, 12, bias=False).weight, nn.Linear(12, 48, bias=False).weight
    assert torch.equal(method.down, down) and torch.equal(method.up, up)


def test_a_hidden_layer_of_nothing() -> None:
    with pytest.raises(UsageError, match="reduction is 49, but the image features of .* have 48 numbers; give 1 to 48"):
        methods.build("clip-adapter", small_clip_in_float64(), {"reduction": 49})
    with pytest.raises(UsageError, match="ratio"):
        methods.build("clip-adapter", small_clip_in_float64(), {"ratio": 1.1})


def test_in_bfloat16(small_clip: Clip, images: Tensor) -> None:
    method, labels = methods.build("clip-adapter", small_clip, {"ratio": 0.6}, seed=0), torch.tensor([2, 0, 1])
    classes = method.class_list(NAMES, TEMPLATE)
    exact = method.loss(images, labels, classes).total
    with torch.autocast("cpu", torch.bfloat16):
        loss = method.loss(images, labels, classes).total
    loss.backward()
    assert abs(float(loss.detach() - exact.detach())) < 0.1
    assert all(p.grad is not None and p.grad.dtype == torch.float32 and bool(p.grad.isfinite().all()) for p in method.parameters())
