"""One battery that every registered method passes, also one that is defined outside the package."""

from __future__ import annotations

import copy

import pytest
import torch

import tests.contract.toy_method  # noqa: F401  (registers it)
from mmrl import methods
from mmrl.clip import Clip
from tests.oracle.pair import relative_error

TOLERANCE = 1e-9
NAMES = ["cat", "dog", "great white shark", "owl"]
LABELS = torch.tensor([0, 2, 1])
TRAINABLE = [name for name in methods.names() if name != "zero-shot"]


@pytest.fixture(scope="module")
def exact_clip(small_clip: Clip) -> Clip:
    clip = copy.deepcopy(small_clip)
    clip.model.double()
    return clip


def train(method: methods.Method, images: torch.Tensor, steps: int = 3) -> list[float]:
    optimizer = torch.optim.AdamW(method.parameters(), lr=1e-2)
    classes = method.class_list(NAMES, "a photo of a {}.")
    losses = []
    for _ in range(steps):
        loss = method.loss(images, LABELS, classes)
        optimizer.zero_grad()
        loss.total.backward()
        optimizer.step()
        losses.append(float(loss.total.detach()))
    return losses


def test_the_outside_method_is_known() -> None:
    assert "toy-offset" in methods.names()


@pytest.mark.parametrize("name", methods.names())
def test_shapes_and_normalisation(exact_clip: Clip, images: torch.Tensor, name: str) -> None:
    method, images = methods.build(name, exact_clip, seed=0).double(), images.double()
    classes = method.class_list(NAMES, "a {}.")
    with torch.no_grad():
        text, features = method.text_features(classes), method.image_features(images)
        logits = method.combine(features, text, seen=True)
        assert torch.equal(method.logits(images, text, seen=True), logits)
    assert text.shape == (4, 48) and features.class_token.shape == (3, 48) and logits.shape == (3, 4)
    for normalised in (text, features.class_token, *([] if features.representation is None else [features.representation])):
        assert normalised.dtype == torch.float64
        assert (normalised.norm(dim=-1) - 1).abs().max() < TOLERANCE


@pytest.mark.parametrize("name", TRAINABLE)
def test_only_declared_parameters_move(small_clip: Clip, images: torch.Tensor, name: str) -> None:
    before = copy.deepcopy(small_clip.model.state_dict())
    method = methods.build(name, small_clip, seed=0)
    start = copy.deepcopy(method.state_dict())
    losses = train(method, images, steps=8)
    assert losses[-1] < losses[0]
    assert all(torch.equal(before[k], v) for k, v in small_clip.model.state_dict().items())
    assert all(p.grad is None for p in small_clip.model.parameters())
    assert set(start) == {key for key, _ in method.named_parameters()}
    assert all(not torch.equal(start[k], v) for k, v in method.state_dict().items())


@pytest.mark.parametrize("name", TRAINABLE)
def test_evaluate_train_evaluate(small_clip: Clip, images: torch.Tensor, name: str) -> None:
    """A class list made before training gives the same as one made after it: nothing in it goes stale."""
    method = methods.build(name, small_clip, seed=0)
    early = method.class_list(NAMES, "a {}.")
    with torch.no_grad():
        before = method.logits(images, method.text_features(early), seen=True)
    train(method, images)
    late = method.class_list(NAMES, "a {}.")
    with torch.no_grad():
        after = method.logits(images, method.text_features(early), seen=True)
        assert torch.equal(after, method.logits(images, method.text_features(late), seen=True))
    assert not torch.equal(before, after)
    assert torch.equal(early.zero_shot, late.zero_shot)


@pytest.mark.parametrize("name", TRAINABLE)
def test_class_list_swapped(exact_clip: Clip, images: torch.Tensor, name: str) -> None:
    """Class features do not depend on the other classes of the list, nor on their order."""
    method = methods.build(name, exact_clip, seed=0).double()
    train(method, images.double())
    with torch.no_grad():
        one = method.text_features(method.class_list(NAMES, "a {}."))
        other = method.text_features(method.class_list(["a very long name of a class", *reversed(NAMES)], "a {}."))
    assert relative_error(other[1:].flip(0), one) < TOLERANCE


@pytest.mark.parametrize("name", TRAINABLE)
def test_save_and_load(small_clip: Clip, images: torch.Tensor, name: str, tmp_path: object) -> None:
    from pathlib import Path

    from mmrl.engine import load_adapter, save_adapter

    method = methods.build(name, small_clip, seed=0)
    train(method, images)
    folder = Path(str(tmp_path)) / "adapter"
    save_adapter(folder, method, classes=NAMES, template="a {}.")
    loaded, config = load_adapter(folder, clip=small_clip)
    assert config.class_names == tuple(NAMES) and config.template == "a {}." and loaded.options == method.options
    assert all(torch.equal(v, loaded.state_dict()[k]) for k, v in method.state_dict().items())
    with torch.no_grad():
        answers = [m.logits(images, m.text_features(m.class_list(NAMES, "a {}.")), seen=True) for m in (method, loaded)]
    assert torch.equal(*answers)


@pytest.mark.parametrize("name", methods.names())
def test_bfloat16_is_close(small_clip: Clip, images: torch.Tensor, name: str) -> None:
    method = methods.build(name, small_clip, seed=0)
    classes = method.class_list(NAMES, "a {}.")
    with torch.no_grad():
        exact = method.image_features(images).class_token
        with torch.autocast("cpu", torch.bfloat16):
            rounded = method.image_features(images).class_token
            logits = method.combine(method.image_features(images), method.text_features(classes), seen=True)
    assert torch.nn.functional.cosine_similarity(exact, rounded.float()).min() > 0.99
    assert torch.isfinite(logits).all()
    if method.trainable:
        with torch.autocast("cpu", torch.bfloat16):
            loss = method.loss(images, LABELS, classes)
        loss.total.backward()
        assert all(p.grad is not None and p.grad.dtype == torch.float32 and torch.isfinite(p.grad).all() for p in method.parameters())


@pytest.mark.parametrize("name", methods.names())
def test_options_are_described_and_closed(name: str) -> None:
    cls = methods.get(name)
    assert cls.summary and cls.source
    assert all(field.description for field in cls.Options.model_fields.values())
    with pytest.raises(Exception, match="nonsense"):
        methods.make_options(cls, {"nonsense": 1})
