"""What the fast path leaves out, counted: floating-point operations and shapes are exact, so no timing is involved.

That the savings change no number is the business of `test_random.py`; here they are taken.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.memory import saved_bytes
from mmrl import methods
from mmrl.clip import ClassList, Clip, random_clip
from mmrl.methods.mmrl import RepresentationMethod
from tests.oracle.pair import oracle_of, relative_error

LAYERS, WIDTH, EMBED, PATCHES, TOKENS, CONTEXT = 4, 32, 24, 16, 3, 77
PROJECTION = 2 * WIDTH * EMBED  # operations of projecting one feature
EMBEDDING = 2 * PATCHES * WIDTH * 3 * 8 * 8  # of the patches of one image
TEMPLATE = "a photo of a {}."
ATTENTION = "scaled_dot_product"


def make_clip(context: int = CONTEXT) -> Clip:
    return random_clip(
        "ViT-B-32",
        embed_dim=EMBED,
        vision_cfg={"layers": LAYERS, "width": WIDTH, "head_width": 16, "patch_size": 8, "image_size": 32},
        text_cfg={"layers": LAYERS, "width": WIDTH, "heads": 2, "context_length": context},
    )


@pytest.fixture(scope="module")
def clip() -> Clip:
    return make_clip()


def build(clip: Clip, name: str = "mmrl", **options: Any) -> RepresentationMethod:
    method = methods.build(name, clip, {"first_layer": 2, "rep_tokens": TOKENS, "rep_dim": 8, **options}, seed=0)
    assert isinstance(method, RepresentationMethod)
    return method


def things(count: int) -> list[str]:
    return [f"thing {chr(97 + i // 26)} {chr(97 + i % 26)}" for i in range(count)]


def batch(size: int = 2) -> Tensor:
    return torch.randn(size, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def flops(run: Callable[[], object], *, attention: bool = True) -> int:
    """Floating-point operations of `run`; without `attention`, of the products with weights alone."""
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # one fused operation that the counter does not know
    try:
        plain = sdpa_kernel(SDPBackend.MATH) if attention else nullcontext()  # not every torch counts fused attention on a CPU
        with plain, FlopCounterMode(display=False) as counter:
            run()
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)
    counts = counter.get_flop_counts()["Global"]
    return sum(count for operation, count in counts.items() if attention or ATTENTION not in str(operation))


@contextmanager
def mlp_shapes(blocks: Iterable[nn.Module]) -> Iterator[list[list[tuple[int, ...]]]]:
    """Per layer, the (batch, positions) that each call of its MLP gets."""
    seen: list[list[tuple[int, ...]]] = []
    hooks = []
    for block in blocks:
        calls: list[tuple[int, ...]] = []
        seen.append(calls)
        hooks.append(block.mlp.register_forward_pre_hook(lambda _, args, calls=calls: calls.append(tuple(args[0].shape[:-1]))))
    yield seen
    for hook in hooks:
        hook.remove()


def image_blocks(clip: Clip) -> nn.ModuleList:
    return clip.model.visual.transformer.resblocks


def text_blocks(clip: Clip) -> nn.ModuleList:
    return clip.model.transformer.resblocks


def body_length(classes: ClassList) -> int:
    """Positions that each class has of its own."""
    return classes.fed.hidden.body.shape[1]


def shared_words(classes: ClassList) -> int:
    """Words behind BOT that all prompts share."""
    return classes.fed.hidden.prefix.shape[1] - 1


# ---- the plain side ----


@pytest.mark.parametrize("name", ["mmrl", "mmrlpp"])
def test_plain_side_encodes_zero_shot_prompts_once_and_zero_shot_images_in_every_step(clip: Clip, name: str) -> None:
    method = build(clip, name)
    classes = method.class_list(things(5), TEMPLATE)
    with mlp_shapes(image_blocks(clip)) as image, mlp_shapes(text_blocks(clip)) as text:
        plain = oracle_of(method, classes)
    assert image == [[]] * LAYERS and text == [[(5, CONTEXT)]] * LAYERS
    with mlp_shapes(image_blocks(clip)) as image, mlp_shapes(text_blocks(clip)) as text:
        for _ in range(2):
            plain(batch(), torch.tensor([0, 1]))
    bare, with_tokens = (2, PATCHES + 1), (2, PATCHES + 1 + TOKENS)
    assert image == [[bare, bare] * 2] + [[with_tokens, bare] * 2] * (LAYERS - 1)
    assert text == [[(5, CONTEXT)] * 2] + [[(5, CONTEXT + TOKENS)] * 2] * (LAYERS - 1)
    assert set(plain.state_dict()) == {key for key, _ in plain.named_parameters()}
    assert not plain.w_0.requires_grad and relative_error(plain.w_0, classes.zero_shot) < 1e-4


# ---- the whole step ----


def forward(queries: int, keys_values: int, keys: int) -> int:
    """Operations of one layer that computes outputs at `queries` positions and keys and values at `keys_values`, and attends to `keys`.

    A multiplication and an addition count as two. Queries have 10 d^2 weights (1 in, 1 out, 8 MLP), keys and values 2 d^2; attention is
    two products.
    """
    return 2 * WIDTH * (WIDTH * (10 * queries + 2 * keys_values) + 2 * queries * keys)


def backward(queries: int, keys_values: int, keys: int, frozen_input: bool = False) -> int:
    """Of its gradients: products with weights once again, as these are frozen, and those of attention twice.

    With `frozen_input` no gradient goes through the positions' own queries, keys and values, as into layer J.
    """
    spared = WIDTH * (queries + 2 * keys_values) + queries * keys if frozen_input else 0
    return 2 * WIDTH * (WIDTH * (10 * queries + 2 * keys_values) + 4 * queries * keys - spared)


def plain_step(classes: int, images: int) -> int:
    """Operations of the plain side at J = 2: whole layers at all positions, and a zero-shot image pass."""
    t, m, k = CONTEXT, PATCHES + 1, TOKENS
    text = forward(t, t, t) + (LAYERS - 1) * (forward(t + k, t + k, t + k) + backward(t + k, t + k, t + k))
    image = (LAYERS + 1) * forward(m, m, m) + (LAYERS - 1) * (forward(m + k, m + k, m + k) + backward(m + k, m + k, m + k))
    return classes * (text + 2 * PROJECTION) + images * (image + 2 * EMBEDDING + 5 * PROJECTION)


def fast_step(classes: int, images: int, body: int, words: int, outputs: int) -> int:
    """Of the fast path, for prompts of `body` positions behind the `words` that all share.

    Once for all classes run BOT, the words and the tokens, of which `outputs` have an output that a later layer reads; in the last layer
    they are keys and values alone.
    """
    n, m, k, whole = body, PATCHES + 1, TOKENS, LAYERS - 2
    own, before = 1 + words, 1 + words + k
    keys = before + n
    text = whole * (forward(n, n, keys) + backward(n, n, keys)) - backward(n, n, keys) + backward(n, n, keys, frozen_input=True)
    text += forward(1, n, keys) + backward(1, n, keys)  # the last layer
    once = whole * (forward(own + outputs, before, before) + backward(own + outputs, before, before))
    once += backward(own, own, before, frozen_input=True) - backward(own, own, before)
    once += forward(0, before, 0) + backward(0, before, 0)
    zero_shot = whole * forward(m, m, m) + forward(1, m, m)
    adapted = whole * (forward(m, m, m + k) + backward(m, m, m + k)) - backward(m, m, m + k) + backward(m, m, m + k, frozen_input=True)
    adapted += forward(1 + k, m + k, m + k) + backward(1 + k, m + k, m + k)
    image = forward(m, m, m) + zero_shot + adapted
    return once + classes * (text + 2 * PROJECTION) + images * (image + EMBEDDING + 5 * PROJECTION)


@pytest.mark.parametrize(("name", "more", "outputs"), [("mmrl", 0.01, 0), ("mmrlpp", 0.1, TOKENS)])
@pytest.mark.parametrize(("classes_count", "share"), [(12, 0.054), (40, 0.034)])
def test_training_step_costs_a_fraction_of_the_oracle(
    clip: Clip, name: str, more: float, outputs: int, classes_count: int, share: float
) -> None:
    """At J = L / 2, both sides as `plain_step` and `fast_step` derive it, and so the share that is left.

    Of 10 positions, where the plain side has 77 and from J on 80, a prompt has 3 or 4 for itself: that leaves 0.023 for very many classes.
    What all share and the images, two passes on either side, make it 0.033 at 40 classes and 0.053 at 12. What makes the tokens is at
    most 1 % on top; in MMRL++, with its residuals of every layer, 10 %.
    """
    method = build(clip, name)
    classes = method.class_list(things(classes_count), TEMPLATE)
    plain = oracle_of(method, classes)
    images, labels = batch(), torch.tensor([0, 1])
    fast = flops(lambda: method.loss(images, labels, classes).total.backward())
    slow = flops(lambda: plain(images, labels)["loss"].backward())
    assert slow == pytest.approx(plain_step(classes_count, 2), rel=2e-3)
    least = fast_step(classes_count, 2, body_length(classes), shared_words(classes), outputs)
    assert least < fast <= (1 + more) * least
    assert fast <= share * slow, f"{fast / slow:.3f} of the oracle's operations"


# ---- 1. nothing below J is repeated ----


@pytest.mark.parametrize("first", [1, 2, 4])
def test_layers_below_j_run_once_for_images_and_never_for_text(clip: Clip, first: int) -> None:
    method = build(clip, first_layer=first)
    classes = method.class_list(things(5), TEMPLATE)
    with mlp_shapes(image_blocks(clip)) as image, mlp_shapes(text_blocks(clip)) as text:
        method.loss(batch(), torch.tensor([0, 1]), classes)
    assert [len(calls) for calls in image] == [1] * (first - 1) + [2] * (LAYERS - first + 1)
    assert [len(calls) for calls in text] == [0] * (first - 1) + [2] * (LAYERS - first) + [1]  # the shared beginning, and the prompts


def test_class_list_runs_each_text_layer_once(clip: Clip) -> None:
    """Zero-shot features go on from the states that enter layer J."""
    method = build(clip, first_layer=3)
    with mlp_shapes(text_blocks(clip)) as text:
        classes = method.class_list(things(5), TEMPLATE)
    prompts = [[shape for shape in calls if shape[0] == 5] for calls in text]
    assert prompts == [[(5, body_length(classes))]] * (LAYERS - 1) + [[(5, 1)]]


# ---- 2. cut to the longest prompt ----


def test_text_cost_follows_the_longest_prompt_and_not_the_context(clip: Clip) -> None:
    costs = {}
    for context in (16, 77):
        method = build(make_clip(context))
        for names in (["x", "cat"], ["x", "cat with a hat"]):
            classes = method.class_list(names, TEMPLATE)
            longest = max(len(clip.tokenizer.encode(prompt)) for prompt in classes.fed.texts)
            assert shared_words(classes) + body_length(classes) == longest + 1  # EOT, but no BOT
            assert shared_words(classes) == 4  # a photo of a
            costs[context, len(names[1])] = flops(lambda m=method, c=classes: m.text_features(c))  # type: ignore[misc]
    assert costs[16, 3] == costs[77, 3] < costs[16, 14] == costs[77, 14]


# ---- 3. what all classes share runs once; 5. the last layer at EOT alone ----


def per_class_flops(length: int, layers: int) -> int:
    """Products with weights for one prompt of `length` positions behind BOT in the last `layers` layers.

    A multiplication and an addition count as two. A whole layer has 12 d^2 weights (3 in, 1 out, 8 MLP); the last one computes keys and
    values everywhere and the other 10 d^2 at EOT alone, where the projection follows.
    """
    d = WIDTH
    return 2 * ((layers - 1) * length * 12 * d * d + length * 2 * d * d + 10 * d * d + d * EMBED)


@pytest.mark.parametrize("name", ["mmrl", "mmrlpp"])
@pytest.mark.parametrize("first", [2, 4])
def test_a_class_costs_its_own_tokens_whatever_k_is(clip: Clip, name: str, first: int) -> None:
    for tokens in (1, 20):
        method = build(clip, name, first_layer=first, rep_tokens=tokens)
        few, more = method.class_list(things(4), TEMPLATE), method.class_list(things(11), TEMPLATE)
        assert body_length(few) == body_length(more)
        with torch.no_grad():
            added = flops(lambda: method.text_features(more), attention=False) - flops(lambda: method.text_features(few), attention=False)  # noqa: B023
        assert added == 7 * per_class_flops(body_length(few), LAYERS - first + 1)


@pytest.mark.parametrize(("name", "outputs"), [("mmrl", 0), ("mmrlpp", TOKENS)])
def test_shared_beginning_runs_once(clip: Clip, name: str, outputs: int) -> None:
    """BOT and the words that all prompts begin with have queries and MLPs, MMRL's tokens have not; the last layer has keys and values."""
    method = build(clip, name)
    classes = method.class_list(things(50), TEMPLATE)
    length, layers = body_length(classes), LAYERS - 1
    assert shared_words(classes) == 5  # a photo of a thing
    tokens = method.edits()[1]
    with torch.no_grad():
        whole = flops(lambda: clip.encode_prompts(classes.fed, tokens), attention=False)
    shared = whole - 50 * per_class_flops(length, layers)
    queries, keys = 1 + 5 + outputs, 1 + 5 + TOKENS
    assert shared == 2 * WIDTH**2 * ((layers - 1) * 10 * queries + layers * 2 * keys)


# ---- 4. replaced tokens are keys and values only; 5. the last layer at pooled positions ----


@pytest.mark.parametrize(
    ("name", "options", "adapted", "shared"),
    [
        ("mmrl", {}, PATCHES + 1, 1),
        ("mmrlpp", {"beta": 0.7}, PATCHES + 1 + 3, 1 + 3),
        ("mmrlpp", {"beta": 1.0}, PATCHES + 1, 1),  # with beta 1 the outputs are replaced as in MMRL
    ],
)
def test_mlps_see_only_positions_that_somebody_reads(clip: Clip, name: str, options: dict[str, Any], adapted: int, shared: int) -> None:
    method = build(clip, name, **options)
    classes = method.class_list(things(5), TEMPLATE)
    with mlp_shapes(image_blocks(clip)) as image, mlp_shapes(text_blocks(clip)) as text:
        method.loss(batch(), torch.tensor([0, 1]), classes)
    zero_shot = (2, PATCHES + 1)
    assert image == [[zero_shot]] + [[zero_shot, (2, adapted)]] * (LAYERS - 2) + [[(2, 1), (2, 1 + 3)]]
    assert text[0] == []
    assert text[1:-1] == [[(1, shared + shared_words(classes)), (5, body_length(classes))]] * (LAYERS - 2)
    assert text[-1] == [(5, 1)]


def test_image_tower_costs_no_more_than_open_clip(clip: Clip) -> None:
    """MMRL's tokens are cheaper than what the last layer leaves out, so adapted inference is no slower than bare CLIP."""
    method, images = build(clip), batch()
    with torch.no_grad():
        assert flops(lambda: method.image_features(images)) < flops(lambda: clip.model.encode_image(images))


# ---- 6. text features once ----


def test_evaluation_runs_no_text_layer(clip: Clip) -> None:
    method = build(clip)
    classes = method.class_list(things(5), TEMPLATE)
    with torch.no_grad():
        text = method.text_features(classes)
        with mlp_shapes(image_blocks(clip)) as image, mlp_shapes(text_blocks(clip)) as ran:
            method.logits(batch(), text, seen=True)
    assert ran == [[]] * LAYERS
    assert [len(calls) for calls in image] == [1] * LAYERS


# ---- memory ----


@pytest.mark.parametrize("name", ["mmrl", "mmrlpp"])
def test_chunk_follows_the_memory_and_keeps_to_it(clip: Clip, name: str) -> None:
    method = build(clip, name)
    chunks = []
    for mebibytes in (0.001, 1, 2, 4):
        chunk = method.class_list(things(60), TEMPLATE, memory_gib=mebibytes / 1024).fed.chunk
        assert chunk is not None and chunk >= 1
        chunks.append(chunk)
        if mebibytes >= 1:
            part = method.class_list(things(60)[:chunk], TEMPLATE)
            used = saved_bytes(clip, lambda: method.text_features(part)) / 2**20  # noqa: B023
            assert 0.25 * mebibytes < used <= mebibytes
    assert chunks[0] == 1
    assert chunks == sorted(set(chunks))


def test_chunks_keep_next_to_nothing_until_the_backward_pass(clip: Clip) -> None:
    method = build(clip)
    whole, chunked = method.class_list(things(60), TEMPLATE), method.class_list(things(60), TEMPLATE, memory_gib=0.5 / 1024)
    assert whole.fed.chunk is None and chunked.fed.chunk is not None
    kept = saved_bytes(clip, lambda: method.text_features(chunked))
    assert kept < 0.1 * saved_bytes(clip, lambda: method.text_features(whole))
