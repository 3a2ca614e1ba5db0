"""Tip-Adapter and Tip-Adapter-F against their plain form."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from mmrl import methods
from mmrl.clip import Clip
from mmrl.errors import Notice, UsageError
from mmrl.methods import Task
from mmrl.methods.tip_adapter import TipAdapter, TipAdapterF
from tests.oracle.methods.compare import NAMES, TEMPLATE, batch, same, same_logits, same_step, small_clip_in_float64
from tests.oracle.methods.feature_source import Images, shapes
from tests.oracle.methods.tip_adapter import cache_keys, plain, search

BOTH = ["tip-adapter", "tip-adapter-f"]
SMALL_GRID = {"search_step": (7, 5), "search_scale": (13.0, 13.0)}
TEMPLATES = ("itap of a {}.", "art of the {}.", "{} texture.")
ORDERED = (NAMES[2], NAMES[0], NAMES[3])


def made(name: str, options: dict[str, Any] | None = None, images: Images | None = None, *, finish: bool = True) -> TipAdapter:
    images = images or Images(small_clip_in_float64())
    method = methods.build(name, images.clip, options, seed=0, task=images.task())
    assert isinstance(method, TipAdapter)
    if finish:
        method.finish(images.task())
    return method


@pytest.mark.parametrize("views", [0, 1, 3])
def test_keys(views: int) -> None:
    images = Images(small_clip_in_float64())
    method = made("tip-adapter", {"augment_epoch": views}, images, finish=False)
    same("keys", method.keys, cache_keys(images.clip.model, images.views("train", views)))
    assert torch.equal(method.labels, images.labels["train"])
    assert images.passes == [("train", views)]  # the validation images are for the search alone
    assert not method.trainable and set(method.state_dict()) == {"keys", "labels", "alpha", "beta"}


@pytest.mark.parametrize("name", BOTH)
@pytest.mark.parametrize("options", [{}, {"alpha": 0.5, "beta": 5.5}, {"alpha": 0.0}, {"templates": TEMPLATES}])
def test_logits_and_step(name: str, options: dict[str, Any]) -> None:
    method = made(name, {"augment_epoch": 2, **options}, finish=False)
    classes, slow, (images, labels) = method.class_list(NAMES, TEMPLATE), plain(method, NAMES, TEMPLATE), batch()
    for names in (NAMES, ORDERED, NAMES[1:2]):
        head = method.head(method.class_list(names, TEMPLATE))
        same_logits(method, plain(method, names, TEMPLATE), method.logits(images, head, True).detach(), images)
    if not method.trainable:
        return
    loss = method.loss(images, labels, classes)
    same_logits(method, slow, loss.logits, images)
    if options.get("alpha") == 0:  # no gradient but zeros
        same("loss", loss.total, slow.loss(images, labels))
    else:
        same_step(method, slow, loss.total, slow.loss(images, labels))


def test_steps_on_other_lists_of_classes() -> None:
    """What is kept of a class list is not taken for another, nor for other labels."""
    method, (images, labels) = made("tip-adapter-f", finish=False), batch(3)
    for names in (NAMES, ORDERED, ORDERED[::-1], NAMES):
        classes = method.class_list(names, TEMPLATE)
        for _ in range(2):
            slow = plain(method, names, TEMPLATE)
            same_step(method, slow, method.loss(images, labels, classes).total, slow.loss(images, labels))
    method.load_state_dict({**method.state_dict(), "labels": (method.labels + 1) % len(NAMES)})
    slow = plain(method, NAMES, TEMPLATE)
    same_step(method, slow, method.loss(images, labels, classes).total, slow.loss(images, labels))


@pytest.mark.parametrize("name", BOTH)
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("chunk", [2**24, 1])
def test_search(name: str, seed: int, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmrl.methods.tip_adapter.VALUES", chunk)
    images = Images(small_clip_in_float64(), noise=2.0, seed=seed)
    method = made(name, {**SMALL_GRID, "augment_epoch": 1}, images, finish=False)
    slow = plain(method, NAMES, TEMPLATE)
    image = torch.nn.functional.normalize(images.clip.model.encode_image(images.images["val"]), dim=-1)
    cache = slow.keys.detach(), slow.values
    expected = search(image, images.labels["val"], slow.text, *cache, SMALL_GRID["search_scale"], SMALL_GRID["search_step"])
    method.finish(images.task())
    assert (float(method.beta), float(method.alpha)) == expected
    assert images.passes == [("train", 1), ("val", 0)]
    head, test = method.head(method.class_list(NAMES, TEMPLATE)), images.images["test"]
    same_logits(method, plain(method, NAMES, TEMPLATE), method.logits(test, head, True).detach(), test)


def test_the_search_finds_more_than_one_point() -> None:
    """Or the test above would show nothing."""
    found = set()
    for seed in range(4):
        method = made("tip-adapter", {**SMALL_GRID, "augment_epoch": 1}, Images(small_clip_in_float64(), noise=2.0, seed=seed))
        found.add((float(method.beta), float(method.alpha)))
    assert len(found) > 1


def test_where_nothing_is_right_the_cache_is_left_out() -> None:
    images = Images(small_clip_in_float64())
    method = made("tip-adapter", {**SMALL_GRID, "augment_epoch": 0}, images, finish=False)
    images.labels["val"] = torch.full_like(images.labels["val"], -1)
    method.finish(images.task())
    assert float(method.alpha) == float(method.beta) == 0


def test_fixed() -> None:
    images = Images(small_clip_in_float64())
    method = made("tip-adapter", {"selection": "fixed", "alpha": 3.0, "beta": 5.5, "augment_epoch": 0}, images)
    assert (float(method.alpha), float(method.beta)) == (3.0, 5.5) and images.passes == [("train", 0)]


@pytest.mark.parametrize("name", BOTH)
def test_without_validation_images_it_says_so(name: str) -> None:
    images = Images(small_clip_in_float64())
    method = made(name, {"alpha": 3.0, "beta": 5.5, "augment_epoch": 0}, images, finish=False)
    with pytest.warns(Notice, match=r"no validation images to select alpha and beta on, and keeps those of its options: 3.0 and 5.5"):
        method.finish(images.task(validation=False))
    assert (float(method.alpha), float(method.beta)) == (3.0, 5.5)


def test_training_helps_and_is_of_the_keys_alone() -> None:
    images = Images(small_clip_in_float64())
    method = made("tip-adapter-f", {"augment_epoch": 1, "alpha": 5.0}, images, finish=False)
    assert method.modality == "V" and [name for name, _ in method.named_parameters()] == ["keys"]
    before = {key: value.clone() for key, value in method.state_dict().items()}
    optimiser, classes = torch.optim.AdamW(method.parameters(), lr=0.01, eps=1e-4), method.class_list(NAMES, TEMPLATE)
    losses = []
    for _ in range(10):
        loss = method.loss(images.images["train"], images.labels["train"], classes).total
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
    assert [key for key, value in method.state_dict().items() if not torch.equal(value, before[key])] == ["keys"]


@pytest.mark.parametrize("name", BOTH)
def test_loaded_from_names_and_the_number_of_images(name: str) -> None:
    images = Images(small_clip_in_float64())
    method = made(name, {**SMALL_GRID, "augment_epoch": 1}, images)
    loaded = methods.build(name, images.clip, method.options, task=Task(NAMES, TEMPLATE, images=len(method.labels))).double()
    assert shapes(loaded) == shapes(method)
    loaded.load_state_dict(method.state_dict())
    loaded.finish(Task(NAMES, TEMPLATE, images=len(method.labels), validation=4))  # without features there is nothing to choose on
    classes, test = method.class_list(ORDERED, TEMPLATE), images.images["test"]
    assert torch.equal(loaded.logits(test, loaded.head(classes), True), method.logits(test, method.head(classes), True))


def test_shapes_need_no_memory() -> None:
    with torch.device("meta"):
        method = TipAdapterF(small_clip_in_float64(), TipAdapterF.Options())
        method.setup(Task(NAMES, TEMPLATE, images=10**9))
    assert {name: tuple(value.shape) for name, value in method.state_dict().items()} == {
        "keys": (10**9, 48), "labels": (10**9,), "alpha": (), "beta": (),
    }  # fmt: skip


@pytest.mark.parametrize("name", BOTH)
def test_it_knows_no_other_class(name: str) -> None:
    method = made(name, {"augment_epoch": 0, "selection": "fixed"})
    assert not method.open_vocabulary(method.options)
    classes = method.class_list(["cat", "dog"], TEMPLATE)
    with pytest.raises(UsageError, match="'dog' is not one of them"):
        method.head(classes)
    if method.trainable:
        with pytest.raises(UsageError, match="'dog' is not one of them"):
            method.loss(*batch(), classes)


def test_before_setup() -> None:
    method = methods.build("tip-adapter-f", small_clip_in_float64())
    for call in (method.head, lambda classes: method.loss(*batch(), classes)):
        with pytest.raises(UsageError, match="knows only the 0 classes"):
            call(method.class_list(NAMES, TEMPLATE))


def test_own_prompts_leave_the_zero_shot_features_alone() -> None:
    method = made("tip-adapter", {"templates": TEMPLATES, "augment_epoch": 0})
    classes = method.class_list(NAMES, TEMPLATE)
    assert torch.equal(classes.zero_shot, method.clip.class_list(NAMES, TEMPLATE).zero_shot)
    assert not torch.equal(method.head(classes).text, classes.zero_shot)


@pytest.mark.parametrize(
    "options",
    [
        {"search_scale": (0.0, 3.0)}, {"search_step": (0, 5)}, {"search_step": (5,)}, {"augment_epoch": -1}, {"alpha": -1},
        {"templates": ()}, {"selection": "test"}, {"templates": ("no place",)},
    ],
)  # fmt: skip
def test_options_out_of_range(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        methods.build("tip-adapter", small_clip_in_float64(), options)


@pytest.mark.parametrize("name", BOTH)
def test_in_bfloat16(small_clip: Clip, name: str) -> None:
    images = Images(small_clip)
    method = made(name, {"augment_epoch": 1, "alpha": 2.0, "beta": 5.5, "selection": "fixed"}, images)
    classes, test = method.class_list(NAMES, TEMPLATE), images.images["test"]
    assert {value.dtype for value in method.state_dict().values()} == {torch.float32, torch.int64}

    def scored() -> Tensor:
        with torch.no_grad():
            return method.logits(test, method.head(classes), True)

    exact = scored()
    with torch.autocast("cpu", torch.bfloat16):
        rounded = scored()
    assert rounded.dtype == torch.float32 and (rounded - exact).abs().max() < 2
    if method.trainable:
        with torch.autocast("cpu", torch.bfloat16):
            loss = method.loss(test, images.labels["test"], classes).total
        loss.backward()
        assert loss.dtype == torch.float32
        assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in method.parameters())
