"""Frozen passes of a batch of images: computed once for all who ask, with the numbers of a pass of one's own."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mmrl.clip import Clip, Images
from mmrl.methods import Task, build

LOOKING = ("mmrl", "mmrlpp", "promptsrc", "provp", "metaprompt", "maple", "mma", "clip-lora", "coop", "rpo", "plotpp")


@pytest.fixture
def images(small_clip: Clip) -> Tensor:
    return torch.randn(3, 3, small_clip.image_size, small_clip.image_size, generator=torch.Generator().manual_seed(0))


def test_passes_have_the_bits_of_their_own_in_any_order(small_clip: Clip, images: Tensor) -> None:
    depth = small_clip.vision.depth
    alone = [small_clip.vision.run(small_clip.vision.embed(images), 0, layer).main for layer in range(depth)]
    features = small_clip.encode_image(images, normalise=False)
    for order in (range(depth), reversed(range(depth))):
        batch = Images(images)
        for layer in order:
            assert torch.equal(small_clip.enter_image(batch, layer).main, alone[layer])
        assert torch.equal(small_clip.encode_image(batch, normalise=False), features)


def test_nothing_is_computed_twice(small_clip: Clip, images: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    embedded, embed = [], small_clip.vision.embed
    monkeypatch.setattr(small_clip.vision, "embed", lambda pixels: embedded.append(len(pixels)) or embed(pixels))
    batch = Images(images)
    small_clip.enter_image(batch, 1)
    small_clip.encode_image(batch)
    small_clip.encode_image(batch, normalise=False)
    small_clip.enter_image(batch, 1)
    assert embedded == [3]


def test_pixels_are_made_only_where_they_are_needed(small_clip: Clip, images: Tensor) -> None:
    def fail() -> Tensor:
        raise AssertionError("decoded")

    known = Images(images)
    known.entering(small_clip, 1), known.encoded(small_clip)
    batch = Images(fail, states=known.states, features=known.features)
    assert batch.encoded(small_clip) is known.features
    assert torch.equal(batch.entering(small_clip, 1).main, known.states[1].main)
    with pytest.raises(AssertionError, match="decoded"):
        batch.entering(small_clip, 0)
    made = []
    lazy = Images(lambda: made.append(1) or images)
    assert lazy.pixels is images and lazy.pixels is images and made == [1]


@pytest.mark.parametrize("name", LOOKING)
def test_methods_take_the_same_batch_one_after_another(small_clip: Clip, images: Tensor, name: str) -> None:
    """Loss and gradients of a batch that others have looked at are those of one's own, to the bit."""
    names = ("cat", "red panda", "dog")
    method = build(name, small_clip, seed=0)
    method.setup(Task(names, "a photo of a {}."))
    task_classes = method.class_list(names, "a photo of a {}.")
    labels = torch.tensor([0, 1, 2])
    batch = Images(images)
    for layer in range(small_clip.vision.depth):
        batch.entering(small_clip, layer)
    batch.encoded(small_clip)
    found = []
    for seen in (images, Images(images), batch):
        torch.manual_seed(1)
        loss = method.loss(seen, labels, task_classes)
        grads = torch.autograd.grad(loss.total, list(method.parameters()), allow_unused=True)
        found.append([loss.total, *[g for g in grads if g is not None]])
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))
