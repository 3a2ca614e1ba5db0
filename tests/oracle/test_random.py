"""The fast path against the plain definition on random sizes, in float64, where nothing but a mistake can differ by 1e-9.

Whatever the sizes, the switches and the prompts are: loss, each of its terms, features, logits and every gradient are equal.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from torch import Tensor

from mmrl import methods
from mmrl.clip import Clip, random_clip
from mmrl.methods.mmrl import RepresentationMethod
from mmrl.methods.two_tower import cosine_logits
from tests.oracle.pair import disturb, gradients_of_both, oracle_of, relative_error

TOLERANCE = 1e-9
FLOOR = 1e-6  # norm of a gradient below which it counts as this large: one class, or alpha 0 or 1, makes some exactly zero
CONTEXT = 40
WORDS = ("cat", "airplane", "yellow", "of", "Boeing", "707-320", "Saint", "bird", "x")


@dataclass(frozen=True)
class Shape:
    """What a CLIP is made of; head counts follow."""

    image_layers: int
    text_layers: int
    image_width: int
    text_width: int
    quick_gelu: bool


@dataclass(frozen=True)
class Case:
    """One random input."""

    shape: Shape
    method: str
    options: dict[str, Any]
    names: list[str]
    images: int
    memory: float | None
    seed: int


@cache
def make_clip(shape: Shape) -> Clip:
    """In float64; biases and norms are no longer zeros and ones, so that leaving one out is seen."""
    clip = random_clip(
        "ViT-B-32",
        embed_dim=20,
        quick_gelu=shape.quick_gelu,
        vision_cfg={"layers": shape.image_layers, "width": shape.image_width, "head_width": 8, "patch_size": 8, "image_size": 16},
        text_cfg={"layers": shape.text_layers, "width": shape.text_width, "heads": 2, "context_length": CONTEXT},
    )
    clip.model.double()
    generator = torch.Generator().manual_seed(1)
    for parameter in clip.model.parameters():
        if parameter.ndim == 1:
            parameter += 0.2 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return clip


def share() -> st.SearchStrategy[float]:
    return st.sampled_from([0.0, 1.0]) | st.floats(0.05, 0.95)


def first_layer(depth: int) -> st.SearchStrategy[int]:
    return st.integers(1, depth)


@st.composite
def options_of(draw: st.DrawFn, method: str, shape: Shape) -> dict[str, Any]:
    sides = draw(st.sampled_from([(True, True), (True, True), (True, False), (False, True)]))
    options: dict[str, Any] = {
        "rep_tokens": draw(st.integers(1, 4)),
        "rep_dim": draw(st.integers(1, 12)),
        "first_layer": draw(st.none() | first_layer(shape.image_layers)),
        "first_text_layer": draw(st.none() | first_layer(shape.text_layers)),
        "alpha": draw(share()),
        "lam": draw(st.sampled_from([0.0, 0.5, 7.0])),
        "regulariser": draw(st.sampled_from(["cosine", "l1", "mse"])),
        "visual": sides[0],
        "textual": sides[1],
    }
    if method == "mmrlpp":
        options |= {"beta": draw(share()), "layer_rank": draw(st.integers(1, 3)), "projection_rank": draw(st.integers(1, 5))}
        return options
    options["space"] = draw(st.sampled_from(["shared", "shared", "free", "text-to-visual"]))
    if options["space"] == "text-to-visual":  # needs as many layers on both sides
        count = draw(st.integers(1, min(shape.image_layers, shape.text_layers)))
        options |= {"visual": True, "textual": True}
        options |= {"first_layer": shape.image_layers - count + 1, "first_text_layer": shape.text_layers - count + 1}
    return options


@st.composite
def cases(draw: st.DrawFn) -> Case:
    depth = st.integers(2, 4)
    shape = Shape(draw(depth), draw(depth), draw(st.sampled_from([16, 24])), draw(st.sampled_from([12, 16])), draw(st.booleans()))
    method = draw(st.sampled_from(["mmrl", "mmrlpp"]))
    name = st.integers(1, 5).flatmap(lambda n: st.lists(st.sampled_from(WORDS), min_size=n, max_size=n)).map(" ".join)
    return Case(
        shape=shape,
        method=method,
        options=draw(options_of(method, shape)),
        names=draw(st.lists(name, min_size=1, max_size=6, unique=True)),
        images=draw(st.integers(1, 3)),
        memory=draw(st.sampled_from([None, 1e-9, 2e-4])),  # GiB: no chunks, one class at a time, a few
        seed=draw(st.integers(0, 99)),
    )


def make_method(case: Case) -> RepresentationMethod:
    method = methods.build(case.method, make_clip(case.shape), case.options, seed=case.seed).double()
    assert isinstance(method, RepresentationMethod)
    disturb(method, 0.1, seed=case.seed)
    return method


def check(what: str, found: Tensor, expected: Tensor | None, floor: float = 1e-12) -> None:
    assert expected is not None, f"the oracle has no {what}"
    assert found.dtype == torch.float64
    error = relative_error(found, expected, floor)
    assert error <= TOLERANCE, f"{what}: relative error {error:.2e}"  # NaN fails too


def compare(case: Case) -> None:
    method = make_method(case)
    classes = method.class_list(case.names, "a {}.", memory_gib=case.memory)
    plain = oracle_of(method, classes)
    generator = torch.Generator().manual_seed(case.seed)
    images = torch.randn(case.images, 3, 16, 16, generator=generator, dtype=torch.float64)
    labels = torch.randint(len(classes), (case.images,), generator=generator)
    loss, expected = method.loss(images, labels, classes), plain(images, labels)
    loss.total.backward()
    expected["loss"].backward()

    assert loss.terms.keys() == expected["terms"].keys()
    for name, term in loss.terms.items():
        # A regulariser near 0 is a difference of numbers near 1, of which neither side knows more than the last digits.
        check(name, term, expected["terms"][name], floor=1e-4)
    check("loss", loss.total, expected["loss"], floor=1e-4)
    check("training logits", loss.logits, expected["logits_fused"])
    check("zero-shot text", classes.zero_shot, expected["text_features_zero_shot"])
    check("zero-shot image", method.clip.encode_image(images), expected["image_features_zero_shot"])
    for name, (ours, theirs) in gradients_of_both(method, plain).items():
        check(f"gradient of {name}", ours, theirs, FLOOR)
    with torch.no_grad():
        text, image = method.text_features(classes), method.image_features(images)
        check("text features", text, expected["text_features"])
        check("image features", image.class_token, expected["image_features"])
        check("logits, new classes", method.combine(image, text, seen=False), expected["logits_class"])
        check("logits, trained classes", method.combine(image, text, seen=True), expected["logits_fused"])
        if image.representation is None:
            assert expected["representation_features"] is None
        else:
            check("representation features", image.representation, expected["representation_features"])


@settings(max_examples=30, deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow])
@given(cases())
def test_fast_path_equals_the_definition(case: Case) -> None:
    compare(case)


def corner(method: str, **changes: Any) -> Case:
    shape = Shape(3, 2, 16, 12, True)
    names = ["x", "yellow Boeing 707-320 of Saint airplane bird", "cat"]
    memory = changes.pop("memory", None)
    options = {"rep_tokens": 3, "rep_dim": 6, "first_layer": 2, "first_text_layer": 1, **changes}
    return Case(shape, method, options, changes.pop("names", names), 2, memory, 5)


def test_corners_that_random_cases_may_miss() -> None:
    last = {"first_layer": 3, "first_text_layer": 2}
    for method in ("mmrl", "mmrlpp"):
        compare(corner(method, first_layer=1, first_text_layer=1, rep_tokens=1))
        compare(corner(method, **last))
        compare(corner(method, **last, rep_tokens=1, memory=1e-9))
    for beta in (0.0, 0.3, 1.0):
        compare(corner("mmrlpp", first_layer=1, beta=beta))


def test_a_single_class_with_one_image_and_one_token() -> None:
    shape = Shape(2, 2, 16, 12, False)
    for method in ("mmrl", "mmrlpp"):
        compare(Case(shape, method, {"rep_tokens": 1, "rep_dim": 1}, ["x"], 1, None, 0))


@pytest.mark.parametrize("name", ["mmrl", "mmrlpp"])
def test_nothing_replaced_in_float32(small_clip: Clip, images: Tensor, name: str) -> None:
    method = methods.build(name, small_clip, {"first_layer": 2, "rep_tokens": 3, "rep_dim": 8}, seed=0)
    assert isinstance(method, RepresentationMethod)
    disturb(method, 0.1)
    classes = method.class_list(["x", "yellow bird of Saint cat", "airplane"], "a photo of a {}.")
    plain = oracle_of(method, classes)
    labels = torch.tensor([2, 0, 1])
    loss, expected = method.loss(images, labels, classes), plain(images, labels)
    loss.total.backward()
    expected["loss"].backward()
    assert relative_error(loss.total, expected["loss"]) < 1e-4
    assert relative_error(loss.logits, expected["logits_fused"]) < 1e-4
    for tensor, (ours, theirs) in gradients_of_both(method, plain).items():
        assert relative_error(ours, theirs) < 1e-4, tensor


def test_logits_are_the_scaled_cosine() -> None:
    image, text = torch.randn(3, 8, dtype=torch.bfloat16), torch.randn(5, 8, dtype=torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        logits = cosine_logits(image, text, 100.0)
    assert logits.dtype == torch.float32  # no rounding on top of that of the features
    assert relative_error(logits.double(), 100 * image.double() @ text.double().T) < 1e-4  # rounded to bfloat16 it would be 1e-3


def test_a_mistake_would_be_seen() -> None:
    """The comparison has teeth: one entry of one parameter moved by a millionth is far over the tolerance."""
    method = make_method(corner("mmrlpp"))
    classes = method.class_list(["cat", "yellow bird"], "a {}.")
    plain = oracle_of(method, classes)
    with torch.no_grad():
        method.rep_space[0, 0] += 1e-6
        images = torch.randn(2, 3, 16, 16, dtype=torch.float64)
        assert relative_error(method.text_features(classes), plain(images)["text_features"]) > 10 * TOLERANCE
        assert relative_error(method.image_features(images).class_token, plain(images)["image_features"]) > 10 * TOLERANCE
