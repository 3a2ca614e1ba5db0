"""ProGrad against its plain form, in float64: loss, both terms, logits and the projected gradient."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from mmrl import methods
from mmrl.clip import Clip
from mmrl.errors import UsageError
from mmrl.methods import Gradients, Task
from mmrl.methods.prograd import ProGrad, projected
from tests.oracle.methods.compare import same, small_clip_in_float64
from tests.oracle.methods.prograd import plain

NAMES = ("cat", "yellow_bird of x", "airplane", "x")  # short: 16 context tokens leave little of the small CLIP's 24
TEMPLATE = "a photo of a {}."


def make(clip: Clip, template: Any = TEMPLATE, **options: Any) -> ProGrad:
    method = methods.build("prograd", clip, options, seed=0, task=Task(NAMES, template))
    assert isinstance(method, ProGrad)
    return method


def differentiation_of(method: ProGrad) -> Any:
    def differentiate(total: Tensor, *, retain_graph: bool = False) -> Gradients:
        return list(torch.autograd.grad(total, list(method.parameters()), retain_graph=retain_graph, allow_unused=True))

    return differentiate


@pytest.mark.parametrize(
    ("options", "template", "memory"),
    [
        ({}, TEMPLATE, None),
        ({}, TEMPLATE, 1e-9),  # one class at a time, each computed again in both backward passes
        ({"n_ctx": 5, "init": "random"}, TEMPLATE, None),
        ({"n_ctx": 8, "teacher_template": "a texture of {}, x."}, TEMPLATE, None),
        ({"n_ctx": 4, "prograd_lambda": 0.3, "temperature": 2.5}, TEMPLATE, None),
        ({"n_ctx": 6, "prograd_lambda": 0.0}, ("{} texture.", "a cat of {}."), None),
    ],
)
def test_equals_its_plain_form(images: Tensor, options: dict[str, Any], template: Any, memory: float | None) -> None:
    images = images.double()
    turned = []
    for seed in range(len(NAMES)):
        method = make(small_clip_in_float64(), template, **options).double()
        with torch.no_grad():
            method.ctx += 0.05 * torch.randn(method.ctx.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        classes, oracle = method.class_list(NAMES, template, memory_gib=memory), plain(method, NAMES, template)
        labels = torch.full((len(images),), seed)  # each class once: to some the teacher objects
        loss, found = method.gradients(images, labels, classes, differentiation_of(method))
        for name, expected in zip(("ce", "kl"), oracle.losses(images, labels)):
            same(name, loss.terms[name], expected)
        assert loss.total is loss.terms["ce"]
        same("training logits", loss.logits, oracle.logits(images))
        same("logits", method.logits(images, method.head(classes), True), oracle.logits(images))
        expected = oracle.gradients(images, labels)["ctx"]
        same("gradient", found[0], expected)
        (alone,) = torch.autograd.grad(oracle.loss(images, labels), list(oracle.parameters.values()))
        turned.append(not torch.allclose(expected, alone))
    assert any(turned) == (options.get("prograd_lambda") != 0)


def test_projection() -> None:
    """Along the teacher's unit vector, only against it, and never with a number that is not finite where there is no direction."""
    g, t = torch.tensor([1.0, -2.0]), torch.tensor([0.0, 3.0])
    assert projected(g, t, 1.0).tolist() == [1, 0]
    assert projected(g, t, 0.5).tolist() == [1, -1]
    assert projected(-g, t, 1.0).tolist() == [-1, 2]
    assert projected(g, torch.zeros(2), 1.0).tolist() == [1, -2]
    assert not projected(g, torch.tensor([torch.inf, 1.0]), 1.0).isfinite().all()  # so that fp16 skips the step


def test_start(small_clip: Clip) -> None:
    """Zeros, then the teacher's words in front of the name; without a template of its own, the data set's first one's."""
    words = small_clip.text.words(small_clip.tokenize(["a photo of a"])[0][0, 1:5])
    method = make(small_clip, n_ctx=6)
    assert method.ctx[:2].abs().sum() == 0 and torch.equal(method.ctx[2:], words)
    assert method.class_list(NAMES, TEMPLATE).teacher is None
    method = make(small_clip, ("{} texture.", TEMPLATE), n_ctx=4, teacher_template=TEMPLATE)
    assert torch.equal(method.ctx, words)
    classes = method.class_list(NAMES, "{} texture.")
    assert classes.teacher is not None and torch.allclose(classes.teacher, method.class_list(NAMES, TEMPLATE).zero_shot, atol=1e-6)
    assert make(small_clip, ("{} texture.", TEMPLATE)).ctx.abs().sum() == 0
    with pytest.raises(UsageError, match="n_ctx to 4 or more"):
        make(small_clip, n_ctx=3)
    with pytest.raises(UsageError, match="of the teacher"):
        make(small_clip, teacher_template="no place")


def test_half_precision(small_clip: Clip, images: Tensor) -> None:
    method = make(small_clip)
    classes, labels = method.class_list(NAMES, TEMPLATE), torch.tensor([2, 0, 1])
    loss, exact_gradients = method.gradients(images, labels, classes, differentiation_of(method))
    with torch.autocast("cpu", torch.bfloat16):
        rough, found = method.gradients(images, labels, classes, differentiation_of(method))
    assert found[0] is not None and exact_gradients[0] is not None and found[0].dtype == torch.float32
    assert rough.total.item() == pytest.approx(loss.total.item(), rel=0.05)
    assert float((found[0] - exact_gradients[0]).norm() / exact_gradients[0].norm()) < 0.2
