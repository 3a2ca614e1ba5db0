"""Options, variants, inference rule and registry of the methods."""

from __future__ import annotations

import copy

import pytest
import torch

from mmrl import methods
from mmrl.clip import Clip, load_clip, random_clip
from mmrl.errors import UsageError
from mmrl.methods.frozen import FrozenOptions
from mmrl.methods.mmrl import fuse
from tests.oracle.pair import relative_error

TOLERANCE = 1e-9  # in float64
NAMES = ["cat", "dog", "great white shark"]
LABELS = torch.tensor([0, 2, 1])


def step(method: methods.Method, images: torch.Tensor) -> methods.Loss:
    loss = method.loss(images, LABELS, method.class_list(NAMES, "a photo of a {}."))
    loss.total.backward()
    return loss


def test_trainable_parameters_at_b16() -> None:
    """Paper, Table 6 (4.992 M) and the MMRL++ paper; only the shapes of ViT-B/16 matter, so the model stays on the meta device."""
    with torch.device("meta"):
        clip = random_clip("ViT-B-16")
        counts = {name: sum(p.numel() for p in methods.build(name, clip).parameters()) for name in ("mmrl", "mmrlpp", "zero-shot")}
    assert counts == {"mmrl": 4_992_256, "mmrlpp": 813_312, "zero-shot": 0}


def test_the_published_first_layer_is_the_default(small_clip: Clip) -> None:
    with torch.device("meta"):
        method = methods.build("mmrl", random_clip("ViT-B-16"))
    assert (method.j_visual, method.j_text) == (6, 6)  # type: ignore[attr-defined]
    small = methods.build("mmrl", small_clip)
    assert (small.j_visual, small.j_text) == (2, 2)  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", ["mmrl", "mmrlpp"])
@pytest.mark.parametrize(
    "options",
    [
        {"visual": False}, {"textual": False}, {"regulariser": "l1"}, {"regulariser": "mse"}, {"alpha": 0.0}, {"alpha": 1.0}, {"lam": 0.0},
        {"rep_tokens": 1}, {"rep_dim": 3}, {"first_layer": 4}, {"first_layer": 1, "first_text_layer": 3},
    ],
    ids=str,
)  # fmt: skip
def test_every_switch_trains(small_clip: Clip, images: torch.Tensor, name: str, options: dict[str, object]) -> None:
    method = methods.build(name, small_clip, {"rep_dim": 16, **options}, seed=0)
    loss = step(method, images)
    assert torch.isfinite(loss.total)
    assert ("ce_rep" in loss.terms) == options.get("visual", True)
    moved = [key for key, p in method.named_parameters() if p.grad is not None and p.grad.abs().max() > 0]
    # at the start B is zero, so A has no gradient yet; alpha 1 leaves the representation features out
    still = {key for key, _ in method.named_parameters()} - set(moved)
    assert still <= {"visual.a", "text.a", "projection_a"} | ({"projection", "projection_b"} if options.get("alpha") == 1.0 else set())


@pytest.mark.parametrize("space", ["free", "text-to-visual"])
def test_spaces_of_table_4(small_clip: Clip, images: torch.Tensor, space: str) -> None:
    method = methods.build("mmrl", small_clip, {"space": space, "first_layer": 3, "first_text_layer": 2}, seed=0)
    assert torch.isfinite(step(method, images).total)
    assert "rep_space" not in dict(method.named_parameters())
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in method.parameters())


def test_text_to_visual_needs_layers_in_pairs(small_clip: Clip) -> None:
    with pytest.raises(UsageError, match="layer by layer.*first_text_layer"):
        methods.build("mmrl", small_clip, {"space": "text-to-visual", "first_layer": 1, "first_text_layer": 3})


def test_maps_start_equal_and_projection_starts_as_the_frozen_one(small_clip: Clip) -> None:
    torch.manual_seed(0)
    first = methods.build("mmrl", small_clip)
    assert all(torch.equal(first.visual.weight[0], w) for w in first.visual.weight)  # type: ignore[union-attr, operator]
    second = methods.build("mmrlpp", small_clip)
    assert torch.equal(second.rep_projection(), small_clip.vision.projection)  # type: ignore[operator]
    assert torch.equal(second.visual.b, torch.zeros_like(second.visual.b))  # type: ignore[union-attr, arg-type]


def test_seed_decides_the_start_and_leaves_the_generator_alone(small_clip: Clip) -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    one, same, other = (methods.build("mmrl", small_clip, seed=s).state_dict() for s in (1, 1, 2))
    assert torch.equal(torch.rand(1), expected)
    assert all(torch.equal(one[k], same[k]) for k in one) and not torch.equal(one["rep_space"], other["rep_space"])


# ---- inference ----


def both_logits(classes: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    c, r = 100 * torch.rand(2, 8, classes, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return c, r


@pytest.mark.parametrize("fusion", ["logits", "probabilities"])
def test_mixed_lists_reduce_to_the_papers_two_cases(fusion: str) -> None:
    c, r = both_logits()
    every, none = torch.ones(5, dtype=torch.bool), torch.zeros(5, dtype=torch.bool)
    paper = 0.7 * c + 0.3 * r if fusion == "logits" else torch.log(0.7 * c.softmax(-1) + 0.3 * r.softmax(-1))
    fused = fuse(c, r, every, alpha=0.7, fusion=fusion)
    assert relative_error(fused.softmax(-1), paper.softmax(-1)) < TOLERANCE
    assert torch.equal(fuse(c, r, none, alpha=0.7, fusion=fusion), c)


@pytest.mark.parametrize("fusion", ["logits", "probabilities"])
def test_mixed_lists_keep_one_scale(fusion: str) -> None:
    c, r = both_logits()
    seen = torch.tensor([True, False, True, True, False])
    mixed = fuse(c, r, seen, alpha=0.7, fusion=fusion).softmax(-1)
    class_alone = c.softmax(-1)
    new, trained = (mixed[:, ~seen], class_alone[:, ~seen]), (mixed[:, seen].sum(-1), class_alone[:, seen].sum(-1))
    assert relative_error(*new) < TOLERANCE  # new classes keep what the class token gives them
    assert relative_error(*trained) < TOLERANCE  # trained ones share what it gives them
    within = fuse(c[:, seen], r[:, seen], torch.ones(3, dtype=torch.bool), alpha=0.7, fusion=fusion).softmax(-1)
    assert relative_error(mixed[:, seen] / mixed[:, seen].sum(-1, keepdim=True), within) < TOLERANCE


def test_inference_switches(small_clip: Clip, images: torch.Tensor) -> None:
    answers = {}
    for inference in ("decoupled", "class", "both"):
        method = methods.build("mmrl", small_clip, {"inference": inference}, seed=0)
        with torch.no_grad():
            text = method.text_features(method.class_list(NAMES, "a {}."))
            answers[inference] = [method.logits(images, text, seen) for seen in (True, False)]
    decoupled, class_alone, both = (answers[k] for k in ("decoupled", "class", "both"))
    assert not torch.equal(decoupled[0], decoupled[1])
    assert torch.equal(class_alone[0], decoupled[1]) and torch.equal(class_alone[1], decoupled[1])
    assert torch.equal(both[0], decoupled[0]) and torch.equal(both[1], decoupled[0])


def test_memory_budget_gives_the_chunk(small_clip: Clip, images: torch.Tensor) -> None:
    exact = copy.deepcopy(small_clip)
    exact.model.double()
    method, names = methods.build("mmrl", exact, seed=0).double(), [f"thing {i}" for i in range(9)]
    whole, chunked = (method.class_list(names, "a {}.", memory_gib=gib) for gib in (None, 2e-4))
    assert whole.fed.chunk is None
    assert chunked.fed.chunk is not None and 1 <= chunked.fed.chunk < 9
    losses, gradients = [], []
    for classes in (whole, chunked):
        method.zero_grad()
        loss = method.loss(images.double(), LABELS, classes).total
        loss.backward()
        losses.append(loss)
        gradients.append([p.grad.clone() for p in method.parameters() if p.grad is not None])
    assert relative_error(losses[1], losses[0]) < TOLERANCE
    assert len(gradients[0]) == len(list(method.parameters()))
    for found, expected in zip(gradients[1], gradients[0], strict=True):
        assert relative_error(found, expected) < TOLERANCE
    with pytest.raises(UsageError, match="memory_gib is 0"):
        method.class_list(names, "a {}.", memory_gib=0)


# ---- options and registry ----


def test_all_bad_options_are_reported_together(small_clip: Clip) -> None:
    with pytest.raises(UsageError) as caught:
        methods.build("mmrl", small_clip, {"rep_token": 3, "alpha": 1.5, "rep_tokens": 0, "regulariser": "cosin"})
    message = str(caught.value)
    for part in (
        "unknown option of mmrl 'rep_token'. Did you mean 'rep_tokens'?",
        "alpha is 1.5",
        "less than or equal to 1",
        "rep_tokens is 0",
        "cosin",
    ):
        assert part in message


@pytest.mark.parametrize(("key", "tower", "depth"), [("first_layer", "image", 4), ("first_text_layer", "text", 3)])
def test_layers_are_checked_against_the_depth(small_clip: Clip, key: str, tower: str, depth: int) -> None:
    with pytest.raises(UsageError, match=rf"{key} is 9, but the {tower} tower .* has {depth} layers; give 1 to {depth}"):
        methods.build("mmrl", small_clip, {key: 9})


def test_nothing_to_train(small_clip: Clip) -> None:
    with pytest.raises(UsageError, match="nothing to train"):
        methods.build("mmrl", small_clip, {"visual": False, "textual": False})
    assert not methods.build("zero-shot", small_clip).trainable  # and so the engine refuses it (test_engine_fit.py)


def test_unknown_method_and_duplicate_registration(small_clip: Clip) -> None:
    with pytest.raises(UsageError, match="unknown method 'mmlr'. Did you mean 'mmrl'"):
        methods.build("mmlr", small_clip)
    with pytest.raises(ValueError, match="registered already"):
        methods.register("mmrl")(type("Other", (methods.get("zero-shot"),), {}))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("tinny", "unknown backbone 'tinny'. Did you mean 'tiny'"),
        ("ViT-B-16", "needs its weights: ViT-B-16-quickgelu/openai, "),
        ("ViT-B-16/opneai", "Did you mean 'openai'"),
        ("local-dir:nowhere", "no open_clip_config.json"),
        ("nowhere/clip.pt", "backbone file not found"),
    ],
)
def test_unknown_backbones(name: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        load_clip(name)


@pytest.mark.parametrize("name", [name for name, cls in methods.registered().items() if issubclass(cls.Options, FrozenOptions)])
def test_prompts_of_a_methods_own_are_checked_with_its_options(name: str) -> None:
    cls = methods.get(name)
    assert methods.make_options(cls, {"templates": ["a {}.", "b {}."]}).model_dump()["templates"] == ("a {}.", "b {}.")
    with pytest.raises(UsageError, match=r"^templates is \['no place'\]: the prompt template 'no place' must have exactly one {}, .*\.$"):
        methods.make_options(cls, {"templates": ["no place"]})
    with pytest.raises(UsageError, match="'a {}' stands twice; each counts once.$"):
        methods.make_options(cls, {"templates": ["a {}", "a {}"]})
