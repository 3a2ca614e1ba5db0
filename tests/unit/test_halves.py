"""Frozen weights that are held in the compute type: the numbers of autocast, and nobody else's are touched."""

from __future__ import annotations

import copy
import threading
from typing import Any

import pytest
import torch
from torch import Tensor

from mmrl import engine, methods
from mmrl.clip import Clip
from mmrl.methods import Method
from tests.unit.colours import fresh, noise, train

NAMES = ["cat", "big dog", "a very large hat"]


@pytest.fixture
def clip(small_clip: Clip) -> Clip:
    return copy.deepcopy(small_clip)


def step(method: Method, images: Tensor, kind: torch.dtype | None) -> list[Tensor]:
    """Loss and gradients of one step under autocast to `kind`, or without."""
    with torch.autocast("cpu", enabled=False):  # as in a training, whatever surrounds the step here
        classes = method.class_list(NAMES, "a photo of a {}.")
    with torch.autocast("cpu", dtype=kind, enabled=kind is not None):
        total = method.loss(images, torch.arange(len(images)) % 3, classes).total
    with torch.autocast("cpu", enabled=False):
        return [total.detach(), *torch.autograd.grad(total, list(method.parameters()))]


def equal(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(torch.equal(*pair) for pair in zip(a, b, strict=True))


@pytest.mark.parametrize("name", ["mmrl", "mmrlpp", "coop", "maple", "mma", "promptsrc"])
def test_the_numbers_are_those_of_casting_in_every_call(clip: Clip, images: Tensor, name: str) -> None:
    method = methods.build(name, clip, seed=0)
    cast, exact = step(method, images, torch.bfloat16), step(method, images, None)
    with clip.weights_in(torch.bfloat16):
        assert equal(step(method, images, torch.bfloat16), cast) and not equal(cast, exact)
    assert equal(step(method, images, torch.bfloat16), cast) and equal(step(method, images, None), exact)


def test_who_computes_in_another_type_or_thread_is_not_touched(clip: Clip, images: Tensor) -> None:
    method, found = methods.build("mmrl", clip, seed=0), list[Any]()
    exact, other = step(method, images, None), step(method, images, torch.float16)
    before = {name: value.clone() for name, value in clip.model.state_dict().items()}
    with pytest.raises(RuntimeError, match="stopped"), clip.weights_in(torch.bfloat16), torch.autocast("cpu", dtype=torch.bfloat16):
        thread = threading.Thread(target=lambda: found.append(step(method, images, None)))  # autocast is each thread's own
        thread.start()
        thread.join()
        assert equal(found[0], exact) and equal(step(method, images, torch.float16), other)
        with torch.autocast("cpu", enabled=False):
            assert equal(step(method, images, None), exact)
        raise RuntimeError("stopped")
    assert all(not layer.twins for layer in (*clip.vision.layers, *clip.text.layers))
    after = clip.model.state_dict()
    assert all(torch.equal(value, after[name]) and value.dtype == after[name].dtype for name, value in before.items())


def test_they_take_half_of_what_the_products_weights_do_once(clip: Clip) -> None:
    blocks = [*clip.model.visual.transformer.resblocks, *clip.model.transformer.resblocks]
    norms = sum(p.nbytes for block in blocks for norm in (block.ln_1, block.ln_2) for p in norm.parameters())
    with clip.weights_in(torch.bfloat16) as taken, clip.weights_in(torch.bfloat16) as again:
        assert taken == again == (sum(p.nbytes for block in blocks for p in block.parameters()) - norms) // 2
        first = clip.text.layers[0].twins[torch.bfloat16]
        assert first[0] == 2 and first[1].ln_1.weight is blocks[-clip.text.depth].ln_1.weight
        with clip.weights_in(torch.bfloat16):
            pass
        assert clip.text.layers[0].twins[torch.bfloat16] == first
    copy.deepcopy(clip)


def test_a_training_holds_them_and_gives_them_back(clip: Clip, monkeypatch: pytest.MonkeyPatch) -> None:
    seen, loss = list[bool](), methods.get("mmrl").loss

    def watched(self: Method, *batch: Any) -> methods.Loss:
        seen.append(bool(self.clip.text.layers[0].twins))
        return loss(self, *batch)

    monkeypatch.setattr(methods.get("mmrl"), "loss", watched)
    for precision, held in (("fp32", False), ("bf16", True)):
        seen.clear()
        train(fresh(clip), noise(2), engine.FitConfig(epochs=1, warmup_epochs=0, batch_size=2, precision=precision))
        assert seen == [held] * 2 and not clip.text.layers[0].twins
