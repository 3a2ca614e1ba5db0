"""The staged towers compute what open_clip computes, and edits do what they say; in float64, where nothing but a mistake differs."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import open_clip
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mmrl.clip import Clip, Edit, Edits, random_clip
from mmrl.errors import UsageError

PROMPTS = ["a cat.", "a photo of a very large dog with a hat.", "x"]
SHAPES = {
    "ViT-B-32": {"vision_cfg": {"layers": 2}, "text_cfg": {"layers": 2}},
    "ViT-B-16-quickgelu": {"vision_cfg": {"layers": 2}, "text_cfg": {"layers": 2}},
    "ViT-L-14": {"vision_cfg": {"layers": 2}, "text_cfg": {"layers": 2}},
    "ViT-L-14-336": {"vision_cfg": {"layers": 2}, "text_cfg": {"layers": 2}},
}


@pytest.fixture(scope="module")
def exact_clip(small_clip: Clip) -> Clip:
    clip = copy.deepcopy(small_clip)
    clip.model.double()
    return clip


@pytest.fixture
def exact_images(images: torch.Tensor) -> torch.Tensor:
    return images.double()


def same(ours: torch.Tensor, theirs: torch.Tensor) -> bool:
    """Whether no element differs by more than 1e-9 of the largest; both in float64."""
    assert ours.dtype == theirs.dtype == torch.float64 and ours.shape == theirs.shape
    return bool((ours - theirs).abs().max() <= 1e-9 * theirs.abs().max())


@pytest.mark.parametrize("arch", SHAPES)
def test_unedited_features_equal_open_clip(arch: str) -> None:
    clip = random_clip(arch, **SHAPES[arch])
    clip.model.double()
    images = torch.randn(2, 3, clip.image_size, clip.image_size, dtype=torch.float64)
    with torch.no_grad():
        theirs_image = F.normalize(clip.model.encode_image(images), dim=-1)
        theirs_text = F.normalize(clip.model.encode_text(clip.tokenize(PROMPTS)[0]), dim=-1)
    assert same(clip.encode_image(images), theirs_image)
    assert same(clip.encode_text(PROMPTS), theirs_text)


def test_stages_join(exact_clip: Clip, exact_images: torch.Tensor) -> None:
    vision = exact_clip.vision
    whole = vision.finish(vision.embed(exact_images), 0).class_token
    for cut in range(1, vision.depth):
        part = vision.finish(vision.run(vision.embed(exact_images), 0, cut), cut).class_token
        assert same(part, whole)
    for start in range(exact_clip.text.depth):
        classes = exact_clip.class_list(["cat", "a long dog name"], "a {}.", start=start)
        assert same(classes.zero_shot, exact_clip.encode_text(classes.fed.texts))
        assert same(exact_clip.encode_prompts(classes.fed), classes.zero_shot)


def test_what_all_prompts_begin_with_runs_once(exact_clip: Clip) -> None:
    def positions(*names: str) -> tuple[int, int]:
        """Shared by all, and of each prompt's own."""
        hidden = exact_clip.class_list(names, "a photo of a {}.").fed.hidden
        assert len(hidden.prefix) == 1 and len(hidden.body) == len(names)
        return hidden.prefix.shape[1], hidden.body.shape[1]

    assert positions("cat", "dog") == (5, 3)  # BOT a photo of a | cat . EOT
    assert positions("red cat", "red dog") == (6, 3)
    assert positions("cat", "cat house") == (6, 3)  # BOT a photo of a cat | house . EOT
    assert positions("cat") == (7, 1)  # EOT is pooled, so it is left


def test_patches_and_features_that_are_not_normalised(exact_clip: Clip, exact_images: torch.Tensor) -> None:
    vision, model = exact_clip.vision, exact_clip.model
    pooled = vision.finish(vision.embed(exact_images), 0, patches=True)
    assert pooled.patches is not None and pooled.extra is None and pooled.readers is None
    theirs = plain_image(model, exact_images, {})
    assert same(pooled.class_token, theirs[:, 0]) and same(pooled.patches, theirs[:, 1:])
    with torch.no_grad():
        assert same(exact_clip.encode_image(exact_images, normalise=False), model.encode_image(exact_images))
        assert same(exact_clip.encode_text(PROMPTS, normalise=False), model.encode_text(exact_clip.tokenize(PROMPTS)[0]))


# ---- edits, against whole sequences with masks ----


def plain_layers(blocks: nn.ModuleList, x: torch.Tensor, edits: Edits, allowed: torch.Tensor | None, slots: int = 0) -> torch.Tensor:
    """Whole layers over (N, S, d), the method's tokens at positions 1 to K, readers behind all others.

    Args:
        allowed: (N, S, S) of the sequence without tokens and readers, True where a query may look; None: everywhere.
        slots: positions behind the first that `x` has for tokens from the beginning; without, they are put in at their first layer.
    """
    count, length, _ = x.shape
    allowed = torch.ones(count, length, length, dtype=torch.bool) if allowed is None else allowed
    readers, look = 0, allowed[:, -1]  # what a reader sees: what the last position does
    for i, block in enumerate(blocks):
        edit = edits.get(i, Edit())
        if edit.tokens is not None:
            tokens, before = edit.tokens.expand(count, -1, -1), x[:, 1 : 1 + slots]
            if slots:
                x = torch.cat([x[:, :1], (1 - edit.keep) * tokens + edit.keep * before, x[:, 1 + slots :]], dim=1)
            else:
                slots = tokens.shape[1]
                x = torch.cat([x[:, :1], tokens, x[:, 1:]], dim=1)
                order = [0, *[0] * slots, *range(1, allowed.shape[1])]  # in the text a token sees BOT and, below, its predecessors
                allowed, look = allowed[:, order][:, :, order], look[:, order]
                inner = torch.ones(slots, slots, dtype=torch.bool)
                allowed[:, 1 : 1 + slots, 1 : 1 + slots] = inner.tril() if not allowed[0, 0].all() else inner
                allowed[:, 0, 1 : 1 + slots] = allowed[0, 0].all()
        if edit.readers is not None:
            x = torch.cat([x[:, : x.shape[1] - readers], edit.readers.expand(count, -1, -1)], dim=1)
            readers = edit.readers.shape[0]
        mask = torch.zeros(count, x.shape[1], x.shape[1], dtype=torch.bool)
        others = x.shape[1] - readers
        mask[:, :others, :others] = allowed
        mask[:, others:, :others] = look.unsqueeze(1)
        blocked = torch.zeros(mask.shape, dtype=x.dtype).masked_fill(~mask, float("-inf"))
        x = block(x, attn_mask=blocked.repeat_interleave(block.attn.num_heads, dim=0))
    return x


@torch.no_grad()
def plain_image(model: nn.Module, images: torch.Tensor, edits: Edits) -> torch.Tensor:
    """Class token, tokens, patches and readers (B, 1 + K + M + K', d) after the final norm."""
    visual = model.visual
    patches = visual.conv1(images).flatten(2).transpose(1, 2)
    x = torch.cat([visual.class_embedding.expand(len(images), 1, -1), patches], dim=1) + visual.positional_embedding
    return visual.ln_post(plain_layers(visual.transformer.resblocks, visual.ln_pre(x), edits, None))


@torch.no_grad()
def plain_text(clip: Clip, texts: Sequence[str], edits: Edits, slots: int = 0) -> torch.Tensor:
    """What EOT and readers become (C, 1 + K', embed_dim), normalised; each prompt ends at its EOT, alone in a batch of its own."""
    model, out = clip.model, []
    ids, ends = clip.tokenize(texts)
    for row, (tokens, end) in enumerate(zip(ids, ends)):
        x = model.token_embedding(tokens[None, : end + 1]) + model.positional_embedding[: end + 1]
        own = {i: replace(e, tokens=e.tokens[row]) if e.tokens is not None and e.tokens.dim() == 3 else e for i, e in edits.items()}
        causal = torch.ones(1, end + 1, end + 1, dtype=torch.bool).tril()
        readers = max([e.readers.shape[0] for e in edits.values() if e.readers is not None], default=0)
        x = plain_layers(model.transformer.resblocks, x, own, causal, slots)
        out.append(F.normalize(model.ln_final(x[:, -1 - readers :]) @ model.text_projection, dim=-1))
    return torch.cat(out)


def random(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64)


@pytest.mark.parametrize("layer", range(4))
def test_image_readers_look_and_nobody_looks_at_them(exact_clip: Clip, exact_images: torch.Tensor, layer: int) -> None:
    """Alone, beside a method's tokens, and replaced by others two layers on."""
    vision, d = exact_clip.vision, exact_clip.vision.width
    cases: list[dict[int, Edit]] = [{layer: Edit(readers=random(3, d))}, {0: Edit(random(2, d)), layer: Edit(readers=random(3, d))}]
    cases.append({layer: Edit(readers=random(3, d)), min(layer + 2, 3): Edit(readers=random(2, d))})
    cases.append({layer: Edit(random(2, d), readers=random(3, d)), 3: Edit(random(2, d), keep=0.3, readers=random(3, d))})
    for edits in cases:
        pooled = vision.finish(vision.embed(exact_images), 0, edits, extra=True)
        theirs = plain_image(exact_clip.model, exact_images, edits)
        *_, last = (edit.readers for _, edit in sorted(edits.items()) if edit.readers is not None)
        assert pooled.readers is not None and pooled.readers.shape[1] == len(last)
        assert same(pooled.class_token, theirs[:, 0]) and same(pooled.readers, theirs[:, -len(last) :])
        assert (pooled.extra is None) == all(edit.tokens is None for edit in edits.values())
        if pooled.extra is not None:
            assert same(pooled.extra, theirs[:, 1:3])
    unread = vision.finish(vision.embed(exact_images), 0)
    assert same(vision.finish(vision.embed(exact_images), 0, cases[0]).class_token, unread.class_token)


@pytest.mark.parametrize("layer", range(3))
def test_text_readers_see_what_the_end_sees(exact_clip: Clip, layer: int) -> None:
    d = exact_clip.text.width
    for edits in ({layer: Edit(readers=random(3, d))}, {layer: Edit(random(2, d), readers=random(3, d))}):
        for start in range(layer + 1):
            prompts = exact_clip.prompts(PROMPTS, start=start)
            theirs = plain_text(exact_clip, PROMPTS, edits)
            for chunk in (None, 2):
                with torch.no_grad():
                    assert same(exact_clip.encode_prompts(replace(prompts, chunk=chunk), edits), theirs)
                assert same(exact_clip.encode_prompts(replace(prompts, chunk=chunk), edits), theirs)
        assert edits[layer].tokens is not None or same(theirs[:, 0], exact_clip.encode_text(PROMPTS))


@pytest.mark.parametrize(("layer", "slots"), [(0, 0), (0, 2), (1, 0), (2, 0), (1, 2), (2, 2)])
@pytest.mark.parametrize("keep", [0.0, 0.3])
def test_tokens_of_each_class_its_own(exact_clip: Clip, layer: int, slots: int, keep: float) -> None:
    """From one layer to the last but one, in slots or put in; whatever is encoded at a time, with its gradients."""
    texts = [f"X X {prompt}" for prompt in PROMPTS] if slots else PROMPTS
    free = random(len(texts), 2, exact_clip.text.width)
    edits = {i: Edit(free * (i + 1), keep=keep) for i in range(layer, min(layer + 2, exact_clip.text.depth))}
    theirs = plain_text(exact_clip, texts, edits, slots)[:, 0]
    gradients = []
    for chunk, share in ((None, True), (2, True), (1, True), (None, False)):
        own = free.clone().requires_grad_()
        edits = {i: Edit(own * (i + 1), keep=keep) for i in edits}
        ours = exact_clip.encode_prompts(replace(exact_clip.prompts(texts, slots=slots), chunk=chunk), edits, share=share)
        assert same(ours.detach(), theirs)
        (ours * torch.arange(48)).sum().backward()
        assert own.grad is not None
        gradients.append(own.grad)
        with torch.no_grad():
            assert same(exact_clip.encode_prompts(exact_clip.prompts(texts, slots=slots), edits, share=share), theirs)
    assert all(same(gradient, gradients[0]) for gradient in gradients[1:])


@pytest.mark.parametrize("each", [False, True])
def test_several_sets_of_prompts_at_once(exact_clip: Clip, each: bool) -> None:
    sets, texts, d = 3, [f"X X {prompt}" for prompt in PROMPTS], exact_clip.text.width
    tokens = random(sets, len(texts) if each else 1, 2, d)
    one_by_one = [plain_text(exact_clip, texts, {0: Edit(some.expand(len(texts), -1, -1))}, 2)[:, 0] for some in tokens]
    for chunk in (None, 2):
        prompts = replace(exact_clip.prompts(texts, slots=2), chunk=chunk)
        assert same(exact_clip.encode_prompts(prompts, {0: Edit(tokens)}), torch.stack(one_by_one))


def _beside(blocks: nn.ModuleList, layer: int, adapter: nn.Module) -> Any:
    """Put `adapter` on ln_1 of the input of open_clip's own block, beside all of it."""
    return blocks[layer].register_forward_hook(lambda block, args, out: out + adapter(block.ln_1(args[0])))


def test_a_module_beside_a_layer(exact_clip: Clip, exact_images: torch.Tensor) -> None:
    vision, model = exact_clip.vision, exact_clip.model
    adapter = nn.Linear(vision.width, vision.width, dtype=torch.float64)
    for layer in range(vision.depth):
        with torch.no_grad():
            ours = vision.finish(vision.embed(exact_images), 0, {layer: Edit(parallel=adapter)}).class_token @ vision.projection
            hook = _beside(model.visual.transformer.resblocks, layer, adapter)
            theirs = model.encode_image(exact_images)
            hook.remove()
        assert same(ours, theirs)


@pytest.mark.parametrize("layer", range(3))
def test_a_module_beside_a_text_layer_reaches_the_shared_beginning(exact_clip: Clip, layer: int) -> None:
    adapter = nn.Linear(exact_clip.text.width, exact_clip.text.width, dtype=torch.float64)
    with torch.no_grad():
        ours = exact_clip.encode_prompts(exact_clip.prompts(PROMPTS), {layer: Edit(parallel=adapter)})
        hook = _beside(exact_clip.model.transformer.resblocks, layer, adapter)
        theirs = F.normalize(exact_clip.model.encode_text(exact_clip.tokenize(PROMPTS)[0]), dim=-1)
        hook.remove()
    assert same(ours, theirs)


def _changes(d: int) -> dict[str, torch.Tensor]:
    return {part: 0.1 * random(d, d + i)[:, :d] for i, part in enumerate("qkv")}


def _edit(changes: dict[str, torch.Tensor]) -> Edit:
    return Edit(qkv=lambda x, part: x @ changes[part].T)


def test_changed_projections(exact_clip: Clip, exact_images: torch.Tensor) -> None:
    """As if the weights were others, in every layer of both towers; the shared beginning's keys and values change with them."""
    changed, edits = copy.deepcopy(exact_clip.model), {}
    for name, tower in (("image", changed.visual.transformer), ("text", changed.transformer)):
        for i, block in enumerate(tower.resblocks):
            changes = _changes(block.attn.embed_dim)
            edits[name, i] = _edit(changes)
            block.attn.in_proj_weight += torch.cat([changes[part] for part in "qkv"])
    vision = exact_clip.vision
    image = {i: edit for (name, i), edit in edits.items() if name == "image"}
    text = {i: edit for (name, i), edit in edits.items() if name == "text"}
    with torch.no_grad():
        ours = vision.finish(vision.embed(exact_images), 0, image, extra=True).class_token @ vision.projection
        assert same(ours, changed.encode_image(exact_images))
        theirs = F.normalize(changed.encode_text(exact_clip.tokenize(PROMPTS)[0]), dim=-1)
    for share in (True, False):
        assert same(exact_clip.encode_prompts(exact_clip.prompts(PROMPTS), text, share=share), theirs)


def test_an_edit_that_would_be_left_out_is_refused(exact_clip: Clip, exact_images: torch.Tensor) -> None:
    vision, tokens = exact_clip.vision, torch.zeros(1, 64, dtype=torch.float64)
    hidden = exact_clip.enter_image(exact_images, 2)
    for layer in (0, 1, 4, -1):
        with pytest.raises(ValueError, match=f"layer {layer} is edited, but only layers 2 to 3 are run"):
            vision.finish(hidden, 2, {layer: Edit(tokens), 3: Edit(tokens)})
    prompts = exact_clip.prompts(PROMPTS, start=1)
    for layer in (0, 3):
        with pytest.raises(ValueError, match=f"layer {layer} is edited, but only layers 1 to 2 are run"):
            exact_clip.encode_prompts(prompts, {layer: Edit(parallel=nn.Identity())})


def test_chunks_change_no_number(exact_clip: Clip) -> None:
    whole = exact_clip.class_list([f"thing {i}" for i in range(7)], "a {}.", start=1)
    tokens = torch.randn(2, 3, exact_clip.text.width, dtype=torch.float64)
    results = []
    for chunk in (None, 3, 1):
        free = tokens.clone().requires_grad_()
        features = exact_clip.encode_prompts(replace(whole.fed, chunk=chunk), {1: Edit(free[0]), 2: Edit(free[1], keep=0.3)})
        (features * torch.arange(48)).sum().backward()
        assert free.grad is not None
        results.append((features.detach(), free.grad))
    for features, grad in results[1:]:
        assert same(features, results[0][0])
        assert same(grad, results[0][1])


@pytest.mark.parametrize("arch", ["RN50", "coca_ViT-B-32", "ViT-B-16-SigLIP"])
def test_towers_that_cannot_be_staged_are_refused_with_the_reason(arch: str) -> None:
    from mmrl import methods

    config = open_clip.get_model_config(arch)
    if arch == "RN50":
        config["vision_cfg"]["layers"] = [1, 1, 1, 1]
        model: nn.Module = open_clip.CLIP(**config)
    elif arch.startswith("coca"):
        config["vision_cfg"]["layers"] = config["text_cfg"]["layers"] = config["multimodal_cfg"]["layers"] = 1
        model = open_clip.CoCa(**{k: v for k, v in config.items() if k != "custom_text"})
    else:
        config.pop("custom_text", None)
        config["vision_cfg"] = {**config["vision_cfg"], "timm_model_name": "vit_tiny_patch16_224", "timm_model_pretrained": False}
        config["text_cfg"] |= {"layers": 1, "vocab_size": 49408}
        config["vision_cfg"]["image_size"] = 224
        model = open_clip.CustomTextCLIP(**{k: v for k, v in config.items() if not k.startswith("init_")})
    preprocess = {"mean": (0.5,) * 3, "std": (0.5,) * 3, "interpolation": "bicubic"}
    clip = Clip(arch, model, open_clip.SimpleTokenizer(), preprocess=preprocess)
    with pytest.raises(UsageError, match="edits single layers.*ViT-B-16"):
        methods.build("mmrl", clip)
    if arch == "RN50":
        method = methods.build("zero-shot", clip)
        classes = method.class_list(["cat", "dog"], "a {}.")
        assert classes.prompts is None
        assert method.logits(torch.randn(1, 3, 224, 224), method.head(classes), seen=False).shape == (1, 2)


def test_prompt_over_the_context_names_prompt_and_limit(small_clip: Clip) -> None:
    with pytest.raises(UsageError, match=r"'a photo of (dog ){40}.*' has 4\d tokens.*reads 24"):
        small_clip.class_list(["cat", "dog " * 40 + "x"], "a photo of {}")
    with pytest.raises(UsageError, match="at least 96 tokens"):
        small_clip.class_list(["dog " * 400], "{}")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "empty"),
        (["a", " "], "number 2 of 2 in the class list is blank"),
        (["a", "b", "a"], "'a' stands twice in the class list, as numbers 1 and 3"),
        (["a b", "A_b"], "stands twice .*as 'a b' and as 'A_b'"),
        (["crane", "crane"], r"write 'crane \(2\)'"),
    ],
)
def test_bad_class_lists(small_clip: Clip, names: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        small_clip.class_list(names, "a {}.")


def test_bad_template(small_clip: Clip) -> None:
    for template in ("a photo", "{} and {}"):
        with pytest.raises(UsageError, match="exactly one"):
            small_clip.class_list(["a"], template)
