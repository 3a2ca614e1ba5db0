"""CLAP and ZS-LP against their plain form."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from mmrl import methods
from mmrl.clip import Clip
from mmrl.errors import UsageError
from mmrl.methods import Task
from mmrl.methods.clap import CLAP, learning_rate
from tests.oracle.methods.clap import plain, procedure, text_features
from tests.oracle.methods.compare import NAMES, TEMPLATE, batch, same, same_logits, small_clip_in_float64
from tests.oracle.methods.feature_source import Images, shapes

ORDERED = (NAMES[2], NAMES[0], NAMES[3])
TEMPLATES = ("itap of a {}.", "art of the {}.", "{} texture.")
FEW = {"augment_epoch": 3, "probe_epochs": 12, "probe_batch": 4}


def made(images: Images, names: tuple[str, ...] = NAMES, **options: Any) -> CLAP:
    method = methods.build("clap", images.clip, FEW | options, seed=0, task=images.task(names))
    assert isinstance(method, CLAP)
    return method


def orders(samples: int, epochs: int, used: int) -> list[Tensor]:
    """Those that the seed gives the method."""
    torch.manual_seed(0)
    return [torch.randperm(samples)[:used] for _ in range(epochs)]


@pytest.mark.parametrize("penalty", ["l2", "none"])
@pytest.mark.parametrize(
    ("options", "used"),
    [
        ({}, 8),  # two batches of the 11 images
        ({"probe_batch": 16}, 16),  # a batch of more than there are images, of the views of all
        ({"probe_batch": 100}, 33),  # of more than there are samples
        ({"augment_epoch": 0, "probe_batch": 100}, 11),
        ({"probe_lr": 2.0, "probe_momentum": 0.0}, 8),
        ({"probe_epochs": 1}, 8),
        ({"templates": TEMPLATES}, 8),
    ],
    ids=str,
)
def test_training(penalty: str, options: dict[str, Any], used: int) -> None:
    images = Images(small_clip_in_float64(), noise=2.0)
    o = {**FEW, "probe_lr": 0.1, "probe_momentum": 0.9, **options}
    method = made(images, penalty=penalty, **options)
    views, labels = images.views("train", o["augment_epoch"]), images.labels["train"]
    with torch.no_grad():
        x, y = images.clip.model.encode_image(views.flatten(0, 1)), labels.repeat(len(views))
    text = text_features(method, NAMES, TEMPLATE)
    scale = float(images.clip.model.logit_scale.exp())
    order = orders(len(x), o["probe_epochs"], used)
    expected = procedure(x, y, text, order, scale, batch=o["probe_batch"], lr=o["probe_lr"], momentum=o["probe_momentum"], penalty=penalty)
    same("prototypes", method.prototypes, expected)
    same("change", method.prototypes - text, expected - text)
    assert images.passes == [("train", o["augment_epoch"])] and not method.trainable and set(method.state_dict()) == {"prototypes"}


def test_the_penalty_holds_prototypes_to_the_text() -> None:
    images = Images(small_clip_in_float64())
    held, free = (made(images, penalty=penalty, probe_epochs=60) for penalty in ("l2", "none"))
    text = text_features(held, NAMES, TEMPLATE)
    assert (held.prototypes - text).norm() < 0.9 * (free.prototypes - text).norm()


def test_rates() -> None:
    assert [learning_rate(epoch, 4, 2.0) for epoch in range(4)] == pytest.approx([1e-5, 2.0, 1 + 0.5**0.5, 1.0])


def test_logits() -> None:
    method, (test, _) = made(Images(small_clip_in_float64())), batch()
    for names in (NAMES, ORDERED, NAMES[1:2]):
        head = method.head(method.class_list(names, TEMPLATE))
        same_logits(method, plain(method, names, TEMPLATE), method.logits(test, head, True), test)


def test_it_learns() -> None:
    images = Images(small_clip_in_float64(), noise=0.5)
    assert images.accuracy(made(images, penalty="none", probe_epochs=100)) > 0.9


def test_under_no_grad_it_is_the_same() -> None:
    images = Images(small_clip_in_float64())
    expected = made(images)
    with torch.no_grad():
        same("prototypes", made(images).prototypes, expected.prototypes)
    assert not expected.prototypes.requires_grad


def test_a_class_without_an_image() -> None:
    with pytest.raises(UsageError, match=r"'clap' needs a training image of every class, and 'extra' has none \(1 of 5 classes\)"):
        made(Images(small_clip_in_float64()), (*NAMES, "extra"))


def test_loaded_from_names() -> None:
    images = Images(small_clip_in_float64())
    method = made(images)
    loaded = methods.build("clap", images.clip, method.options, task=Task(NAMES, TEMPLATE, images=7)).double()
    assert shapes(loaded) == shapes(method)
    loaded.load_state_dict(method.state_dict())
    test, heads = images.images["test"], [each.head(method.class_list(ORDERED, TEMPLATE)) for each in (loaded, method)]
    assert torch.equal(loaded.logits(test, heads[0], True), method.logits(test, heads[1], True))


def test_it_knows_no_other_class() -> None:
    method = made(Images(small_clip_in_float64()), probe_epochs=1)
    assert not method.open_vocabulary(method.options)
    with pytest.raises(UsageError, match="'dog' is not one of them"):
        method.head(method.class_list(["cat", "dog"], TEMPLATE))


def test_in_bfloat16(small_clip: Clip) -> None:
    images = Images(small_clip)
    method = made(images)
    head, test = method.head(method.class_list(NAMES, TEMPLATE)), images.images["test"]
    exact = method.logits(test, head, True)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = method.logits(test, head, True)
    assert head.dtype == rounded.dtype == torch.float32 and (rounded - exact).abs().max() < 2


@pytest.mark.parametrize(
    "options",
    [{"penalty": "l1"}, {"augment_epoch": -1}, {"probe_batch": 0}, {"probe_lr": 0}, {"templates": ("none",)}, {"probe_epochs": 0}],
    ids=str,
)
def test_options_out_of_range(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        methods.build("clap", small_clip_in_float64(), options)
