"""CLIP-LoRA against its plain form."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from mmrl import methods
from mmrl.clip import Clip
from mmrl.methods.clip_lora import CLIPLoRA, layers_at
from tests.oracle.methods.clip_lora import changed_layers, plain
from tests.oracle.methods.compare import NAMES, TEMPLATE, batch, disturbed, same, same_logits, same_step, small_clip_in_float64
from tools.golden.dropout import MASK, replayed_dropout


def lora(options: dict[str, Any], template: str | tuple[str, ...] = TEMPLATE) -> CLIPLoRA:
    method = disturbed("clip-lora", options, template=template)
    assert isinstance(method, CLIPLoRA)
    return method


def masks(method: CLIPLoRA, images: int) -> dict[str, Tensor]:
    """Kept inputs of every projection in every layer, as in the golden files."""
    clip, generator = method.clip, torch.Generator().manual_seed(4)
    patches = clip.vision.visual.positional_embedding.shape[0]
    towers = (("visual.", patches, images, clip.vision), ("", clip.context_length, len(NAMES), clip.text))
    return {
        MASK.format(tower=prefix, layer=layer, part=part): (
            torch.rand(positions, count, tower.width, generator=generator) >= method.options.dropout
        ).byte()
        for prefix, positions, count, tower in towers
        for layer in range(tower.depth)
        for part in "qkv"
    }


def compare(options: dict[str, Any], template: str | tuple[str, ...] = TEMPLATE, memory: float | None = None) -> None:
    method = lora(options, template)
    classes, slow, (images, labels) = method.class_list(NAMES, template, memory_gib=memory), plain(method, NAMES, template), batch()
    if method.options.dropout:
        slow.masks = masks(method, len(images))
        with replayed_dropout(method, slow.masks, classes):
            same_step(method, slow, method.loss(images, labels, classes).total, slow.loss(images, labels))
    else:
        loss = method.loss(images, labels, classes)
        same_step(method, slow, loss.total, slow.loss(images, labels))
        same_logits(method, slow, loss.logits, images)
    same_logits(method, slow, method.eval().logits(images, method.head(classes), True), images)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"matrices": "v", "dropout": 0.5},
        {"encoder": "text"},
        {"encoder": "vision", "position": "half-up"},
        {"position": "up"},
        {"rank": 3, "alpha": 4.0, "dropout": 0.0},
        {"matrices": "qk", "dropout": 0.0, "position": "bottom"},
        {"matrices": "qv", "dropout": 0.0, "position": "mid"},
        {"matrices": "kv", "dropout": 0.0, "position": "top3"},
        {"matrices": "q", "dropout": 0.0, "position": "half-bottom", "encoder": "text"},
        {"matrices": "k", "dropout": 0.0, "encoder": "vision", "template": None},
        {"dropout": 0.0, "detach_input": True},
        {"dropout": 0.0, "template": "a drawing of one {} on a wall"},
    ],
)
def test_equal(options: dict[str, Any]) -> None:
    compare(options)


def test_equal_with_several_templates_and_in_chunks() -> None:
    compare({"template": None, "dropout": 0.0}, template=(TEMPLATE, "a {}."))
    compare({"dropout": 0.0, "position": "half-up"}, memory=1e-9)


def test_chunks_draw_the_same_dropout_again_in_the_backward_pass() -> None:
    method, (images, labels) = lora({"encoder": "text"}), batch()
    classes = method.class_list(NAMES, TEMPLATE, memory_gib=1e-9)
    first = dict(method.named_parameters())["text.q.A"]
    direction = torch.randn(first.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)

    def loss() -> Tensor:
        torch.manual_seed(6)
        return method.loss(images, labels, classes).total

    (gradient,) = torch.autograd.grad(loss(), [first])
    first.data += 1e-6 * direction
    above = loss().detach()  # with gradients kept, as the order of the draws is that of the chunks
    first.data -= 2e-6 * direction
    slope = (above - loss().detach()) / 2e-6
    torch.testing.assert_close((gradient * direction).sum(), slope, rtol=1e-5, atol=0)


def test_dropout_is_drawn_for_each_class_and_only_in_training() -> None:
    method, seen = lora({"dropout": 0.5}), []
    classes, drop = method.class_list(NAMES, TEMPLATE), method.drop
    object.__setattr__(method, "drop", lambda x, *where: seen.append(drop(x, *where)) or seen[-1])
    method.head(classes)
    assert all(len(x) == len(NAMES) for x in seen)
    assert 0.4 < float(torch.cat([(x == 0).double().mean().view(1) for x in seen]).mean()) < 0.6
    assert not torch.equal(seen[0][0], seen[0][1])  # BOT and what follows, which the prompts have in common
    seen.clear()
    method.eval().head(classes)
    assert len(seen[0]) == 1 and all(bool((x != 0).all()) for x in seen)
    once = method.head(classes)
    same("class features", method.head(classes), once)


def test_layers() -> None:
    assert [list(layers_at(at, 12)) for at in ("bottom", "mid", "up")] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]
    for at in ("all", "bottom", "mid", "up", "half-bottom", "half-up", "top3"):
        assert all(len(layers_at(at, depth)) for depth in range(1, 30))
        assert all(list(layers_at(at, depth)) == changed_layers(at, depth) for depth in range(3, 30))
        assert all(set(layers_at(at, depth)) <= set(range(depth)) for depth in range(1, 30))


def test_class_features_are_constant_where_the_image_tower_alone_is_changed() -> None:
    clip, method = small_clip_in_float64(), lora({"encoder": "vision"})
    classes = method.class_list(NAMES, TEMPLATE)
    assert torch.equal(classes.zero_shot, clip.class_list(NAMES, TEMPLATE).zero_shot)
    same("class features", method.text_features(classes), clip.encode_text([f"a photo of a {name.replace('_', ' ')}." for name in NAMES]))
    assert {name.split(".")[0] for name, _ in method.named_parameters()} == {"visual"} and method.modality == "V"


def test_starts_as_the_frozen_clip() -> None:
    method, (images, _) = methods.build("clip-lora", small_clip_in_float64(), {"template": None}, seed=0).double().eval(), batch()
    classes = method.class_list(NAMES, TEMPLATE)
    same("logits", method.logits(images, method.head(classes), True), 100 * method.clip.encode_image(images) @ classes.zero_shot.T)


@pytest.mark.parametrize("matrices", ["qkv", "q"])
def test_in_bfloat16(small_clip: Clip, images: Tensor, matrices: str) -> None:
    method = methods.build("clip-lora", small_clip, {"dropout": 0.0, "matrices": matrices}, seed=0)
    classes, labels = method.class_list(NAMES, TEMPLATE), torch.tensor([2, 0, 1])
    exact = method.loss(images, labels, classes).total
    with torch.autocast("cpu", torch.bfloat16):
        loss = method.loss(images, labels, classes).total
    loss.backward()
    assert abs(float(loss.detach() - exact.detach())) < 1
    assert all(p.grad is not None and p.grad.dtype == torch.float32 and bool(p.grad.isfinite().all()) for p in method.parameters())
