"""PromptSRC against its plain form, in float64: loss, logits, every gradient, and the average over epochs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from mmrl import methods
from mmrl.clip import Clip
from mmrl.errors import UsageError
from mmrl.methods import Task
from mmrl.methods.promptsrc import TEACHER_TEMPLATES, PromptSRC, epoch_weights
from tests.oracle.methods.compare import NAMES, TEMPLATE, batch, disturbed, same, same_logits, same_step, small_clip_in_float64
from tests.oracle.methods.promptsrc import averaged, plain

FEW = ("a photo of a {}.", "the {} in a video game.", "itap of the {}.")


def make(clip: Clip, **options: Any) -> PromptSRC:
    method = methods.build("promptsrc", clip, {"teacher_templates": FEW, **options}, seed=0, task=Task(NAMES, TEMPLATE))
    assert isinstance(method, PromptSRC)
    return method


@pytest.mark.parametrize(
    ("options", "memory"),
    [
        ({"teacher_templates": TEACHER_TEMPLATES}, None),  # the default
        ({}, 1e-9),  # one class at a time
        ({"n_ctx_text": 2, "n_ctx_vision": 1, "depth_text": 2, "depth_vision": 3}, None),  # 'of a' stays
        ({"n_ctx_text": 3, "ctx_init": "", "depth_text": 1, "depth_vision": 2}, None),
        ({"n_ctx_text": 1, "n_ctx_vision": 6, "depth_text": 3, "depth_vision": 1}, None),
        ({"text_loss_weight": 0.0, "image_loss_weight": 3.0, "logit_loss_weight": 0.5}, None),
        ({"text_loss_weight": 2.0, "image_loss_weight": 0.0, "logit_loss_weight": 7.0, "teacher_templates": FEW[:1]}, None),
    ],
)
def test_equals_its_plain_form(options: dict[str, Any], memory: float | None) -> None:
    method, (images, labels) = disturbed("promptsrc", {"teacher_templates": FEW, **options}), batch()
    assert isinstance(method, PromptSRC)
    classes, oracle = method.class_list(NAMES, TEMPLATE, memory_gib=memory), plain(method, NAMES, TEMPLATE)
    loss = method.loss(images, labels, classes)
    same("teacher", method.teacher(classes), oracle.teacher)
    same_step(method, oracle, loss.total, oracle.loss(images, labels))
    same_logits(method, oracle, loss.logits, images)
    with torch.no_grad():
        same_logits(method, oracle, method.logits(images, method.head(classes), True), images)


def test_average_over_epochs() -> None:
    """Also over an interruption, after which only what a checkpoint has is there; and a second training starts anew."""
    method = make(small_clip_in_float64(), gpa_mean=2.0, gpa_std=0.8).double()
    assert not {name for name in method.state_dict() if name.startswith("sum_")}  # no part of an adapter
    generator = torch.Generator().manual_seed(0)
    for _ in range(2):
        epochs = []
        for epoch in range(1, 5):
            with torch.no_grad():
                for parameter in method.parameters():
                    parameter += 0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            epochs.append({name: parameter.detach().clone() for name, parameter in method.named_parameters()})
            method.epoch_ended(epoch, 4)
            if epoch == 2:
                kept = {**dict(method.named_parameters()), **dict(method.named_buffers())}
                method = make(small_clip_in_float64(), gpa_mean=2.0, gpa_std=0.8).double()
                with torch.no_grad():
                    for name, value in {**dict(method.named_parameters()), **dict(method.named_buffers())}.items():
                        value.copy_(kept[name])
            if epoch < 4:
                assert all(torch.equal(parameter, epochs[-1][name]) for name, parameter in method.named_parameters())
        expected = averaged(epochs, 2.0, 0.8)
        for name, parameter in method.named_parameters():
            same(name, parameter, expected[name])


def test_weights_of_epochs() -> None:
    assert epoch_weights(3, 2, 1) == pytest.approx([0.2740686, 0.4518628, 0.2740686], abs=1e-7)
    assert epoch_weights(1, 15, 1) == [1]
    assert epoch_weights(3, 1e5, 1e-3) == [0, 0, 1]  # every density underflows


def test_the_teacher_is_made_once_and_only_for_training(small_clip: Clip, images: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    method, encoded = make(small_clip), []
    encode = small_clip.encode_text
    monkeypatch.setattr(small_clip, "encode_text", lambda texts, **how: encoded.append(len(texts)) or encode(texts, **how))
    classes = method.class_list(NAMES, TEMPLATE)
    method.logits(images, method.head(classes), True)
    assert not encoded
    for _ in range(2):
        method.loss(images, torch.tensor([0, 1, 2]), classes)
    assert encoded == [len(NAMES)] * len(FEW)  # never more than one template's prompts
    assert not method.teacher(classes).requires_grad


def test_depths_and_starts(small_clip: Clip) -> None:
    method = make(small_clip)
    shapes = {name: tuple(parameter.shape) for name, parameter in method.named_parameters()}
    assert shapes == {"ctx_text": (4, 32), "ctx_vision": (4, 64), "deep_text": (2, 4, 32), "deep_vision": (3, 4, 64)}
    assert set(make(small_clip, depth_text=1, depth_vision=1).state_dict()) == {"ctx_text", "ctx_vision"}
    assert len(TEACHER_TEMPLATES) == len(set(TEACHER_TEMPLATES)) == 60
    for options, message in [
        ({"depth_text": 4}, "has 3 layers"),
        ({"depth_vision": 5}, "has 4 layers"),
        ({"n_ctx_text": 5}, "has 4 tokens"),
        ({"teacher_templates": ["x"]}, "of the teacher"),
        ({"teacher_templates": []}, "teacher_templates"),
    ]:
        with pytest.raises(UsageError, match=message):
            make(small_clip, **options)


def test_half_precision(small_clip: Clip, images: Tensor) -> None:
    method = make(small_clip)
    classes, labels = method.class_list(NAMES, TEMPLATE), torch.tensor([2, 0, 1])
    with torch.autocast("cpu", torch.bfloat16):
        rough = method.loss(images, labels, classes)
    rough.total.backward()
    found = {name: parameter.grad.clone() for name, parameter in method.named_parameters() if parameter.grad is not None}
    method.zero_grad()
    loss = method.loss(images, labels, classes)
    loss.total.backward()
    assert method.teacher(classes).dtype == torch.float32
    assert rough.total.item() == pytest.approx(loss.total.item(), rel=0.05)
    for name, parameter in method.named_parameters():
        assert parameter.grad is not None and found[name].dtype == torch.float32
        assert float((found[name] - parameter.grad).norm() / parameter.grad.norm()) < 0.2, name
