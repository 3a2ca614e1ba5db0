"""APE and APE-T against their plain form."""

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
from mmrl.methods.ape import APE, APET, similarity
from tests.oracle.methods.ape import Refined, all_text, cache_of, channels, likeness, plain
from tests.oracle.methods.compare import NAMES, TEMPLATE, batch, same, same_logits, same_step, small_clip_in_float64
from tests.oracle.methods.feature_source import Images, shapes

TEMPLATES = ("itap of a {}.", "art of the {}.", "{} texture.")
ORDERED = (NAMES[2], NAMES[0], NAMES[3])
GRID = {"search_scale": (13.0, 9.0, 2.0), "search_step": (5, 4, 3)}
GRID_T = {"search_scale": (13.0, 9.0), "search_step": (5, 4)}
BOTH = ["ape", "ape-t"]


def built(name: str, options: dict[str, Any] | None, images: Images) -> APE | APET:
    method = methods.build(name, images.clip, {"augment_epoch": 2, **(options or {})}, seed=0, task=images.task())
    assert isinstance(method, APE | APET)
    return method


def free(options: dict[str, Any] | None = None, images: Images | None = None) -> APE:
    method = built("ape", options, images or Images(small_clip_in_float64()))
    assert isinstance(method, APE)
    return method


def trained(options: dict[str, Any] | None = None, images: Images | None = None, noise: float = 0.1) -> APET:
    """With noise in every parameter, so that each gradient counts."""
    method = built("ape-t", options, images or Images(small_clip_in_float64()))
    assert isinstance(method, APET)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in method.parameters():
            parameter += noise * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return method


def refined(method: APE, images: Images) -> Refined:
    cache = cache_of(method, images.views("train", method.options.augment_epoch), images.labels["train"], TEMPLATE)
    o = method.options
    return Refined(cache, channels(cache.text, cache.keys, cache.values, o.criterion_weights, max(1, round(48 * o.channels))))


def validation(images: Images) -> Tensor:
    with torch.no_grad():
        return F.normalize(images.clip.model.encode_image(images.images["val"]), dim=-1)


# ---- the channels ----


@pytest.mark.parametrize("keys", [True, False])
def test_similarity_of_classes_with_other_numbers_of_images(keys: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    text, cache = (torch.randn(n, 6, generator=generator, dtype=torch.float64) for n in (3, 5))
    labels = torch.tensor([2, 0, 2, 1, 2])
    vectors = [torch.cat([text[c : c + 1], cache[labels == c]]) if keys else text[c : c + 1] for c in range(3)]
    same("similarity", similarity(text, cache if keys else None, labels), likeness(vectors))


@pytest.mark.parametrize("share", [1.0, 0.5, 0.1, 0.001])
@pytest.mark.parametrize("weights", [(0.7, 0.3), (0.0, 1.0), (1.0, 0.0)])
def test_cache(share: float, weights: tuple[float, float]) -> None:
    images = Images(small_clip_in_float64())
    method = free({"channels": share, "criterion_weights": weights}, images)
    expected = refined(method, images)
    assert method.channels.tolist() == expected.kept.tolist()
    same("keys", method.keys, expected.keys)
    same("divergence", method.divergence, expected.divergence)
    assert images.passes == [("train", 2)]  # the validation images are for the search alone
    tensors = {"keys", "labels", "channels", "divergence", "beta", "alpha", "gamma"}
    assert not method.trainable and set(method.state_dict()) == tensors


@pytest.mark.parametrize("criterion", ["text", "text-and-images"])
def test_channels_that_are_trained(criterion: str) -> None:
    images = Images(small_clip_in_float64())
    method = trained({"criterion": criterion, "channels": 0.4}, images)
    cache = cache_of(method, images.views("train", 2), images.labels["train"], TEMPLATE)
    keys = cache.keys if criterion == "text-and-images" else None
    assert method.channels.tolist() == channels(cache.text, keys, cache.values, (0.2, 0.8), 19).tolist()
    same("keys", method.keys, cache.keys)


# ---- logits, a step ----


@pytest.mark.parametrize(
    "options", [{}, {"alpha": 3.0, "beta": 5.5, "gamma": 2.0}, {"alpha": 0.0}, {"templates": TEMPLATES, "channels": 0.9}]
)
def test_logits(options: dict[str, Any]) -> None:
    images = Images(small_clip_in_float64())
    method, test = free(options, images), batch()[0]
    expected, o = refined(method, images), method.options
    with torch.no_grad():
        image = F.normalize(images.clip.model.encode_image(test), dim=-1)
    for names in (NAMES, ORDERED, NAMES[1:2]):
        values = expected.values[:, [NAMES.index(name) for name in names]]
        wanted = expected.logits(image, all_text(method, TEMPLATE, names), values, o.beta, o.alpha, o.gamma)
        same("logits", method.logits(test, method.head(method.class_list(names, TEMPLATE)), True), wanted)


@pytest.mark.parametrize("options", [{}, {"alpha": 0.5, "beta": 5.5}, {"templates": TEMPLATES, "channels": 1.0}, {"channels": 0.001}])
def test_logits_and_step(options: dict[str, Any]) -> None:
    method, (images, labels) = trained(options), batch(3)
    for names in (NAMES, ORDERED, ORDERED[::-1]):
        classes, slow = method.class_list(names, TEMPLATE), plain(method, names, TEMPLATE)
        same_logits(method, slow, method.logits(images, method.head(classes), True).detach(), images)
        for _ in range(2):
            loss = method.loss(images, labels, classes)
            same_logits(method, slow, loss.logits, images)
            same_step(method, slow, loss.total, slow.loss(images, labels))


def test_untrained_it_is_tip_adapter() -> None:
    images = Images(small_clip_in_float64())
    method, test = trained({"alpha": 2.0, "beta": 3.0}, images, noise=0.0), batch()[0]
    tip = methods.build("tip-adapter", images.clip, {"alpha": 2.0, "beta": 3.0, "augment_epoch": 2}, task=images.task())
    found, expected = (each.logits(test, each.head(each.class_list(NAMES, TEMPLATE)), True).detach() for each in (method, tip))
    same("logits", found, expected)


# ---- selection ----


@pytest.mark.parametrize("chunk", [2**24, 1])
@pytest.mark.parametrize("seed", range(3))
def test_search(seed: int, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmrl.methods.ape.VALUES", chunk)
    images = Images(small_clip_in_float64(), noise=2.0, seed=seed)
    method = free(GRID, images)
    wanted = refined(method, images).search(
        validation(images), images.labels["val"], all_text(method, TEMPLATE, NAMES), GRID["search_scale"], GRID["search_step"]
    )
    method.finish(images.task())
    assert (float(method.beta), float(method.alpha), float(method.gamma)) == wanted
    assert images.passes[:2] == [("train", 2), ("val", 0)]


def test_the_search_finds_more_than_one_point() -> None:
    """Or the test above would show nothing."""
    found = set()
    for seed in range(6):
        images = Images(small_clip_in_float64(), noise=4.0, seed=seed)
        method = free(GRID, images)
        method.finish(images.task())
        found.add((float(method.beta), float(method.alpha), float(method.gamma)))
    assert len(found) > 1


def test_where_nothing_is_right_the_cache_is_left_out() -> None:
    images = Images(small_clip_in_float64())
    method = free(GRID, images)
    images.labels["val"] = torch.full_like(images.labels["val"], -1)
    method.finish(images.task())
    assert float(method.alpha) == float(method.beta) == float(method.gamma) == 0


def epochs(method: APET, images: Images, count: int = 5) -> list[tuple[int, dict[str, Tensor]]]:
    """Train; after each epoch how many validation images are right, and the parameters."""
    optimiser, classes, after = torch.optim.AdamW(method.parameters(), lr=0.05), method.class_list(NAMES, TEMPLATE), []
    for epoch in range(count):
        loss = method.loss(images.images["train"], images.labels["train"], classes).total
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        with torch.no_grad():
            right = method.logits(images.images["val"], method.head(classes), True).argmax(-1) == images.labels["val"]
        after.append((int(right.sum()), {name: p.detach().clone() for name, p in method.named_parameters()}))
        method.epoch_ended(epoch + 1, count)
    return after


@pytest.mark.parametrize("seed", range(3))
def test_the_first_best_epoch_is_kept(seed: int) -> None:
    images = Images(small_clip_in_float64(), noise=3.0, seed=seed)
    method = trained(GRID_T, images, noise=0.0)
    after = epochs(method, images)
    most, kept = max(after, key=lambda one: one[0])  # max takes the first
    assert int(method.most) == most
    method.finish(images.task())
    assert all(torch.equal(value, kept[name]) for name, value in method.named_parameters())
    assert float(method.beta) in [0.1 + i * 12.9 / 5 for i in range(5)] and float(method.alpha) in [0.1 + i * 8.9 / 4 for i in range(4)]
    assert {"held_out", "most", "text"} & set(method.state_dict()) == set()  # of the training alone


def test_fixed_keeps_the_last_epoch() -> None:
    images = Images(small_clip_in_float64())
    method = trained({"selection": "fixed", "alpha": 2.0, "beta": 3.0}, images, noise=0.0)
    last = epochs(method, images, 3)[-1][1]
    method.finish(images.task())
    assert all(torch.equal(value, last[name]) for name, value in method.named_parameters())
    assert (float(method.alpha), float(method.beta)) == (2.0, 3.0) and images.passes == [("train", 2)]


@pytest.mark.parametrize(
    ("name", "said"), [("ape", "keeps its options' 2.0, 3.0 and 0.1"), ("ape-t", "keeps those of its options: 3.0 and 2.0")]
)
def test_without_validation_images_it_says_so(name: str, said: str) -> None:
    images = Images(small_clip_in_float64())
    task = images.task(validation=False)
    method = methods.build(name, images.clip, {"alpha": 3.0, "beta": 2.0, "augment_epoch": 0}, task=task)
    with pytest.warns(Notice, match=said):
        method.epoch_ended(1, 1)
        method.finish(task)
    assert (float(method.get_buffer("alpha")), float(method.get_buffer("beta"))) == (3.0, 2.0)


# ---- what is saved, and what is refused ----


@pytest.mark.parametrize("name", BOTH)
def test_loaded_from_names_and_the_number_of_images(name: str) -> None:
    images = Images(small_clip_in_float64())
    method = built(name, GRID if name == "ape" else GRID_T, images)
    method.finish(images.task())
    loaded = methods.build(name, images.clip, method.options, task=Task(NAMES, TEMPLATE, images=len(method.labels))).double()
    assert shapes(loaded) == shapes(method)
    loaded.load_state_dict(method.state_dict())
    loaded.finish(Task(NAMES, TEMPLATE, images=len(method.labels)))
    classes, test = method.class_list(ORDERED, TEMPLATE), images.images["test"]
    assert torch.equal(loaded.logits(test, loaded.head(classes), True), method.logits(test, method.head(classes), True))


def test_resumed_it_has_the_same_tensors() -> None:
    """A run that goes on is set up without passes over images; its checkpoint has what an epoch is chosen with."""
    images = Images(small_clip_in_float64())
    method, task = trained({}, images), images.task()
    again = methods.build("ape-t", images.clip, method.options, task=Task(task.names, TEMPLATE, task.images, task.validation)).double()
    assert {n: (b.shape, b.dtype) for n, b in again.named_buffers()} == {n: (b.shape, b.dtype) for n, b in method.named_buffers()}


@pytest.mark.parametrize("name", BOTH)
def test_it_knows_no_other_class(name: str) -> None:
    method = built(name, {"selection": "fixed"}, Images(small_clip_in_float64()))
    assert not method.open_vocabulary(method.options)
    with pytest.raises(UsageError, match="'dog' is not one of them"):
        method.head(method.class_list(["cat", "dog"], TEMPLATE))


@pytest.mark.parametrize("name", BOTH)
def test_a_class_without_an_image_and_a_single_class(name: str) -> None:
    with pytest.raises(UsageError, match="'cat' is the only one"):
        methods.build(name, small_clip_in_float64(), task=Images(small_clip_in_float64(), 1).task(("cat",)))
    images = Images(small_clip_in_float64())
    with pytest.raises(UsageError, match=r"'extra' has none \(1 of 5 classes\)"):
        methods.build(name, images.clip, task=images.task((*NAMES, "extra")))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("ape", {"channels": 0.0}), ("ape", {"channels": 1.1}), ("ape", {"search_scale": (7.0, 7.0)}), ("ape", {"selection": "test"}),
        ("ape", {"gamma": -1}), ("ape", {"search_step": (200, 20, 0)}), ("ape-t", {"criterion": "images"}), ("ape-t", {"gamma": 0.1}),
        ("ape-t", {"criterion_weights": (-1.0, 1.0)}), ("ape-t", {"templates": ("no place",)}),
    ],
)  # fmt: skip
def test_options_out_of_range(name: str, options: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        methods.build(name, small_clip_in_float64(), options)


@pytest.mark.parametrize("name", BOTH)
def test_in_bfloat16(small_clip: Clip, name: str) -> None:
    images = Images(small_clip)
    method = built(name, {"alpha": 2.0, "beta": 5.5, "selection": "fixed"}, images)
    classes, test = method.class_list(NAMES, TEMPLATE), images.images["test"]
    exact = method.logits(test, method.head(classes), True).detach()
    with torch.autocast("cpu", torch.bfloat16):
        rounded = method.logits(test, method.head(classes), True).detach()
    assert rounded.dtype == torch.float32 and (rounded - exact).abs().max() < 2
