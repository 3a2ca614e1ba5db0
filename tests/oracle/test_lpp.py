"""LP++ against its plain form."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mmrl import methods
from mmrl.clip import Clip
from mmrl.errors import Notice, UsageError
from mmrl.methods import Task
from mmrl.methods.lpp import LPPlusPlus
from tests.oracle.methods.compare import NAMES, TEMPLATE, batch, same, same_logits, small_clip_in_float64
from tests.oracle.methods.feature_source import Images, shapes
from tests.oracle.methods.lpp import Step, plain, procedure

ORDERED = (NAMES[2], NAMES[0], NAMES[3])
TEMPLATES = ("itap of a {}.", "art of the {}.", "{} texture.")
DEFAULTS: dict[str, Any] = {"probe_steps": 40, "probe_momentum": 0.9, "alpha_every": 10, "alpha_scale": 250.0}


def made(images: Images, names: tuple[str, ...] = NAMES, *, validation: bool = True, **options: Any) -> LPPlusPlus:
    options = {"probe_steps": 40, **options}
    method = methods.build("lpp", images.clip, options, seed=0, task=images.task(names, validation=validation))
    assert isinstance(method, LPPlusPlus)
    return method


def normalised(images: Images, part: str, views: int = 0) -> Tensor:
    with torch.no_grad():
        return F.normalize(images.clip.model.encode_image(images.views(part, views)[0]), dim=-1)


def expected(images: Images, method: LPPlusPlus, **options: Any) -> list[Step]:
    """All steps of the plain form, with the biases that the seed gives the method."""
    torch.manual_seed(0)
    given = {key.removeprefix("probe_").removeprefix("alpha_"): value for key, value in (DEFAULTS | options).items()}
    text = plain(method, NAMES, TEMPLATE).text
    return list(procedure(normalised(images, "train", 1), images.labels["train"], text, method.first_bias(len(NAMES)), **given))


@pytest.mark.parametrize(
    "options",
    [{}, {"probe_steps": 1}, {"alpha_every": 3}, {"alpha_every": 1, "probe_momentum": 0.0}, {"alpha_every": 50}, {"alpha_scale": 20.0}],
    ids=str,
)
def test_descent(options: dict[str, Any]) -> None:
    images = Images(small_clip_in_float64(), noise=2.0)
    method = made(images, selection="fixed", **options)
    last = expected(images, method, **options)[-1]
    same("weight", method.weight, last.weight)
    same("bias", method.bias, last.bias)
    same("alpha", method.alpha, last.alpha)
    assert images.passes == [("train", 1)] and int(method.step) == options.get("probe_steps", 40)


@pytest.mark.parametrize("seed", range(4))
def test_the_latest_of_the_best_steps_is_kept(seed: int) -> None:
    images = Images(small_clip_in_float64(), noise=4.0, seed=seed)
    method = made(images)
    steps, val, text = expected(images, method), normalised(images, "val"), plain(method, NAMES, TEMPLATE).text
    right = [int(((val @ s.weight.T + s.bias + s.alpha * (val @ text.T)).argmax(-1) == images.labels["val"]).sum()) for s in steps]
    best = max(step for step, count in enumerate(right) if count == max(right))
    assert int(method.step) == best + 1
    same("weight", method.weight, steps[best].weight)
    same("alpha", method.alpha, steps[best].alpha)
    assert images.passes == [("train", 1), ("val", 0)]


def test_validation_decides() -> None:
    """Or the test above would show nothing."""
    assert len({int(made(Images(small_clip_in_float64(), noise=4.0, seed=seed)).step) for seed in range(4)}) > 1


@pytest.mark.parametrize("templates", [None, TEMPLATES])
def test_logits(templates: tuple[str, ...] | None) -> None:
    images = Images(small_clip_in_float64())
    method, (test, _) = made(images, templates=templates), batch()
    assert not method.trainable and set(method.state_dict()) == {"weight", "bias", "alpha", "text", "step"}
    for names in (NAMES, ORDERED, NAMES[1:2]):
        head = method.head(method.class_list(names, TEMPLATE))
        same_logits(method, plain(method, names, TEMPLATE), method.logits(test, head, True), test)


def test_it_learns() -> None:
    images = Images(small_clip_in_float64(), noise=0.5)
    assert images.accuracy(made(images)) > 0.9


def test_without_validation_images_it_says_so() -> None:
    images = Images(small_clip_in_float64())
    with pytest.warns(Notice, match="no validation images to select a step on, and keeps the last of 40"):
        method = made(images, validation=False)
    same("weight", method.weight, made(images, selection="fixed").weight)


def test_a_class_without_an_image() -> None:
    images = Images(small_clip_in_float64())
    with pytest.raises(UsageError, match=r"'lpp' needs a training image of every class, and 'extra' has none \(1 of 5 classes\)"):
        made(images, (*NAMES, "extra"))
    with pytest.raises(UsageError, match="'cat' is the only one"):
        made(Images(small_clip_in_float64(), 1), ("cat",))


def test_loaded_from_names() -> None:
    images = Images(small_clip_in_float64())
    method = made(images)
    loaded = methods.build("lpp", images.clip, method.options, task=Task(NAMES, TEMPLATE, images=7)).double()
    assert shapes(loaded) == shapes(method)
    loaded.load_state_dict(method.state_dict())
    classes, test = method.class_list(ORDERED, TEMPLATE), images.images["test"]
    assert torch.equal(loaded.logits(test, loaded.head(classes), True), method.logits(test, method.head(classes), True))


def test_it_knows_no_other_class() -> None:
    method = made(Images(small_clip_in_float64()))
    assert not method.open_vocabulary(method.options)
    with pytest.raises(UsageError, match="'dog' is not one of them"):
        method.head(method.class_list(["cat", "dog"], TEMPLATE))
    with pytest.raises(UsageError, match="nothing to train"):
        method.loss(*batch(), method.class_list(NAMES, TEMPLATE))


def test_in_bfloat16(small_clip: Clip) -> None:
    images = Images(small_clip)
    method = made(images)
    assert {value.dtype for value in method.state_dict().values()} == {torch.float32, torch.int64}
    head, test = method.head(method.class_list(NAMES, TEMPLATE)), images.images["test"]
    exact = method.logits(test, head, True)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = method.logits(test, head, True)
    assert rounded.dtype == torch.float32 and (rounded - exact).norm() / exact.norm() < 0.05


@pytest.mark.parametrize(
    "options",
    [{"probe_steps": 0}, {"probe_momentum": 1.0}, {"alpha_every": 0}, {"selection": "test"}, {"templates": ()}, {"templates": ("none",)}],
    ids=str,
)
def test_options_out_of_range(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        methods.build("lpp", small_clip_in_float64(), options)
