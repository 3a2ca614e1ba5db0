"""MetaPrompt against its plain form: a batch's loss and gradients, and the steps on halves of the classes that follow."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from mmrl import methods
from mmrl.clip import Clip
from mmrl.errors import UsageError
from mmrl.methods.metaprompt import MetaPrompt
from tests.oracle.methods.compare import NAMES, TEMPLATE, batch, disturbed, same, same_logits, same_step, small_clip_in_float64
from tests.oracle.methods.metaprompt import plain
from tools.golden.replay import Steps, differentiate

TWO = ("a photo of the {}", "{} texture")


@pytest.mark.parametrize(
    ("options", "template", "memory"),
    [
        ({}, TEMPLATE, None),
        ({"keep_underscores": False}, TEMPLATE, 1e-9),  # one class at a time
        ({"n_ctx_text": 1, "n_ctx_vision": 5, "depth": 1, "frozen_templates": TWO}, TEMPLATE, None),
        ({"n_ctx_text": 4, "n_ctx_vision": 1, "depth": 2, "frozen_templates": TWO, "keep_underscores": False}, TEMPLATE, None),
        ({"n_ctx_text": 3}, TWO, None),
    ],
)
def test_equals_its_plain_form(options: dict[str, Any], template: Any, memory: float | None) -> None:
    method, (images, labels) = disturbed("metaprompt", options, template=template), batch()
    assert isinstance(method, MetaPrompt)
    classes, oracle = method.class_list(NAMES, template, memory_gib=memory), plain(method, NAMES, template)
    loss = method.loss(images, labels, classes)
    same("frozen class features", method.frozen_text(classes), oracle.frozen_text)
    same_step(method, oracle, loss.total, oracle.loss(images, labels))
    same_logits(method, oracle, loss.logits, images)
    with torch.no_grad():
        same_logits(method, oracle, method.logits(images, method.head(classes), True), images)


LABELS = torch.tensor([0, 2, 3, 1, 0])
ORDERS = [[2, 0, 3, 1], [3, 0, 1, 2]]


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.AdamW])
@pytest.mark.parametrize(
    ("options", "count", "labels", "memory"),
    [
        ({}, 4, LABELS, None),
        ({"vision_between": "still", "depth": 2}, 4, LABELS, 1e-9),
        ({"meta_step": 3.0, "n_ctx_text": 1}, 4, LABELS, None),
        ({"meta_step": 0.0}, 4, LABELS, None),
        ({}, 3, LABELS.clamp(max=2), None),  # a half of one class is not held out
        ({}, 2, LABELS.clamp(max=1), None),  # neither is
        ({}, 4, torch.tensor([2, 0, 0, 2, 2]), None),  # of one half in the first batch
    ],
)
def test_steps_on_halves(optimizer: Any, options: dict[str, Any], count: int, labels: Tensor, memory: float | None) -> None:
    """Two batches, so that the momentum of the steps on halves counts in those that follow."""
    names, settings = NAMES[:count], {"lr": 0.01, "weight_decay": 0.1, **({"momentum": 0.9} if optimizer is torch.optim.SGD else {})}
    method = disturbed("metaprompt", options, names)
    assert isinstance(method, MetaPrompt)
    classes, oracle = method.class_list(names, TEMPLATE, memory_gib=memory), plain(method, names, TEMPLATE)
    ours, theirs = optimizer(method.parameters(), **settings), optimizer(oracle.parameters.values(), **settings)
    for number, order in enumerate(ORDERS):
        order = torch.tensor([i for i in order if i < count])
        images = torch.randn(len(labels), 3, 32, 32, generator=torch.Generator().manual_seed(number), dtype=torch.float64)
        loss, found = method.gradients(images, labels, classes, differentiate(method))
        wanted = torch.autograd.grad(oracle.loss(images, labels), list(oracle.parameters.values()))
        for parameter, gradient in zip((*method.parameters(), *oracle.parameters.values()), (*found, *wanted), strict=True):
            parameter.grad = gradient
        ours.step(), theirs.step()
        before = {name: parameter.detach().clone() for name, parameter in method.named_parameters()}
        method.draw = lambda classes, order=order: order  # type: ignore[method-assign, misc]
        method.stepped([(loss.kept[:2], labels[:2]), (loss.kept[2:], labels[2:])], classes, Steps(method, ours))  # as with accumulate=2
        oracle.stepped(images, labels, theirs, order)
        for name, parameter in method.named_parameters():
            same(name, parameter, oracle.parameters[name])
        left_out = count == 2 or (set(labels.tolist()) == {0, 2} and number == 0)
        moved = {name for name, parameter in method.named_parameters() if not torch.equal(before[name], parameter)}
        still = {"ctx_vision"} if options.get("vision_between") == "still" else set()
        assert moved == (set() if left_out else {"ctx_text", "ctx_vision"} - still)


def test_one_image_pass_serves_all_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    method, (images, _) = disturbed("metaprompt", {}), batch(images=5)
    assert isinstance(method, MetaPrompt)
    tower, passes = method.clip.vision, []
    finish = tower.finish
    monkeypatch.setattr(tower, "finish", lambda *given, **how: passes.append(1) or finish(*given, **how))
    classes = method.class_list(NAMES, TEMPLATE)
    loss = method.loss(images, LABELS, classes)
    method.stepped([(loss.kept, LABELS)], classes, Steps(method, torch.optim.SGD(method.parameters(), lr=0.1)))
    assert len(passes) == 2  # prompted and frozen
    assert not loss.kept.requires_grad


def test_the_order_of_the_classes_is_drawn_from_torchs_generator(small_clip: Clip) -> None:
    """So that it is the same in all processes and after a resume."""
    method = methods.build("metaprompt", small_clip, seed=0)
    assert isinstance(method, MetaPrompt)
    torch.manual_seed(3)
    first = method.draw(50)
    assert sorted(first.tolist()) == list(range(50)) and not torch.equal(method.draw(50), first)
    torch.manual_seed(3)
    assert torch.equal(method.draw(50), first)


def test_underscores_stay_in_the_frozen_prompts() -> None:
    clip, names = small_clip_in_float64(), ("cat", "yellow_bird")
    method = methods.build("metaprompt", clip, {"frozen_templates": TWO}, seed=0)
    classes = method.class_list(names, TEMPLATE)
    assert classes.fed.texts == ("X X cat.", "X X yellow bird.")  # what the authors' code speaks there
    expected = clip.encode_text([one.replace("{}", name) for one in TWO for name in names]).unflatten(0, (2, 2)).mean(0)
    same("frozen class features", method.head(classes).frozen, expected / expected.norm(dim=-1, keepdim=True))
    assert methods.build("metaprompt", clip, seed=0).class_list(("cat", "dog"), TEMPLATE).teacher is None
    assert torch.equal(classes.zero_shot, clip.class_list(names, TEMPLATE).zero_shot)


def test_start_and_what_cannot_be(small_clip: Clip) -> None:
    shapes = {name: tuple(value.shape) for name, value in methods.build("metaprompt", small_clip, seed=0).state_dict().items()}
    assert shapes == {"ctx_text": (3, 2, 32), "ctx_vision": (3, 2, 64)}  # of 4 and 3 layers
    for options, message in [
        ({"depth": 4}, "depth is 4, but the shallower tower .* has 3 layers; give 1 to 3"),
        ({"frozen_templates": ["no place"]}, "of the frozen class features"),
        ({"frozen_templates": []}, "frozen_templates"),
        ({"vision_between": "other"}, "vision_between"),
    ]:
        with pytest.raises(UsageError, match=message):
            methods.build("metaprompt", small_clip, options)


def test_half_precision(small_clip: Clip) -> None:
    images = torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    moved = []
    for dtype in (torch.float32, torch.bfloat16):
        method = methods.build("metaprompt", small_clip, seed=0)
        assert isinstance(method, MetaPrompt)
        method.draw = lambda classes: torch.tensor(ORDERS[0])  # type: ignore[method-assign]
        classes, start = method.class_list(NAMES, TEMPLATE), method.ctx_text.detach().clone()
        optimizer = torch.optim.SGD(method.parameters(), lr=0.01)
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype is torch.bfloat16):
            loss = method.loss(images, LABELS, classes)
            method.stepped([(loss.kept, LABELS)], classes, Steps(method, optimizer))
        moved.append(method.ctx_text.detach() - start)
    assert moved[1].dtype == torch.float32 and float((moved[1] - moved[0]).norm() / moved[0].norm()) < 0.3
