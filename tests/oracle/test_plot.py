"""PLOT against its plain form."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from mmrl import methods
from mmrl.clip import Clip
from mmrl.errors import UsageError
from mmrl.methods.plot import PLOT, transport_plan
from tests.oracle.methods.compare import NAMES, TEMPLATE, batch, disturbed, same, same_logits, same_step, small_clip_in_float64
from tests.oracle.methods.plot import plain

SHORT = ("x", "zig zagged", "a bird")  # that leave room for 16 tokens among the small CLIP's 24
OTHER = ("zig zagged", "dog", "one of_the others")
POSITIONS = ["end", "middle", "front"]
TEXTS = "a photo of|this is one|one picture of"


def plot(options: dict[str, Any], names: tuple[str, ...] = NAMES) -> PLOT:
    method = disturbed("plot", options, names)
    assert isinstance(method, PLOT)
    return method


def compare(options: dict[str, Any], names: tuple[str, ...] = NAMES, memory: float | None = None, then: tuple[str, ...] = ()) -> int:
    """A step on the classes trained on, and the logits of those and of the list `then`. Returns how many iterations the step took."""
    method = plot(options, names)
    classes = method.class_list(names, TEMPLATE, memory_gib=memory)
    slow, (images, labels) = plain(method, names, TEMPLATE), batch(len(names))
    loss = method.loss(images, labels, classes)
    same_step(method, slow, loss.total, slow.loss(images, labels))
    iterations = slow.iterations
    same_logits(method, slow, loss.logits, images)
    method.eval()
    for some in filter(None, (names, then)):
        with torch.no_grad():
            head = method.head(method.class_list(some, TEMPLATE))
        same_logits(method, plain(method, some, TEMPLATE), method.logits(images, head, True), images)
    return iterations


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"n_prompts": 1},
        {"n_prompts": 3, "ctx_init": TEXTS},
        {"add_pooled_logits": True},
        {"add_pooled_logits": True, "n_prompts": 2, "csc": True},
    ],
)
def test_equal(options: dict[str, Any]) -> None:
    compare({"n_ctx": 4, **options}, then=() if options.get("csc") else OTHER)


@pytest.mark.parametrize("csc", [False, True])
def test_default_length(csc: bool) -> None:
    compare({"csc": csc}, SHORT, then=SHORT[::-1])


@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("csc", [False, True])
def test_places_of_the_context(csc: bool, position: str) -> None:
    options = {"n_ctx": 5, "n_prompts": 3, "csc": csc, "class_token_position": position}
    compare(options, then=(NAMES[2], NAMES[0], NAMES[3]))
    compare(options, names=("of", "of of", "of a"), memory=1e-9)


def test_the_transport() -> None:
    tight = {"n_ctx": 4, "sinkhorn_eps": 0.05}
    taken = {
        "loose": compare({**tight, "sinkhorn_threshold": 0.5}),
        "default": compare(tight),
        "strict": compare({**tight, "sinkhorn_threshold": 1e-8}),
        "all": compare({**tight, "sinkhorn_threshold": 0.0, "sinkhorn_max_iter": 30}),
        "one": compare({**tight, "sinkhorn_max_iter": 1}),
    }
    assert taken["loose"] < taken["default"] < taken["strict"] < 100
    assert taken["all"] == 30 and taken["one"] == 1


def test_a_plan_moves_equal_shares() -> None:
    similarity = torch.rand(6, 9, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    plan = transport_plan(similarity, eps=0.1, max_iter=1000, threshold=1e-14)
    same("patches", plan.sum(2), torch.full((6, 9), 1 / 9, dtype=torch.float64))
    same("prompts", plan.sum(1), torch.full((6, 4), 1 / 4, dtype=torch.float64))


def test_plans_depend_on_what_is_beside_them() -> None:
    """The mean error stops all problems at once: easy ones beside a hard one end it early."""
    hard = torch.rand(1, 9, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    both = torch.cat([hard, torch.zeros(50, 9, 4, dtype=torch.float64)])
    for threshold, least, most in ((1e-2, 1e-3, 0.5), (0.0, 0.0, 1e-12)):
        alone = transport_plan(hard, eps=0.1, max_iter=300, threshold=threshold)
        together = transport_plan(both, eps=0.1, max_iter=300, threshold=threshold)[:1]
        assert least <= float((together - alone).norm() / alone.norm()) <= most


def test_a_plan_that_is_not_finite_makes_the_loss_nan() -> None:
    method = plot({"n_ctx": 4, "sinkhorn_eps": 1e-4})
    images, labels = batch()
    loss = method.loss(images, labels, method.class_list(NAMES, TEMPLATE))
    assert bool(loss.total.isnan()) and bool(loss.logits.isnan().all())


def test_images_need_no_gradient_and_one_pass() -> None:
    method, passes = plot({"n_ctx": 4}), list[bool]()
    images, labels = batch()
    hook = method.clip.model.visual.ln_post.register_forward_hook(lambda _, args, out: passes.append(torch.is_grad_enabled()))
    method.loss(images, labels, method.class_list(NAMES, TEMPLATE))
    hook.remove()
    assert passes == [False]


def test_nothing_but_the_context_is_trained() -> None:
    for csc, shape in ((False, (4, 5, 32)), (True, (len(NAMES), 4, 5, 32))):
        method = plot({"n_ctx": 5, "csc": csc})
        assert {name: tuple(value.shape) for name, value in method.state_dict().items()} == {"ctx": shape}
        assert method.open_vocabulary(method.options) is not csc


def test_where_the_contexts_start() -> None:
    clip = small_clip_in_float64()
    method = methods.build("plot", clip, {"n_prompts": 3, "ctx_init": TEXTS}, seed=0)
    assert isinstance(method, PLOT)
    for ctx, text in zip(method.ctx, TEXTS.split("|")):
        assert torch.equal(ctx.double(), clip.text.words(clip.tokenize([text])[0][0, 1:4]))
    for texts in ("a photo of", "a photo of|a photo of|one picture of"):
        with pytest.raises(UsageError, match="n_prompts is 3; give one for each prompt"):
            methods.build("plot", clip, {"n_prompts": 3, "ctx_init": texts})
    with pytest.raises(UsageError, match="have 3, 2 tokens"):
        methods.build("plot", clip, {"n_prompts": 2, "ctx_init": "a photo of|one picture"})
    with pytest.raises(UsageError, match="'dog' is not one of them"):
        closed = plot({"n_ctx": 4, "csc": True})
        closed.head(closed.class_list(["cat", "dog"], TEMPLATE))


@pytest.mark.parametrize("position", POSITIONS)
def test_in_bfloat16(small_clip: Clip, images: Tensor, position: str) -> None:
    method = methods.build("plot", small_clip, {"n_ctx": 4, "class_token_position": position, "add_pooled_logits": True}, seed=0)
    classes, labels = method.class_list(NAMES, TEMPLATE), torch.tensor([2, 0, 1])
    exact = method.loss(images, labels, classes).total
    with torch.autocast("cpu", torch.bfloat16):
        loss = method.loss(images, labels, classes)
    loss.total.backward()
    assert loss.logits.dtype == torch.float32 and abs(float(loss.total.detach() - exact.detach())) < 0.1
    assert all(p.grad is not None and p.grad.dtype == torch.float32 and bool(p.grad.isfinite().all()) for p in method.parameters())
