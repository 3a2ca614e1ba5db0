"""GDA against its plain form, and against what its classifier is."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from mmrl import methods
from mmrl.clip import Clip
from mmrl.errors import Notice, UsageError
from mmrl.methods import Task
from mmrl.methods.gda import GDA, shrunk_inverses
from tests.oracle.methods.compare import NAMES, TEMPLATE, batch, same, same_logits, small_clip_in_float64
from tests.oracle.methods.feature_source import Images, shapes
from tests.oracle.methods.gda import Plain, gaussians, samples_of, selected

TEMPLATES = ("itap of a {}.", "art of the {}.", "{} texture.")
ORDERED = (NAMES[2], NAMES[0], NAMES[3])
NEW = ("dog", "small red bird", "great white shark")
MIXED = ("dog", NAMES[2], "small red bird", NAMES[0])
FORMS = ["shrunk", "mean"]


def made(options: dict[str, Any] | None = None, images: Images | None = None, *, finish: bool = False) -> GDA:
    images = images or Images(small_clip_in_float64())
    method = methods.build("gda", images.clip, {"augment_epoch": 6, **(options or {})}, seed=0, task=images.task())
    assert isinstance(method, GDA)
    if finish:
        method.finish(images.task())
    return method


def samples(method: GDA, images: Images) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        return samples_of(images.clip.model, images.views("train", method.options.augment_epoch), images.labels["train"])


def plain(method: GDA, images: Images, names: tuple[str, ...] = NAMES) -> Plain:
    return Plain(method, names, TEMPLATE, *samples(method, images))


def logits(method: GDA, names: tuple[str, ...], images: Tensor) -> Tensor:
    return method.logits(images, method.head(method.class_list(names, TEMPLATE)), True)


@pytest.mark.parametrize("covariance", FORMS)
@pytest.mark.parametrize("views", [2, 6])
def test_the_classifier_of_trained_classes(covariance: str, views: int) -> None:
    images = Images(small_clip_in_float64())
    method = made({"augment_epoch": views, "covariance": covariance}, images)
    expected, precision = gaussians(method, *samples(method, images))
    same("samples", method.samples, samples(method, images)[0])
    same("weight", method.weight, expected @ precision)
    assert images.passes == [("train", views)]  # the validation images are for the search alone
    assert not method.trainable and set(method.state_dict()) == {"weight", "bias", "alpha", "samples"}


@pytest.mark.parametrize("covariance", FORMS)
@pytest.mark.parametrize(
    "options",
    [{}, {"alpha": 3.0}, {"alpha": 0.0, "templates": TEMPLATES}, {"neighbours": 7, "text_copies": 3}, {"neighbours": 2, "text_copies": 0}],
)
def test_logits(covariance: str, options: dict[str, Any]) -> None:
    images = Images(small_clip_in_float64())
    method, (test, _) = made({"covariance": covariance, **options}, images), batch()
    for names in (NAMES, ORDERED, NAMES[1:2], NEW, NEW[:1], MIXED):
        same_logits(method, plain(method, images, names), logits(method, names, test), test)


@pytest.mark.parametrize("cut", [None, 0.05, 0.3])
def test_the_cut_of_the_pseudo_inverse(cut: float | None) -> None:
    """22 samples of 4 classes show 18 directions; a higher cut leaves fewer."""
    images = Images(small_clip_in_float64())
    method = made({"covariance": "mean", "pinv_cut": cut, "augment_epoch": 2}, images)
    rank = int(torch.linalg.matrix_rank(method._fitted(*samples(method, images), len(NAMES)).precision, rtol=1e-9))
    assert rank == 18 if cut is None else rank < 18
    test = batch()[0]
    same_logits(method, plain(method, images), logits(method, NAMES, test), test)


@pytest.mark.parametrize("chunk", [2**24, 1])
def test_in_parts(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of samples, classes and validation images a few at a time, so that memory is bounded: the same numbers."""
    monkeypatch.setattr("mmrl.methods.gda.VALUES", chunk)
    images = Images(small_clip_in_float64(), noise=2.0)
    method, test = made({"covariance": "mean", "neighbours": 9}, images, finish=True), images.images["test"]
    for names in (NAMES, NEW, MIXED):
        same_logits(method, plain(method, images, names), logits(method, names, test), test)


@pytest.mark.parametrize("covariance", FORMS)
@pytest.mark.parametrize("seed", range(4))
def test_search(covariance: str, seed: int) -> None:
    images = Images(small_clip_in_float64(), noise=2.0, seed=seed)
    method = made({"covariance": covariance}, images)
    with torch.no_grad():
        image = torch.nn.functional.normalize(images.clip.model.encode_image(images.images["val"]), dim=-1)
    expected = selected(plain(method, images), image, images.labels["val"], method.options.alpha_grid, 0.1)
    method.finish(images.task())
    assert float(method.alpha) == expected and images.passes[:2] == [("train", 6), ("val", 0)]


def test_the_search_finds_more_than_one_point() -> None:
    """Or the test above would show nothing."""
    runs = [Images(small_clip_in_float64(), noise=2.0, seed=seed) for seed in range(4)]
    assert len({float(made({"covariance": form}, images, finish=True).alpha) for images in runs for form in FORMS}) > 1


def test_where_nothing_is_right_alpha_stays() -> None:
    images = Images(small_clip_in_float64())
    method = made({"alpha": 2.0}, images)
    images.labels["val"] = torch.full_like(images.labels["val"], -1)
    method.finish(images.task())
    assert float(method.alpha) == 2.0


def test_fixed_and_without_validation_images() -> None:
    images = Images(small_clip_in_float64())
    method = made({"selection": "fixed", "alpha": 3.0}, images, finish=True)
    assert float(method.alpha) == 3.0 and images.passes == [("train", 6)]
    method = made({"alpha": 3.0}, images)
    with pytest.warns(Notice, match=r"no validation images to select alpha on, and keeps that of its options: 3\.0"):
        method.finish(images.task(validation=False))
    assert float(method.alpha) == 3.0


def test_it_learns() -> None:
    images = Images(small_clip_in_float64(), noise=0.5)
    method, test = made(images=images, finish=True), images.images["test"]
    assert (logits(method, NAMES, test).argmax(-1) == images.labels["test"]).double().mean() > 0.9


@pytest.mark.parametrize("covariance", FORMS)
def test_a_list_with_trained_and_new_classes(covariance: str) -> None:
    """Each half is divided as in a list of its own, and has together what frozen CLIP gives it at its own scale."""
    method, test = made({"covariance": covariance}), batch()[0]
    trained = torch.tensor([name in NAMES for name in MIXED])
    mixed = logits(method, MIXED, test).softmax(-1)
    with torch.no_grad():
        image = torch.nn.functional.normalize(method.clip.model.encode_image(test), dim=-1)
        text = method.class_list(MIXED, TEMPLATE).zero_shot
        frozen = (method.clip.logit_scale * image @ text.T).softmax(-1)
    for half in (trained, ~trained):
        names = [name for name, own in zip(MIXED, half.tolist(), strict=True) if own]
        alone = logits(method, names, test).softmax(-1)
        same("half", mixed[:, half], alone * frozen[:, half].sum(-1, keepdim=True))
    assert 0 < int(trained.sum()) < len(MIXED)


def test_shrunk_inverses() -> None:
    for shape in ((3, 5, 12), (2, 20, 12), (1, 2, 3)):
        centred = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        scatter = centred.mT @ centred
        shrunk = scatter + scatter.diagonal(dim1=1, dim2=2).sum(-1).view(-1, 1, 1) / (shape[1] - 1) * torch.eye(shape[2])
        same("inverses", shrunk_inverses(centred), torch.linalg.inv(shrunk).sum(0))


def test_without_samples_it_knows_the_trained_classes_alone() -> None:
    method, whole, test = made({"keep_samples": False}), made(), batch()[0]
    assert not method.open_vocabulary(method.options) and whole.open_vocabulary(whole.options)
    assert set(method.state_dict()) == {"weight", "bias", "alpha"}
    assert torch.equal(logits(method, ORDERED, test), logits(whole, ORDERED, test))
    with pytest.raises(UsageError, match="'dog' is not one of them"):
        logits(method, MIXED, test)


@pytest.mark.parametrize("options", [{}, {"keep_samples": False}])
def test_loaded_from_names_and_the_number_of_images(options: dict[str, Any]) -> None:
    images = Images(small_clip_in_float64())
    method = made(options, images, finish=True)
    loaded = methods.build("gda", images.clip, method.options, task=Task(NAMES, TEMPLATE, images=len(images.labels["train"]))).double()
    assert isinstance(loaded, GDA) and shapes(loaded) == shapes(method)
    loaded.load_state_dict(method.state_dict())
    loaded.finish(Task(NAMES, TEMPLATE, images=11, validation=4))  # without features there is nothing to choose on
    for names in (ORDERED, *([MIXED, NEW] if not options else [])):
        assert torch.equal(logits(loaded, names, batch()[0]), logits(method, names, batch()[0]))


def test_shapes_need_no_memory() -> None:
    with torch.device("meta"):
        method = GDA(small_clip_in_float64(), GDA.Options())
        method.setup(Task(NAMES, TEMPLATE, images=10**8))
    assert {name: tuple(value.shape) for name, value in method.state_dict().items()} == {
        "weight": (4, 48), "bias": (4,), "alpha": (), "samples": (10**9, 48),
    }  # fmt: skip


def test_fewer_samples_than_neighbours() -> None:
    images = Images(small_clip_in_float64())
    method, test = made({"augment_epoch": 0, "neighbours": 64}, images), batch()[0]
    images_of = len(images.labels["train"])
    assert len(method.samples) == images_of < 64
    with torch.no_grad():
        found = samples_of(images.clip.model, images.views("train", 0), images.labels["train"])
    same_logits(method, Plain(method, NEW, TEMPLATE, *found), logits(method, NEW, test), test)


def test_samples_that_show_no_covariance() -> None:
    images = Images(small_clip_in_float64())
    with pytest.raises(UsageError, match=r"'extra' has none \(1 of 5 classes\)"):
        methods.build("gda", images.clip, task=images.task((*NAMES, "extra")))
    one = [int((images.labels["train"] == c).nonzero()[0]) for c in range(len(NAMES))]
    images.images["train"], images.labels["train"] = images.images["train"][one], torch.arange(len(NAMES))
    with pytest.raises(UsageError, match="those of each class are equal: augment_epoch is 0. Give it 2"):
        made({"augment_epoch": 0}, images)
    with pytest.raises(UsageError, match="needs two samples of every class.*augment_epoch is 1. Give it 2"):
        made({"augment_epoch": 1, "covariance": "mean"}, images)


@pytest.mark.parametrize(
    "options",
    [
        {"alpha": -1}, {"alpha_grid": ()}, {"selection": "test"}, {"covariance": "full"}, {"neighbours": 1}, {"text_copies": -1},
        {"pinv_cut": 1.0}, {"augment_epoch": -1}, {"templates": ("no place",)}, {"keep_samples": 2},
    ],
)  # fmt: skip
def test_options_out_of_range(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        methods.build("gda", small_clip_in_float64(), options)


def test_in_bfloat16(small_clip: Clip) -> None:
    method = made({"selection": "fixed"}, Images(small_clip))
    test = Images(small_clip).images["test"]
    assert {value.dtype for value in method.state_dict().values()} == {torch.float32}
    for names in (NAMES, NEW, MIXED):
        exact = logits(method, names, test)
        with torch.autocast("cpu", torch.bfloat16):
            rounded = logits(method, names, test)
        assert rounded.dtype == torch.float32 and bool(rounded.isfinite().all())
        assert (rounded - exact).abs().max() < 0.05 * max(100, float(exact.abs().max()))
