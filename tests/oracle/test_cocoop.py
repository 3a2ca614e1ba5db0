"""CoCoOp against its plain form."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from mmrl import methods
from mmrl.clip import Clip, Edit, Prompts
from mmrl.clip.backbone import FROZEN_CHUNK
from mmrl.errors import UsageError
from mmrl.methods.cocoop import CoCoOp
from tests.oracle.methods.cocoop import plain
from tests.oracle.methods.compare import NAMES, TEMPLATE, batch, disturbed, same, same_logits, same_step, small_clip_in_float64

OTHER = ("zig zagged", "dog")


def cocoop(options: dict[str, Any], names: tuple[str, ...] = NAMES) -> CoCoOp:
    method = disturbed("cocoop", options, names)
    assert isinstance(method, CoCoOp)
    return method


def compare(options: dict[str, Any], names: tuple[str, ...] = NAMES, memory: float | None = None, count: int = 3) -> None:
    method = cocoop(options, names)
    classes = method.class_list(names, TEMPLATE, memory_gib=memory)
    slow, (images, labels) = plain(method, names, TEMPLATE), batch(len(names), count)
    loss = method.loss(images, labels, classes)
    same_step(method, slow, loss.total, slow.loss(images, labels))
    same_logits(method, slow, loss.logits, images)
    method.eval()
    same_logits(method, slow, method.logits(images, method.head(classes), True), images)
    with torch.no_grad():
        head = method.head(method.class_list(OTHER, TEMPLATE))
        same_logits(method, plain(method, OTHER, TEMPLATE), method.logits(images, head, False), images)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"reduction": 4},
        {"reduction": 24},
        {"n_ctx": 2},
        {"ctx_init": "a photo of a large thing"},
        {"ctx_init": ""},
        {"ctx_init": "", "n_ctx": 7},
    ],
)
def test_equal(options: dict[str, Any]) -> None:
    compare(options)


def test_equal_for_one_image_as_published() -> None:
    compare({}, count=1)


@pytest.mark.parametrize("memory", [1e-9, 2e-4])
def test_equal_in_chunks(memory: float) -> None:
    compare({}, names=("of", "of of", "of a", "a"), memory=memory)


def test_where_the_context_starts() -> None:
    clip = small_clip_in_float64()
    words = clip.text.words(clip.tokenize(["a photo of a"])[0][0, 1:5])
    default = methods.build("cocoop", clip, seed=0)
    assert isinstance(default, CoCoOp) and torch.equal(default.ctx.double(), words)
    cut = methods.build("cocoop", clip, {"n_ctx": 2}, seed=0)
    assert isinstance(cut, CoCoOp) and torch.equal(cut.ctx.double(), words[:2])
    with pytest.raises(UsageError, match="4 tokens, and n_ctx is 8"):
        methods.build("cocoop", clip, {"n_ctx": 8})


@pytest.mark.parametrize("classes_count", [3, 60, 300])
def test_logits_without_gradient_encode_few_prompts_at_a_time(monkeypatch: pytest.MonkeyPatch, classes_count: int) -> None:
    method = cocoop({}).eval()
    head = method.head(method.class_list([f"thing {i}" for i in range(classes_count)], TEMPLATE))
    images = batch(images=5)[0]
    whole = torch.cat([method.logits(image, head, True) for image in images.split(1)])  # with gradient, one by one
    encode, counts = method.clip.encode_prompts, list[int]()

    def counted(prompts: Prompts, edits: dict[int, Edit]) -> Tensor:
        tokens = edits[0].tokens
        assert tokens is not None
        counts.append(len(tokens) * prompts.classes)
        return encode(prompts, edits)

    monkeypatch.setattr(method.clip, "encode_prompts", counted)
    with torch.no_grad():
        same("logits", method.logits(images, head, True), whole)
    assert max(counts) <= max(FROZEN_CHUNK, classes_count)
    assert len(counts) == {3: 1, 60: 3, 300: 5}[classes_count]


def test_what_an_image_shares_runs_once_for_all_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    """BOT and the context are 5 positions an image; the image tower runs once a batch."""
    method = cocoop({})
    classes = method.class_list(NAMES, TEMPLATE)
    prefixes, bodies, passes = list[tuple[int, ...]](), list[tuple[int, ...]](), list[int]()
    hooks = [
        method.clip.model.transformer.resblocks[1].ln_1.register_forward_pre_hook(
            lambda _, args: (prefixes if args[0].shape[1] == 5 else bodies).append(tuple(args[0].shape[:2]))
        ),
        method.clip.model.visual.conv1.register_forward_pre_hook(lambda _, args: passes.append(len(args[0]))),
    ]
    images, labels = batch()
    method.loss(images, labels, classes)
    for hook in hooks:
        hook.remove()
    own = 3 * sum(classes.fed.lengths)  # positions behind the context, packed
    assert own != 5 and passes == [3]
    assert set(prefixes) == {(3, 5)} and bodies == [(1, own)]


def test_in_bfloat16(small_clip: Clip, images: Tensor) -> None:
    method = methods.build("cocoop", small_clip, seed=0)
    classes, labels = method.class_list(NAMES, TEMPLATE), torch.tensor([2, 0, 1])
    exact = method.loss(images, labels, classes).total
    with torch.autocast("cpu", torch.bfloat16):
        loss = method.loss(images, labels, classes)
    loss.total.backward()
    assert loss.logits.dtype == torch.float32 and abs(float(loss.total.detach() - exact.detach())) < 0.1
    assert all(p.grad is not None and p.grad.dtype == torch.float32 and bool(p.grad.isfinite().all()) for p in method.parameters())
