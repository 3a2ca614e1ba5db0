"""TCP against its plain form."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mmrl import methods
from mmrl.clip import random_clip
from mmrl.errors import UsageError
from mmrl.methods.tcp import TCP
from tests.conftest import SMALL
from tests.oracle.methods.compare import NAMES, TEMPLATE, batch, disturbed, same, same_logits, same_step, small_clip_in_float64
from tests.oracle.methods.tcp import plain

OTHER = ("zig zagged", "dog", "one of_the others")


def tcp(options: dict[str, Any], template: str | tuple[str, ...] = TEMPLATE) -> TCP:
    method = disturbed("tcp", options, template=template)
    assert isinstance(method, TCP)
    return method


@pytest.mark.parametrize(
    ("options", "template", "memory"),
    [
        ({}, TEMPLATE, None),
        ({}, TEMPLATE, 1e-9),  # one class at a time
        ({"insert_layer": 1, "template": "{} texture."}, TEMPLATE, None),
        ({"insert_layer": 1, "template": "person doing {}, x", "n_ctx": 3, "reduction": 7}, TEMPLATE, 1e-9),  # words behind the tokens
        ({"insert_layer": 1, "insert_weight": 0.3, "template": "cat {}."}, TEMPLATE, None),
        ({"insert_weight": 0.6, "n_ctx": 1, "teacher_template": "a photo of a {}, a cat."}, TEMPLATE, 1e-9),
        ({"ctx_init": "a photo of a thing", "reg_weight": 0.5}, ("a {}.", "no {} at all."), None),
        ({"reg_weight": 0.0, "reduction": 100}, TEMPLATE, None),
    ],
)
def test_equals_its_plain_form(options: dict[str, Any], template: Any, memory: float | None) -> None:
    method, (images, labels) = tcp(options, template), batch()
    classes, oracle = method.class_list(NAMES, template, memory_gib=memory), plain(method, NAMES, template)
    loss = method.loss(images, labels, classes)
    same("teacher", classes.held_to, oracle.teacher)
    same("class tokens", method.class_tokens(classes), oracle.class_tokens())
    same_step(method, oracle, loss.total, oracle.loss(images, labels))
    same_logits(method, oracle, loss.logits, images)
    with torch.no_grad():
        same_logits(method, oracle, method.logits(images, method.head(classes), True), images)
        other = method.class_list(OTHER, template)
        same_logits(method, plain(method, OTHER, template), method.logits(images, method.head(other), False), images)


def test_what_classes_share_runs_once_up_to_the_class_tokens() -> None:
    """In the layer below them nobody reads what the context puts out, so BOT alone, and the words behind the context, are queries there."""
    method = tcp({"template": "thing {}."})
    shapes: dict[int, list[tuple[int, ...]]] = {0: [], 1: [], 2: []}
    hooks = [
        block.ln_2.register_forward_pre_hook(lambda _, args, i=i: shapes[i].append(tuple(args[0].shape[:2])))
        for i, block in enumerate(method.clip.model.transformer.resblocks)
    ]
    classes = method.class_list(NAMES, TEMPLATE)
    for found in shapes.values():
        found.clear()
    method.text_features(classes)
    for hook in hooks:
        hook.remove()
    packed, count = (1, sum(classes.fed.lengths)), len(classes)
    assert method.layer == 2 and shapes == {0: [(1, 6), packed], 1: [(1, 2), packed], 2: [(count, 1)]}


def test_the_published_layer_is_the_default() -> None:
    with torch.device("meta"):
        method = methods.build("tcp", random_clip("ViT-B-16"))
    assert isinstance(method, TCP) and method.layer == 8
    assert sum(p.numel() for p in method.parameters()) == 331_904  # 0.332 M in the paper's Table 6
    clip = small_clip_in_float64()
    for options, message in [
        ({"insert_layer": 3}, "the last text layer .* give 1 to 2"),
        ({"insert_layer": 0}, "insert_layer"),
        ({"insert_weight": 0}, "insert_weight"),
        ({"template": "X X"}, "behind the context"),
        ({"teacher_template": "{} and {}"}, "of the teacher"),
    ]:
        with pytest.raises(UsageError, match=message):
            methods.build("tcp", clip, options)
    with pytest.raises(UsageError, match="has 1 layer"):
        methods.build("tcp", random_clip("ViT-B-32", **{**SMALL, "text_cfg": {**SMALL["text_cfg"], "layers": 1}}))
