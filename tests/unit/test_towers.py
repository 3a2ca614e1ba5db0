"""The staged towers compute what open_clip computes, and edits do what they say; in float64, where nothing but a mistake differs."""

from __future__ import annotations

import copy
from dataclasses import replace

import open_clip
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mmrl.clip import Clip, Edit, random_clip
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
    whole, _ = vision.finish(vision.embed(exact_images), 0)
    for cut in range(1, vision.depth):
        part, _ = vision.finish(vision.run(vision.embed(exact_images), 0, cut), cut)
        assert same(part, whole)
    for start in range(exact_clip.text.depth):
        classes = exact_clip.class_list(["cat", "a long dog name"], "a {}.", start=start)
        assert same(classes.zero_shot, exact_clip.encode_text(classes.prompts))
        assert same(exact_clip.encode_classes(classes, {}), classes.zero_shot)


def _open_clip_with_residual(model: nn.Module, layer: int, images: torch.Tensor, adapter: nn.Module) -> torch.Tensor:
    """open_clip's own pass, with `adapter` on the states that enter the MLP block of `layer`."""
    block, kept = model.visual.transformer.resblocks[layer], {}
    hooks = [
        block.ln_2.register_forward_pre_hook(lambda _, args: kept.update(x=args[0])),
        block.register_forward_hook(lambda _m, _a, out: out + adapter(kept["x"])),
    ]
    features = model.encode_image(images)
    for hook in hooks:
        hook.remove()
    return features


def test_residual_edit(exact_clip: Clip, exact_images: torch.Tensor) -> None:
    adapter = nn.Linear(exact_clip.vision.width, exact_clip.vision.width, dtype=torch.float64)
    for layer in range(exact_clip.vision.depth):
        with torch.no_grad():
            ours, _ = exact_clip.vision.finish(exact_clip.vision.embed(exact_images), 0, {layer: Edit(residual=adapter)})
            theirs = _open_clip_with_residual(exact_clip.model, layer, exact_images, adapter)
        assert same(ours @ exact_clip.vision.projection, theirs)


def test_text_residual_reaches_the_shared_prefix(exact_clip: Clip) -> None:
    adapter = nn.Linear(exact_clip.text.width, exact_clip.text.width, dtype=torch.float64)
    model, kept = exact_clip.model, {}
    tokens, _ = exact_clip.tokenize(PROMPTS)
    block = model.transformer.resblocks[1]
    hooks = [
        block.ln_2.register_forward_pre_hook(lambda _, args: kept.update(x=args[0])),
        block.register_forward_hook(lambda _m, _a, out: out + adapter(kept["x"])),
    ]
    with torch.no_grad():
        theirs = F.normalize(model.encode_text(tokens), dim=-1)
        for hook in hooks:
            hook.remove()
        classes = exact_clip.class_list([p.rstrip(".") for p in PROMPTS], "{}")
        tokens_again, _ = exact_clip.tokenize(classes.prompts)
        assert tokens_again.shape == tokens.shape
        exact = exact_clip.class_list(PROMPTS, "{}")
        ours = exact_clip.encode_classes(exact, {1: Edit(residual=adapter)})
    assert same(ours, theirs)


def test_chunks_change_no_number(exact_clip: Clip) -> None:
    whole = exact_clip.class_list([f"thing {i}" for i in range(7)], "a {}.", start=1)
    tokens = torch.randn(2, 3, exact_clip.text.width, dtype=torch.float64)
    results = []
    for chunk in (None, 3, 1):
        free = tokens.clone().requires_grad_()
        features = exact_clip.encode_classes(replace(whole, chunk=chunk), {1: Edit(free[0]), 2: Edit(free[1], keep=0.3)})
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
        config["text_cfg"]["layers"] = 1
        config["vision_cfg"]["image_size"] = 224
        model = open_clip.CustomTextCLIP(**{k: v for k, v in config.items() if not k.startswith("init_")})
    preprocess = {"mean": (0.5,) * 3, "std": (0.5,) * 3, "interpolation": "bicubic"}
    clip = Clip(arch, model, open_clip.SimpleTokenizer(), preprocess=preprocess)
    with pytest.raises(UsageError, match="edits single layers.*ViT-B-16"):
        methods.build("mmrl", clip)
    if arch == "RN50":
        method = methods.build("zero-shot", clip)
        classes = method.class_list(["cat", "dog"], "a {}.")
        assert method.logits(torch.randn(1, 3, 224, 224), method.text_features(classes), seen=False).shape == (1, 2)


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
