"""PLOT++ against its plain form."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from mmrl import methods
from mmrl.clip import Clip
from mmrl.errors import UsageError
from mmrl.methods.plotpp import PLOTPP
from tests.oracle.methods.compare import NAMES, TEMPLATE, batch, disturbed, same_logits, same_step, small_clip_in_float64
from tests.oracle.methods.plotpp import plain

OTHER = ("zig zagged", "dog", "one of_the others")
LONGER = "one photo of|this is a picture of|a photo of"  # the rest of the second stays
SHORTER = "one photo of the|this is a|a photo of a"  # the others' contexts take tokens of the class name


def plotpp(options: dict[str, Any], names: tuple[str, ...] = NAMES) -> PLOTPP:
    method = disturbed("plotpp", options, names)
    assert isinstance(method, PLOTPP)
    return method


def compare(options: dict[str, Any], names: tuple[str, ...] = NAMES, memory: float | None = None) -> None:
    """A step on the classes trained on, and the logits of those and of others."""
    method = plotpp(options, names)
    classes = method.class_list(names, TEMPLATE, memory_gib=memory)
    slow, (images, labels) = plain(method, names, TEMPLATE), batch(len(names))
    loss = method.loss(images, labels, classes)
    same_step(method, slow, loss.total, slow.loss(images, labels))
    same_logits(method, slow, loss.logits, images)
    method.eval()
    for some in (names, OTHER):
        with torch.no_grad():
            head = method.head(method.class_list(some, TEMPLATE))
        same_logits(method, plain(method, some, TEMPLATE), method.logits(images, head, True), images)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"n_prompts": 1, "n_vision_prompts": 1, "n_ctx_vision": 1},
        {"n_prompts": 2, "n_vision_prompts": 3},  # the first two texts
        {"n_prompts": 3, "n_vision_prompts": 2, "n_ctx_vision": 5, "add_pooled_logits": True},
        {"ctx_init": "", "n_prompts": 5, "n_ctx": 3},
        {"ctx_init": "a photo|a photo|one picture", "n_prompts": 3},
        {"trained": "vision", "add_pooled_logits": True},
        {"trained": "vision", "ctx_init": "", "n_ctx": 2},
    ],
)
def test_equal(options: dict[str, Any]) -> None:
    compare(options)


@pytest.mark.parametrize("texts", [LONGER, SHORTER])
def test_texts_of_other_lengths(texts: str) -> None:
    names = ("cat", "one yellow_bird of prey", "zig zagged")
    compare({"ctx_init": texts, "n_prompts": 3}, names)
    compare({"ctx_init": texts, "n_prompts": 3}, names, memory=1e-9)


def test_equal_with_alike_names_and_in_chunks() -> None:
    compare({}, names=("of", "of of", "of a"))
    compare({"n_prompts": 2}, memory=1e-9)


def test_the_transport() -> None:
    for options in ({"sinkhorn_threshold": 0.0, "sinkhorn_max_iter": 30}, {"sinkhorn_eps": 0.05, "sinkhorn_threshold": 1e-8}):
        compare(options)


def test_where_the_contexts_start() -> None:
    clip = small_clip_in_float64()
    method = methods.build("plotpp", clip, {"ctx_init": " one photo of the | this is a|a photo of a bird", "n_prompts": 3}, seed=0)
    assert isinstance(method, PLOTPP) and method.ctx.shape == (3, 4, 32) and method.ctx_vision.shape == (4, 2, 64)
    ids, end = clip.tokenize(["one photo of the", "this is a", "a photo of a bird"])
    assert torch.equal(method.ctx.double(), clip.text.words(ids[:, 1:5])) and int(end[1]) == 4  # its end-of-text token is the fourth
    texts = method.class_list(("yellow_bird",), TEMPLATE).fed.texts
    assert texts == ("one photo of the yellow bird.", "this is a yellow bird.", "a photo of a bird yellow bird.")
    assert float(method.ctx_vision.detach().std()) == pytest.approx(0.02, rel=0.2)


def test_what_is_trained() -> None:
    joint, vision = plotpp({}), plotpp({"trained": "vision"})
    assert (joint.modality, vision.modality) == ("V, L", "V")
    assert [name for name, _ in joint.named_parameters()] == ["ctx", "ctx_vision"]
    assert [name for name, _ in vision.named_parameters()] == ["ctx_vision"]
    assert joint.state_dict().keys() == vision.state_dict().keys()  # so that one goes on where the other ended
    joint.load_state_dict(vision.state_dict())
    assert torch.equal(joint.ctx, vision.ctx)
    assert not vision.text_features(vision.class_list(NAMES, TEMPLATE)).prompts.requires_grad


def test_what_cannot_be() -> None:
    clip = small_clip_in_float64()
    with pytest.raises(UsageError, match="ctx_init has 2 texts, and n_prompts is 4; give one for each prompt"):
        methods.build("plotpp", clip, {"ctx_init": "a photo of|one photo of"})
    with pytest.raises(UsageError, match="whose first text is empty"):
        methods.build("plotpp", clip, {"ctx_init": "|a photo of", "n_prompts": 2})
    method = methods.build("plotpp", clip, {"ctx_init": "one photo of the same thing|a", "n_prompts": 2}, seed=0)
    with pytest.raises(UsageError, match="of the prompt 'a x.' nothing is left beside the 6 learned tokens"):
        method.class_list(("one photograph of many birds", "x"), TEMPLATE)
    with pytest.raises(UsageError, match="the class list is empty"):
        method.class_list((), TEMPLATE)


def test_in_bfloat16(small_clip: Clip, images: Tensor) -> None:
    method = methods.build("plotpp", small_clip, {"add_pooled_logits": True}, seed=0)
    classes, labels = method.class_list(NAMES, TEMPLATE), torch.tensor([2, 0, 1])
    exact = method.loss(images, labels, classes).total
    with torch.autocast("cpu", torch.bfloat16):
        loss = method.loss(images, labels, classes)
    loss.total.backward()
    assert loss.logits.dtype == torch.float32 and abs(float(loss.total.detach() - exact.detach())) < 0.1
    assert all(p.grad is not None and p.grad.dtype == torch.float32 and bool(p.grad.isfinite().all()) for p in method.parameters())
