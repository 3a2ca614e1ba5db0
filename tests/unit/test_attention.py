"""Kernels and packing change no number: a causal mask without a tensor, half precision on a processor, prompts without padding."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from mmrl import methods
from mmrl.clip import Clip, Edit, Edits, attention, backbone
from mmrl.clip.attention import attend, causal_mask
from mmrl.clip.packing import packing_of
from tests.oracle.pair import relative_error

PROMPTS = ["a cat.", "a photo of a very large dog with a hat.", "x", "a big cat.", "a very large cat."]


@pytest.fixture(scope="module")
def exact_clip(small_clip: Clip) -> Clip:
    clip = copy.deepcopy(small_clip)
    clip.model.double()
    return clip


def random(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64).to(dtype)


def with_gradients(run: Callable[..., Tensor], *inputs: Tensor) -> list[Tensor]:
    """What `run` makes of `inputs`, and the gradients of a weighted sum of it in them."""
    free = [each.clone().requires_grad_() for each in inputs]
    out = run(*free)
    return [out.detach(), *torch.autograd.grad((out.float() * torch.arange(out.shape[-1])).sum(), free)]


class Operations(TorchDispatchMode):
    """The names of what is executed."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


# ---- kernels ----


@pytest.mark.parametrize(("queries", "keys"), [(1, 6), (4, 9), (5, 5)])
def test_a_causal_mask_is_aligned_at_the_last_query_and_key(monkeypatch: pytest.MonkeyPatch, queries: int, keys: int) -> None:
    q, k, v = random(2, 3, queries, 8), random(2, 3, keys, 8), random(2, 3, keys, 8) + 1
    allowed = torch.tensor([[key <= keys - queries + query for key in range(keys)] for query in range(queries)])
    assert torch.equal(causal_mask(queries, keys - queries, q.device), allowed)
    scores = (q @ k.transpose(-2, -1) / 8**0.5).masked_fill(~allowed, float("-inf"))
    by_hand = scores.softmax(-1) @ v
    masked = with_gradients(lambda *qkv: attend(*qkv, allowed), q, k, v)
    assert relative_error(masked[0], by_hand) < 1e-12
    monkeypatch.setattr(attention, "_MASKLESS_TYPES", (torch.float64,))
    for devices in ((), ("cpu",)):  # with a tensor, and as a GPU does it: torch then chooses what a device without such a kernel runs
        monkeypatch.setattr(attention, "MASKLESS", devices)
        found = with_gradients(lambda *qkv: attend(*qkv, "causal"), q, k, v)
        assert all(relative_error(*pair) < 1e-12 for pair in zip(found, masked, strict=True))


@pytest.mark.parametrize("masked", [False, True])
def test_half_precision_on_a_processor_is_as_near_as_its_rounding(masked: bool) -> None:
    exact = random(2, 3, 4, 16), random(2, 3, 9, 16), random(2, 3, 9, 16)
    half = [each.bfloat16() for each in exact]
    mask = causal_mask(4, 5, torch.device("cpu")) if masked else None
    true = with_gradients(lambda *qkv: F.scaled_dot_product_attention(*qkv, attn_mask=mask), *(each.double() for each in half))
    found = with_gradients(lambda *qkv: attend(*qkv, mask), *half)
    assert all(each.dtype == torch.bfloat16 for each in found)
    assert all(relative_error(each.double(), truth) < 8e-3 for each, truth in zip(found, true, strict=True))
    with torch.autocast("cpu", dtype=torch.bfloat16):  # which decides the type, whatever comes in
        assert torch.equal(attend(*(each.float() for each in half), mask), found[0])


@pytest.mark.parametrize("name", ["mmrl", "mmrlpp", "coop", "maple"])
def test_a_step_in_bf16_meets_no_slow_kernel(small_clip: Clip, images: Tensor, name: str) -> None:
    """torch's fused attention is slow backward in half precision on a processor; open_clip's own attention is never called."""
    method = methods.build(name, small_clip, seed=0)
    classes = method.class_list(["cat", "big dog", "a very large hat"], "a photo of a {}.")
    with Operations() as seen, torch.autocast("cpu", dtype=torch.bfloat16):
        method.loss(images, torch.arange(len(images)) % 3, classes).total.backward()
    assert not [each for each in seen.names if "scaled_dot_product" in each or "multi_head" in each or "transformer" in each]
    assert {"bmm", "_softmax", "_softmax_backward_data"} <= seen.names
    with Operations() as seen:
        method.loss(images, torch.arange(len(images)) % 3, classes).total.backward()
    assert any("flash_attention" in each for each in seen.names)  # in float32 it is the fast one


# ---- packing ----


def test_packing_and_padding_are_each_others_inverse() -> None:
    packing = packing_of((2, 1, 3), 3, torch.device("cpu"))
    assert packing is not None and packing.rows.tolist() == [0, 1, 3, 6, 7, 8] and packing.ends.tolist() == [1, 2, 5]
    x = random(3, 3, 4)
    inside = torch.tensor([[True, True, False], [True, False, False], [True] * 3]).unsqueeze(-1)
    assert torch.equal(packing.pack(x)[0], x[inside[..., 0]]) and torch.equal(packing.pad(packing.pack(x)), x * inside)
    assert torch.equal(with_gradients(lambda y: packing.pad(packing.pack(y)), x)[1], inside * torch.arange(4.0, dtype=torch.float64))
    assert packing_of((3, 3), 3, torch.device("cpu")) is None  # nothing is padding


def cases(d: int) -> dict[str, tuple[Callable[[Tensor], Edits], tuple[int, ...]]]:
    """Edits made of a free tensor, and its shape."""
    n = len(PROMPTS)
    return {
        "tokens": (lambda t: {1: Edit(t[0]), 2: Edit(t[1], keep=0.3)}, (2, 3, d)),
        "tokens of each class": (lambda t: {1: Edit(t)}, (n, 2, d)),
        "sets of tokens": (lambda t: {1: Edit(t)}, (3, 1, 2, d)),
        "sets of tokens of each class": (lambda t: {1: Edit(t)}, (3, n, 2, d)),
        "readers": (lambda t: {1: Edit(readers=t)}, (3, d)),
        "beside a layer": (lambda t: {1: Edit(parallel=lambda x: x @ t)}, (d, d)),
        "projections": (lambda t: {1: Edit(qkv=lambda x, part: x @ t[:, "qkv".index(part) :][:, :d])}, (d, d + 2)),
    }


@pytest.mark.parametrize("name", cases(1))
@pytest.mark.parametrize("start", [0, 1])
@pytest.mark.parametrize("chunk", [None, 2])
def test_packed_prompts_give_what_padded_ones_give(
    exact_clip: Clip, monkeypatch: pytest.MonkeyPatch, name: str, start: int, chunk: int | None
) -> None:
    make, shape = cases(exact_clip.text.width)[name]
    found = {}
    for way in ("packed", "padded"):
        if way == "padded":
            monkeypatch.setattr(backbone, "packing_of", lambda *_: None)
        prompts = exact_clip.prompts(PROMPTS, start=start)
        prompts = replace(prompts, chunk=chunk)
        found[way] = with_gradients(lambda t: exact_clip.encode_prompts(prompts, make(t)), 0.1 * random(*shape))  # noqa: B023
        with torch.no_grad():
            found[way].append(exact_clip.encode_prompts(prompts, make(0.1 * random(*shape))))
    assert all(relative_error(*pair) < 1e-9 for pair in zip(found["packed"], found["padded"], strict=True))


def test_a_prompt_costs_its_own_tokens(small_clip: Clip) -> None:
    """Products with weights: as many classes of one word more each add as much as that word, whatever the longest prompt is."""

    def cost(names: list[str]) -> int:
        prompts = small_clip.prompts([f"a {name}." for name in names])
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            small_clip.encode_prompts(prompts)
        return sum(n for operation, n in counter.get_flop_counts()["Global"].items() if "addmm" in str(operation))

    short, longer = ["cat", "dog", "hat", "x", "big red fox"], ["cat", "big dog", "big hat", "x", "big red fox"]
    d, depth = small_clip.text.width, small_clip.text.depth
    assert cost(longer) - cost(short) == 2 * 2 * d * d * (12 * (depth - 1) + 2)  # two tokens; the last layer has their keys and values


@pytest.mark.parametrize("name", ["mmrl", "mmrlpp", "coop", "kgcoop", "maple", "promptsrc", "tcp", "mma", "clip-lora"])
def test_a_loss_and_its_gradients_wait_for_no_number(small_clip: Clip, images: Tensor, name: str) -> None:
    """Nothing is read back from the device: on a GPU each such operation stops the step until all before it is done."""
    method = methods.build(name, small_clip, seed=0)
    classes = method.class_list(["cat", "big dog", "a very large hat"], "a photo of a {}.")
    labels = torch.arange(len(images)) % 3
    method.loss(images, labels, classes)  # what the class list keeps of its packing is made once
    with Operations() as seen:
        method.loss(images, labels, classes).total.backward()
    assert not seen.names & {"_local_scalar_dense", "item", "nonzero", "is_nonzero", "equal", "masked_select"}
    with Operations() as seen:
        bool(torch.ones(2).nonzero().any())
    assert seen.names >= {"_local_scalar_dense", "nonzero"}  # they would be seen
