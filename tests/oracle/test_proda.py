"""ProDA against its plain form, and its loss against what it is said to be: no numbers of the authors' code can be had."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mmrl import methods
from mmrl.clip import Clip
from mmrl.errors import UsageError
from mmrl.methods.proda import ProDA, positions_of, spread, upper_bound
from tests.oracle.methods.compare import NAMES, TEMPLATE, batch, disturbed, same, same_logits, same_step
from tests.oracle.methods.proda import plain
from tools.golden.replay import differentiate

OTHER = ("zig zagged", "dog", "one of_the others")
SHORT = ("x", "zig zagged", "a bird")  # that leave room for 16 tokens among the small CLIP's 24


def proda(options: dict[str, Any], names: tuple[str, ...] = NAMES) -> ProDA:
    method = disturbed("proda", {"n_ctx": 4, **options}, names)
    assert isinstance(method, ProDA)
    return method


@pytest.mark.parametrize(
    ("options", "memory"),
    [
        ({"n_prompts": 8, "prompts_per_step": 4}, None),
        ({"n_prompts": 5, "prompts_per_step": 5, "covariance": "diagonal"}, None),
        ({"n_prompts": 6, "prompts_per_step": 3, "class_token_position": "front", "n_ctx": 5}, None),
        ({"n_prompts": 4, "prompts_per_step": 2, "class_token_position": "middle", "covariance": "diagonal"}, 1e-9),
        ({"n_prompts": 8, "class_token_position": "end", "orthogonality_weight": 7.0}, 1e-9),
        ({"n_prompts": 4, "orthogonality_weight": 0.0}, None),
        ({"n_prompts": 1}, None),
        ({"n_prompts": 4, "n_ctx": 1}, None),
    ],
)
def test_equals_its_plain_form(options: dict[str, Any], memory: float | None) -> None:
    method, (images, labels) = proda(options), batch()
    classes, slow = method.class_list(NAMES, TEMPLATE, memory_gib=memory), plain(method, NAMES, TEMPLATE)
    loss = method.loss(images, labels, classes)
    same_step(method, slow, loss.total, slow.loss(images, labels))
    if len(method.positions) > 1:
        same("orthogonality", loss.terms["orthogonality"], slow.orthogonality())
    with torch.no_grad():
        same_logits(method, slow, method.logits(images, method.head(classes), True), images)
        other = method.class_list(OTHER, TEMPLATE)
        same_logits(method, plain(method, OTHER, TEMPLATE), method.logits(images, method.head(other), False), images)


@pytest.mark.parametrize("covariance", ["full", "diagonal"])
def test_the_plain_bound_is_of_the_covariance_written_out(covariance: str) -> None:
    """S (C, C, d, d) of all class weights, from whose blocks the paper makes that of every two classes' difference."""
    slow, labels = plain(proda({"n_prompts": 4, "covariance": covariance}), NAMES, TEMPLATE), torch.tensor([0, 2, 1])
    weights, image = (torch.randn(*shape, 6, dtype=torch.float64) for shape in ((4, 3), (3,)))
    mean, off = weights.mean(0), weights - weights.mean(0)
    blocks = torch.einsum("kcd,kie->cide", off, off) / len(weights)
    if covariance == "diagonal":
        blocks = blocks * torch.eye(6, dtype=torch.float64)
    losses = []
    for x, y in zip(image, labels):
        a = [blocks[i, i] + blocks[y, y] - blocks[i, y] - blocks[y, i] for i in range(3)]
        exponents = torch.stack([slow.scale * x @ mean[i] + slow.scale**2 * x @ a[i] @ x / 2 for i in range(3)])
        losses.append(exponents.logsumexp(0) - slow.scale * x @ mean[y])
    same("bound", slow.bound(image, weights, labels), torch.stack(losses).mean())


def test_at_its_defaults() -> None:
    method, (images, labels) = proda({"n_ctx": 16}, SHORT), batch(len(SHORT))
    slow = plain(method, SHORT, TEMPLATE)
    same_step(method, slow, method.loss(images, labels, method.class_list(SHORT, TEMPLATE)).total, slow.loss(images, labels))


def test_every_prompt_has_its_turn() -> None:
    """The same ones after a resume, and in processes that train together: seed and step decide."""
    method, (images, labels) = proda({"n_prompts": 6, "prompts_per_step": 2}), batch()
    classes, tours = method.class_list(NAMES, TEMPLATE), []
    for _ in range(4):
        tour = []
        for _ in range(3):
            assert method.turn() == method.turn() == sorted(method.turn())
            tour += method.turn()
            expected = plain(method, NAMES, TEMPLATE).loss(images, labels)
            loss, gradients = method.gradients(images, labels, classes, differentiate(method))
            same("loss", loss.total, expected)
            assert gradients[0] is not None and bool(gradients[0].flatten(1).any(1).all())  # of all contexts, by the orthogonality
        assert sorted(tour) == list(range(6))
        tours.append(tour)
    assert len({tuple(tour) for tour in tours}) > 1 and int(method.steps) == 12
    again = proda({"n_prompts": 6, "prompts_per_step": 2})
    again.steps.fill_(5)
    assert again.turn() == tours[1][4:6] and "steps" not in again.state_dict()


def weights(prompts: int, classes: int = 5, d: int = 6, size: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    """Images (B, d), class weights (K, C, d), labels (B,)."""
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(3, d, generator=generator, dtype=torch.float64)
    text = torch.randn(1, classes, d, generator=generator, dtype=torch.float64)
    text = text + size * torch.randn(prompts, classes, d, generator=generator, dtype=torch.float64)
    return image, text, torch.tensor([4, 0, 2])


@pytest.mark.parametrize("covariance", ["full", "diagonal"])
def test_without_spread_it_is_the_cross_entropy_of_the_mean(covariance: Any) -> None:
    for image, text, labels in (weights(4, size=0.0), weights(1)):
        variance = spread(image, text, labels, covariance)
        assert float(variance.abs().max()) < 1e-12
        logits = image @ text.mean(0).T
        assert float(upper_bound(logits, variance, labels)) == pytest.approx(float(F.cross_entropy(logits, labels)), abs=1e-12)


def test_with_one_prompt_it_is_coop() -> None:
    """Whose loss, gradient and logits follow from the same context."""
    one, other = proda({"n_prompts": 1}), disturbed("coop", {"n_ctx": 4})
    with torch.no_grad():
        other.get_parameter("ctx").copy_(one.ctx[0])
    images, labels = batch()
    found = [method.loss(images, labels, method.class_list(NAMES, TEMPLATE)) for method in (one, other)]
    same("loss", found[0].total, found[1].total)
    same("logits", found[0].logits, found[1].logits)
    (a,), (b,) = (torch.autograd.grad(loss.total, list(method.parameters())) for loss, method in zip(found, (one, other)))
    same("gradient", a[0], b)


def test_a_diagonal_is_the_spread_of_independent_numbers() -> None:
    """With images along one axis there is nothing but a diagonal."""
    _, text, labels = weights(7)
    axes = 2 * torch.eye(6, dtype=torch.float64)[:3]
    same("spread", spread(axes, text, labels, "diagonal"), spread(axes, text, labels, "full"))
    image = weights(7)[0]
    assert not torch.allclose(spread(image, text, labels, "diagonal"), spread(image, text, labels, "full"))


@pytest.mark.parametrize("covariance", ["full", "diagonal"])
@pytest.mark.parametrize("size", [0.2, 0.7])
def test_it_bounds_the_expected_cross_entropy(covariance: Any, size: float) -> None:
    """Monte Carlo: class weights drawn from the Gaussian with the prompts' mean and covariance."""
    image, text, labels = weights(8, size=size)
    prompts, classes, d = text.shape
    mean, off = text.mean(0), (text - text.mean(0)).flatten(1)  # (K, C * d)
    sigma = off.T @ off / prompts
    if covariance == "diagonal":  # of each of the blocks
        sigma = sigma * torch.eye(d, dtype=torch.float64).repeat(classes, classes)
    values, vectors = torch.linalg.eigh(sigma)
    assert float(values.min()) > -1e-12
    root = vectors * values.clamp_min(0).sqrt()
    draws = 40_000
    noise = torch.randn(draws, classes * d, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    drawn = mean + (noise @ root.T).unflatten(1, (classes, d))  # (draws, C, d)
    logits = torch.einsum("bd,scd->sbc", image, drawn)
    variance = spread(image, text, labels, covariance)
    moved = logits - logits.gather(2, labels[None, :, None].expand(draws, -1, 1))
    assert torch.allclose(moved.var(0), variance, rtol=0.05, atol=1e-9)
    losses = F.cross_entropy(logits.flatten(0, 1), labels.repeat(draws), reduction="none").unflatten(0, (draws, -1)).mean(1)
    error = 4 * float(losses.std()) / math.sqrt(draws)
    bound, plug_in = upper_bound(image @ mean.T, variance, labels), F.cross_entropy(image @ mean.T, labels)
    assert float(plug_in) < float(losses.mean()) - error and float(losses.mean()) + error < float(bound)
    # what Jensen's inequality starts from: the log of the mean of sums of exponentials, which for a Gaussian has a closed form
    sums = moved.exp().sum(-1).mean(0).log().mean()
    assert float(sums) == pytest.approx(float(bound), rel=0.05)


def test_where_class_names_stand() -> None:
    assert positions_of("mixed", 8) == ["front"] * 2 + ["middle"] * 2 + ["end"] * 4
    assert positions_of("mixed", 1) == ["end"] and positions_of("mixed", 6) == ["front", "middle", *["end"] * 4]
    assert positions_of("middle", 3) == ["middle"] * 3
    assert set(proda({"n_prompts": 3}).class_list(NAMES, TEMPLATE).placed) == {"end"}
    assert set(proda({"n_prompts": 4}).class_list(NAMES, TEMPLATE).placed) == {"front", "middle", "end"}


def test_options_that_do_not_fit(small_clip: Clip) -> None:
    with pytest.raises(UsageError, match="n_prompts is 6 and prompts_per_step 4, which does not divide it"):
        methods.build("proda", small_clip, {"n_prompts": 6})
    assert methods.build("proda", small_clip, {"n_prompts": 3}).get_parameter("ctx").shape[:2] == (3, 16)
