"""ProVP against its plain form."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from mmrl import methods
from mmrl.clip import Clip
from mmrl.errors import UsageError
from mmrl.methods.provp import ProVP
from tests.oracle.methods.compare import NAMES, TEMPLATE, batch, disturbed, same, same_logits, same_step, small_clip_in_float64
from tests.oracle.methods.provp import plain


@pytest.mark.parametrize(
    ("options", "template"),
    [
        ({}, TEMPLATE),
        ({"n_ctx_vision": 1, "depth": 1}, TEMPLATE),
        ({"n_ctx_vision": 3, "depth": 2, "progressive_alpha": 0.4}, TEMPLATE),  # then the prompts run on
        ({"n_ctx_vision": 50, "progressive_alpha": 0.0, "ref_loss_weight": 2.5}, TEMPLATE),
        ({"n_ctx_vision": 5, "ref_loss_weight": 0.0, "template": "a texture of {}."}, TEMPLATE),
        ({"n_ctx_vision": 5}, (TEMPLATE, "a photo of a {}.")),
    ],
)
def test_equals_its_plain_form(options: dict[str, Any], template: Any) -> None:
    method, (images, labels) = disturbed("provp", options, template=template), batch()
    assert isinstance(method, ProVP)
    classes, oracle = method.class_list(NAMES, template), plain(method, NAMES, template)
    loss = method.loss(images, labels, classes)
    assert ("ref" in loss.terms) == (options.get("ref_loss_weight") != 0)
    same_step(method, oracle, loss.total, oracle.loss(images, labels))
    same_logits(method, oracle, loss.logits, images)
    with torch.no_grad():
        same_logits(method, oracle, method.logits(images, method.head(classes), True), images)
        same("class features", method.text_features(classes), oracle.text)


def test_the_frozen_image_pass_is_left_out_where_nothing_needs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    passes = []
    for weight in (0.0, 1.0):
        method, (images, labels) = disturbed("provp", {"ref_loss_weight": weight}), batch()
        assert isinstance(method, ProVP)
        tower, count = method.clip.vision, []
        finish = tower.finish
        monkeypatch.setattr(tower, "finish", lambda *given, finish=finish, count=count, **how: count.append(1) or finish(*given, **how))
        method.loss(images, labels, method.class_list(NAMES, TEMPLATE))
        monkeypatch.undo()
        passes.append(len(count))
    assert passes == [1, 2]


def test_start(small_clip: Clip) -> None:
    """Uniform, within the bound that the authors' code has for patches of 14 pixels."""
    method = methods.build("provp", small_clip, seed=0)
    assert isinstance(method, ProVP) and method.prompts.shape == (4, 16, 64)
    bound = (6 / (3 * 14 * 14 + 64)) ** 0.5
    assert 0.95 * bound < float(method.prompts.detach().abs().max()) <= bound
    assert float(method.prompts.detach().std()) == pytest.approx(bound / 3**0.5, rel=0.05)
    assert method.class_list(NAMES, TEMPLATE).teacher is None


def test_class_features_are_those_of_its_own_prompt() -> None:
    clip = small_clip_in_float64()
    method = methods.build("provp", clip, {"template": "a texture of {}."}, seed=0)
    classes = method.class_list(NAMES, TEMPLATE)
    assert torch.equal(classes.zero_shot, clip.class_list(NAMES, TEMPLATE).zero_shot)  # what records and tables compare with
    same("class features", method.head(classes), clip.class_list(NAMES, "a texture of {}.").zero_shot)


def test_what_cannot_be(small_clip: Clip) -> None:
    with pytest.raises(UsageError, match="depth is 5, but the image tower .* has 4 layers; give 1 to 4"):
        methods.build("provp", small_clip, {"depth": 5})
    with pytest.raises(UsageError, match="of the option 'template'"):
        methods.build("provp", small_clip, {"template": "no place"})
    with pytest.raises(UsageError, match="progressive_alpha"):
        methods.build("provp", small_clip, {"progressive_alpha": 1.0})  # no prompt would be read, nor trained


def test_half_precision(small_clip: Clip, images: Tensor) -> None:
    method = methods.build("provp", small_clip, seed=0)
    classes, labels = method.class_list(NAMES, TEMPLATE), torch.tensor([2, 0, 1])
    loss = method.loss(images, labels, classes)
    with torch.autocast("cpu", torch.bfloat16):
        rough = method.loss(images, labels, classes)
    (exact_gradient,) = torch.autograd.grad(loss.total, list(method.parameters()))
    (found,) = torch.autograd.grad(rough.total, list(method.parameters()))
    assert rough.total.item() == pytest.approx(loss.total.item(), rel=0.05)
    assert found.dtype == torch.float32 and float((found - exact_gradient).norm() / exact_gradient.norm()) < 0.2
