"""KgCoOp against its plain form."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mmrl import methods
from mmrl.clip import Clip
from mmrl.errors import UsageError
from mmrl.methods.kgcoop import KgCoOp
from tests.oracle.methods.compare import NAMES, TEMPLATE, batch, disturbed, same, same_logits, same_step, small_clip_in_float64
from tests.oracle.methods.kgcoop import plain

OTHER = ("zig zagged", "dog", "one of_the others")


def kgcoop(options: dict[str, Any], template: str | tuple[str, ...] = TEMPLATE) -> KgCoOp:
    method = disturbed("kgcoop", options, template=template)
    assert isinstance(method, KgCoOp)
    return method


@pytest.mark.parametrize(
    ("options", "template", "memory"),
    [
        ({}, TEMPLATE, None),
        ({}, TEMPLATE, 1e-9),  # one class at a time
        ({"teacher_template": "a photo of a {}, a cat."}, TEMPLATE, None),
        ({"reg_weight": 0.5}, ("a {}.", "no {} at all."), None),
        ({"reg_weight": 0.0}, TEMPLATE, None),
        ({"ctx_init": "", "n_ctx": 3, "class_token_position": "middle"}, TEMPLATE, None),
        ({"ctx_init": "", "n_ctx": 2, "csc": True, "class_token_position": "front", "reg_weight": 30.0}, TEMPLATE, 1e-9),
        ({"csc": True, "teacher_template": "{} texture."}, TEMPLATE, None),
    ],
)
def test_equals_its_plain_form(options: dict[str, Any], template: Any, memory: float | None) -> None:
    method, (images, labels) = kgcoop(options, template), batch()
    classes, oracle = method.class_list(NAMES, template, memory_gib=memory), plain(method, NAMES, template)
    loss = method.loss(images, labels, classes)
    same("teacher", classes.held_to, oracle.teacher)
    same_step(method, oracle, loss.total, oracle.loss(images, labels))
    same_logits(method, oracle, loss.logits, images)
    with torch.no_grad():
        same_logits(method, oracle, method.logits(images, method.head(classes), True), images)
        if not method.options.csc:
            other = method.class_list(OTHER, template)
            same_logits(method, plain(method, OTHER, template), method.logits(images, method.head(other), False), images)


def test_the_context_starts_from_a_photo_of_a(small_clip: Clip) -> None:
    words = small_clip.text.words(small_clip.tokenize(["a photo of a"])[0][0, 1:5])
    method = methods.build("kgcoop", small_clip, seed=0)
    assert isinstance(method, KgCoOp) and torch.equal(method.ctx, words)


def test_the_teacher_is_apart_from_the_zero_shot_features() -> None:
    method, clip = kgcoop({"teacher_template": "no {}."}), small_clip_in_float64()
    classes = method.class_list(NAMES, TEMPLATE)
    assert torch.equal(classes.zero_shot, clip.class_list(NAMES, TEMPLATE).zero_shot)
    same("teacher", classes.teacher, clip.class_list(NAMES, "no {}.").zero_shot)
    assert kgcoop({}).class_list(NAMES, TEMPLATE).teacher is None
    with pytest.raises(UsageError, match="of the teacher"):
        kgcoop({"teacher_template": "no place"})


def test_nothing_is_lost_where_the_features_are_the_teachers(small_clip: Clip) -> None:
    """A context that starts from the teacher's own words is at no distance from it before the first step."""
    method = methods.build("kgcoop", small_clip, {"teacher_template": "a photo of a {}."}, seed=0)
    images, labels = batch()
    loss = method.loss(images.float(), labels, method.class_list(NAMES, TEMPLATE))
    assert float(loss.terms["reg_text"].detach()) == pytest.approx(0, abs=1e-6)
