"""The linear probe against its plain form, and against what a logistic regression is."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mmrl import methods
from mmrl.clip import Clip
from mmrl.errors import Notice, UsageError
from mmrl.methods import Task
from mmrl.methods.linear_probe import Fit, LinearProbe, search, tolerance
from tests.oracle.methods.compare import NAMES, TEMPLATE, batch, same, same_logits, small_clip_in_float64
from tests.oracle.methods.feature_source import Images, shapes
from tests.oracle.methods.linear_probe import plain, procedure

GRID = (1e6, 1e4, 1e2, 1.0, 1e-2, 1e-4, 1e-6)
ORDERED = (NAMES[2], NAMES[0], NAMES[3])


def made(images: Images, names: tuple[str, ...] = NAMES, *, validation: bool = True, **options: Any) -> LinearProbe:
    method = methods.build("linear-probe", images.clip, options, task=images.task(names, validation=validation))
    assert isinstance(method, LinearProbe)
    return method


def features_of(images: Images, part: str) -> Tensor:
    with torch.no_grad():
        return images.clip.model.encode_image(images.images[part])


@pytest.mark.parametrize("classes", [4, 2])
@pytest.mark.parametrize(("seed", "steps"), [(0, 8), (1, 8), (2, 3), (3, 1)])
def test_the_authors_procedure(classes: int, seed: int, steps: int) -> None:
    images = Images(small_clip_in_float64(), classes, noise=2.0, seed=seed)
    method = made(images, NAMES[:classes], c_search_steps=steps)
    # Ill-conditioned where C is large: of features that differ in their last digit L-BFGS makes weights that differ by a hundredth.
    data = [each.numpy() for part in ("train", "val") for each in (images(part)[0][0], images.labels[part])]
    expected = procedure(*data, GRID, steps, tol=tolerance(len(data[0])))
    assert images.passes[:2] == [("train", 0), ("val", 0)]
    assert float(method.c) == pytest.approx(expected.c, rel=1e-9)
    test = features_of(images, "test")
    logits, wanted = F.linear(test, method.weight, method.bias), torch.as_tensor(expected.model.predict_proba(test.numpy()))
    assert (logits.softmax(-1) - wanted).abs().max() < 1e-5


@pytest.mark.parametrize("c", [1e-2, 1.0, 100.0])
@pytest.mark.parametrize("classes", [4, 2])
def test_the_gradient_of_penalty_and_sum_of_losses_is_small(c: float, classes: int) -> None:
    """What scikit-learn is asked for does not hang on its version: tol bounds the gradient of the sum over the images."""
    images = Images(small_clip_in_float64(), classes)
    method = made(images, NAMES[:classes], selection="fixed", c=c)
    weight, bias = method.weight.clone().requires_grad_(), method.bias.clone().requires_grad_()
    loss = F.cross_entropy(F.linear(features_of(images, "train"), weight, bias), images.labels["train"], reduction="sum")
    squares = (weight**2).sum() if classes > 2 else ((weight[1] - weight[0]) ** 2).sum()  # of two classes it has one row
    gradients = torch.autograd.grad(c * loss + squares / 2, [weight, bias])
    assert max(float(g.abs().max()) for g in gradients) / c < 2e-4
    assert images.passes == [("train", 0)]


def test_logits() -> None:
    images = Images(small_clip_in_float64())
    method, (test, _) = made(images), batch()
    assert not method.trainable and set(method.state_dict()) == {"weight", "bias", "c"}
    for names in (NAMES, ORDERED, NAMES[1:2]):
        head = method.head(method.class_list(names, TEMPLATE))
        same_logits(method, plain(method, names, TEMPLATE), method.logits(test, head, True), test)


def test_it_learns() -> None:
    images = Images(small_clip_in_float64(), noise=0.5)
    assert images.accuracy(made(images)) > 0.9


def searched(right: dict[float, int], grid: tuple[float, ...], steps: int) -> tuple[float, list[float]]:
    """C that is found, and those fitted, in order, where `right` says how many are right from a C on."""
    fits = []

    def fit(c: float) -> Fit:
        fits.append(round(c, 9))
        return Fit(c, None, None, True, next(count for start, count in right.items() if c >= start))

    return search(fit, grid, steps).c, fits


def test_search() -> None:
    assert searched({0: 5}, (100.0, 1.0, 0.01), 0) == (100.0, [100.0, 1.0, 0.01])  # the first of equals
    assert searched({1: 7, 0: 5}, (0.01, 100.0, 1.0), 0)[0] == 100.0
    c, fits = searched({0: 5}, (1.0,), 3)  # the lower end where both are equal, and never the best of the grid itself
    assert c == 0.1 and fits == [1.0, 0.1, 10.0, 1.0, round(10**-0.5, 9)]
    c, fits = searched({5: 7, 0: 5}, (1.0,), 3)  # the upper end where it is better
    assert c == 10.0 and fits == [1.0, 0.1, 10.0, 1.0, round(10**0.5, 9)]


def test_tolerance_follows_the_objective_of_the_version(monkeypatch: pytest.MonkeyPatch) -> None:
    import sklearn

    for version, expected in (("1.3.2", 1e-4), ("0.24.2", 1e-4), ("1.4.0", 1e-5), ("1.10.0rc1", 1e-5), ("1.9.1", 1e-5)):
        monkeypatch.setattr(sklearn, "__version__", version)
        assert tolerance(10) == pytest.approx(expected)


def test_without_validation_images_it_says_so() -> None:
    images = Images(small_clip_in_float64())
    with pytest.warns(Notice, match=r"no validation images to select C on, and takes that of its options: 2\.0"):
        method = made(images, validation=False, c=2.0)
    assert float(method.c) == 2.0 and images.passes == [("train", 0)]
    fixed = made(images, selection="fixed", c=2.0)
    same("weight", method.weight, fixed.weight)


def test_stopped_early_it_says_so() -> None:
    with pytest.warns(Notice, match="stopped after 2 steps; raise max_iter"):
        made(Images(small_clip_in_float64()), max_iter=2)


def test_a_class_without_an_image() -> None:
    images = Images(small_clip_in_float64())
    with pytest.raises(UsageError, match=r"'extra' has none \(1 of 5 classes\)"):
        made(images, (*NAMES, "extra"))
    with pytest.raises(UsageError, match="'cat' is the only one"):
        made(Images(small_clip_in_float64(), 1), ("cat",))


def test_loaded_from_names() -> None:
    images = Images(small_clip_in_float64())
    method = made(images)
    loaded = methods.build("linear-probe", images.clip, method.options, task=Task(NAMES, TEMPLATE, images=7)).double()
    assert shapes(loaded) == shapes(method)
    loaded.load_state_dict(method.state_dict())
    classes, test = method.class_list(ORDERED, TEMPLATE), images.images["test"]
    assert torch.equal(loaded.logits(test, loaded.head(classes), True), method.logits(test, method.head(classes), True))


def test_it_knows_no_other_class() -> None:
    method = made(Images(small_clip_in_float64()), selection="fixed")
    assert not method.open_vocabulary(method.options)
    with pytest.raises(UsageError, match="'dog' is not one of them"):
        method.head(method.class_list(["cat", "dog"], TEMPLATE))
    with pytest.raises(UsageError, match="nothing to train"):
        method.loss(*batch(), method.class_list(NAMES, TEMPLATE))


def test_in_bfloat16(small_clip: Clip) -> None:
    images = Images(small_clip)
    method = made(images, selection="fixed", c=1.0)
    assert {value.dtype for value in method.state_dict().values()} == {torch.float32}
    head, test = method.head(method.class_list(NAMES, TEMPLATE)), images.images["test"]
    exact = method.logits(test, head, True)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = method.logits(test, head, True)
    assert rounded.dtype == torch.float32 and (rounded - exact).norm() / exact.norm() < 0.05


def test_scikit_learn_is_not_imported_before_it_is_needed() -> None:
    code = "import sys, mmrl.methods.linear_probe; sys.exit(any(name.startswith('sklearn') for name in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
