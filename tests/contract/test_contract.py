"""One battery that every registered method passes, also one that is defined outside the package.

Methods that need to know their task get one whose images are noise; passes over them are what a `FeatureSource` of the engine would give.
"""

from __future__ import annotations

import copy
import hashlib
import inspect
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save
from torch import Tensor

import tests.contract.toy_method  # noqa: F401  (registers it)
from mmrl import engine, methods
from mmrl.clip import Clip
from mmrl.errors import MmrlError, UsageError
from mmrl.methods import Gradients, Loss, Method, Task, TwoTower
from mmrl.recipes import recipe_of
from tests.oracle.pair import relative_error
from tools.golden.replay import Steps, differentiate

TOLERANCE = 1e-9
NAMES = ["cat", "dog", "great white shark", "owl"]
TEMPLATE = "a {}."
LABELS = torch.tensor([0, 2, 1])
VIEWS = {"train": torch.arange(4).repeat(2), "val": torch.arange(4)}  # labels of the task's images
EXACT: dict[str, dict[str, Any]] = {
    **{name: {"sinkhorn_threshold": 0.0} for name in ("plot", "plotpp")},  # else logits depend on the list's other classes, as it says
    "proda": {"n_prompts": 4},  # else other prompts have their turn in every step, and losses cannot be compared
}
PATCHES = ("plot",)  # reads what the frozen tower puts out for the patches, too
CLOSED = {f"{name}, its own context for each class": (name, {"csc": True}) for name in ("coop", "kgcoop", "plot")}
CLOSED |= {"gda, without samples": ("gda", {"keep_samples": False})}
VARIANTS = CLOSED | {"gda, mean of covariances": ("gda", {"covariance": "mean"})}
CASES: dict[str, tuple[str, dict[str, Any]]] = {name: (name, {}) for name in methods.names()} | VARIANTS
CLOSED_FORMS = [case for case in CASES if CASES[case][0] in ("ape", "clap", "gda", "linear-probe", "lpp", "tip-adapter")]
STEPPED = [case for case in CASES if case not in ("zero-shot", *CLOSED_FORMS)]


@pytest.fixture(scope="module")
def exact_clip(small_clip: Clip) -> Clip:
    clip = copy.deepcopy(small_clip)
    clip.model.double()
    return clip


class Source:
    """Frozen features of noise, one picture for each image and view."""

    def __init__(self, clip: Clip) -> None:
        self.clip, self.asked = clip, list[tuple[str, int]]()

    def __call__(self, part: str, views: int = 0) -> tuple[Tensor, Tensor]:
        self.asked.append((part, views))
        labels = VIEWS[part]
        noise = torch.randn(max(1, views) * len(labels), 3, 32, 32, generator=torch.Generator().manual_seed(len(labels) + views))
        features = self.clip.encode_image(noise.to(next(self.clip.model.parameters()).dtype), normalise=False)
        return features.unflatten(0, (-1, len(labels))), labels


def task_of(clip: Clip, *, features: bool = True) -> Task:
    source = Source(clip) if features else None
    return Task(tuple(NAMES), TEMPLATE, images=len(VIEWS["train"]), validation=len(VIEWS["val"]), features=source)


def make(clip: Clip, case: str, *, task: Task | None = None, **options: Any) -> Method:
    name, own = CASES[case]
    method = methods.build(name, clip, EXACT.get(name, {}) | own | options, seed=0, task=task or task_of(clip))
    return method.to(next(clip.model.parameters()).dtype)


def step(method: Method, images: Tensor, classes: Any) -> tuple[Loss, Gradients]:
    return method.gradients(images, LABELS, classes, differentiate(method))


def train(method: Method, images: Tensor, steps: int = 3, task: Task | None = None) -> list[float]:
    """As the engine does: steps in two epochs, and what follows them."""
    method.train()
    classes, losses = method.class_list(NAMES, TEMPLATE), []
    if method.trainable:
        optimizer = torch.optim.AdamW(method.parameters(), lr=1e-2)
        for epoch in (1, 2):
            for _ in range(steps):
                loss, gradients = step(method, images, classes)
                for parameter, gradient in zip(method.parameters(), gradients, strict=True):
                    parameter.grad = gradient
                optimizer.step()
                method.stepped([(loss.kept, LABELS)], classes, Steps(method, optimizer))
                losses.append(float(loss.total.detach()))
            method.epoch_ended(epoch, 2)
    method.eval()
    method.finish(task or task_of(method.clip))
    return losses


def answers(method: Method, images: Tensor, names: Sequence[str] = NAMES, seen: Tensor | bool = True) -> Tensor:
    with torch.no_grad():
        return method.eval().logits(images, method.head(method.class_list(names, TEMPLATE)), seen)


# ---- what a method says of itself ----


def test_the_outside_method_is_known() -> None:
    assert "toy-offset" in methods.names()


@pytest.mark.parametrize("name", methods.names())
def test_options_are_described_and_closed(name: str) -> None:
    cls = methods.get(name)
    assert cls.summary and cls.source and cls.title and "\n" not in cls.summary
    assert all(field.description for field in cls.Options.model_fields.values())
    with pytest.raises(UsageError, match="unknown option .*'nonsense'"):
        methods.make_options(cls, {"nonsense": 1})
    options = methods.make_options(cls, {})
    assert methods.make_options(cls, options.model_dump(mode="json")) == options  # as an adapter keeps them
    assert inspect.getdoc(cls)


def test_titles_tell_methods_apart() -> None:
    titles = [methods.get(name).title for name in methods.names()]
    assert len(set(titles)) == len(titles)


@pytest.mark.parametrize("name", [name for name in methods.names() if name != "zero-shot"])
def test_the_recipe_names_options_that_exist(name: str) -> None:
    cls = methods.get(name)
    recipe = recipe_of(name, cls.recipe)
    assert recipe is not None and recipe.rules
    keys = {key for rule in recipe.rules for section, key in rule.values if section == "method"}
    assert keys <= cls.Options.model_fields.keys()


@pytest.mark.parametrize("case", CASES)
def test_modality_and_vocabulary(small_clip: Clip, case: str) -> None:
    method = make(small_clip, case)
    assert method.modality in ("V", "L", "V-L", "V, L", "-")
    closed = ("ape", "ape-t", "clap", "linear-probe", "lpp", "tip-adapter", "tip-adapter-f", *CLOSED)
    assert method.open_vocabulary(method.options) is (case not in closed)
    assert method.trainable == (case in STEPPED) == (method.trained_by() == "steps")
    assert method.task is not None and method.task.features is None  # passes over images are the engine's, for the time of a call
    assert 0 <= method.frozen_text_layers < small_clip.text.depth and method.logit_scale > 0


# ---- features and logits ----


@pytest.mark.parametrize("case", CASES)
def test_shapes_and_normalisation(exact_clip: Clip, images: Tensor, case: str) -> None:
    method, images = make(exact_clip, case).eval(), images.double()
    classes = method.class_list(NAMES, TEMPLATE)
    assert classes.names == tuple(NAMES) and (classes.zero_shot.norm(dim=-1) - 1).abs().max() < TOLERANCE
    assert relative_error(classes.zero_shot, exact_clip.encode_text([f"a {name}." for name in NAMES])) < TOLERANCE
    with torch.no_grad():
        head = method.head(classes)
        for seen in (True, False, torch.tensor([True, False, True, True])):
            logits = method.logits(images, head, seen)
            assert logits.shape == (3, 4) and logits.dtype == torch.float64 and bool(logits.isfinite().all())
        assert torch.equal(method.logits(images, head, torch.ones(4, dtype=torch.bool)), method.logits(images, head, seen=True))
        if isinstance(method, TwoTower):
            text, features = method.text_features(classes), method.image_features(images)
            assert torch.equal(method.logits(images, text, seen=True), method.combine(features, text, seen=True))
            assert text.shape == (4, 48) and features.class_token.shape == (3, 48)
            for normalised in (text, features.class_token, *([] if features.representation is None else [features.representation])):
                assert normalised.dtype == torch.float64
                assert (normalised.norm(dim=-1) - 1).abs().max() < TOLERANCE


@pytest.mark.parametrize("case", CASES)
def test_frozen_features_take_the_place_of_images(exact_clip: Clip, images: Tensor, case: str) -> None:
    """A method that says it reads frozen features alone gives the same bits from them. One that leaves the image tower alone says so."""
    method, images = make(exact_clip, case), images.double()
    train(method, images)
    head = method.head(method.class_list(NAMES, TEMPLATE))
    with torch.no_grad():
        features = exact_clip.encode_image(images, normalise=False)
        kept = features.clone()
        for seen in (True, torch.tensor([True, False, True, True])):
            if method.frozen_images:
                assert torch.equal(method.logits_of_features(features, head, seen), method.logits(images, head, seen))
    assert torch.equal(features, kept)  # others read them too
    assert method.frozen_images or method.modality not in ("-", "L") or method.name in PATCHES


@pytest.mark.parametrize("case", CASES)
def test_class_list_swapped(exact_clip: Clip, images: Tensor, case: str) -> None:
    """A trained class's logit does not depend on the other trained ones of the list, nor on their order nor on new ones (on these only as a
    share of the trained ones together, without one scale); one never trained on is refused by a method that cannot know it."""
    method, images = make(exact_clip, case), images.double()
    train(method, images)
    all_four = answers(method, images)
    others = ["owl", "cat", "dog"]
    assert relative_error(answers(method, images, others), all_four[:, [3, 0, 1]]) < TOLERANCE
    if method.open_vocabulary(method.options):
        more = answers(method, images, ["small red bird", *reversed(NAMES)])
        both = more[:, 1:].flip(1), all_four
        assert relative_error(*(both if method.one_scale else (z.log_softmax(-1) for z in both))) < TOLERANCE
        return
    with pytest.raises(UsageError, match="knows only the 4 classes it was trained on, and 'bird' is not one of them"):
        answers(method, images, ["cat", "bird"])
    assert relative_error(answers(method, images, ["Great_White shark", "CAT"]), all_four[:, [2, 0]]) < TOLERANCE  # spoken alike


# ---- training ----


@pytest.mark.parametrize("case", STEPPED)
def test_only_declared_parameters_move(small_clip: Clip, images: Tensor, case: str) -> None:
    before = copy.deepcopy(small_clip.model.state_dict())
    method = make(small_clip, case)
    start = copy.deepcopy(method.state_dict())
    parameters = {key for key, _ in method.named_parameters()}
    buffers = {key: value.clone() for key, value in start.items() if key not in parameters}
    classes, losses = method.train().class_list(NAMES, TEMPLATE), []
    optimizer = torch.optim.AdamW(method.parameters(), lr=1e-2)
    for _ in range(8):
        loss, gradients = step(method, images, classes)
        for parameter, gradient in zip(method.parameters(), gradients, strict=True):
            assert gradient is not None and gradient.shape == parameter.shape and bool(gradient.isfinite().all())
            parameter.grad = gradient
        optimizer.step()
        method.stepped([(loss.kept, LABELS)], classes, Steps(method, optimizer))
        losses.append(float(loss.total.detach()))
        assert not loss.logits.requires_grad and loss.logits.shape == (3, 4)
        assert all(term.dim() == 0 for term in loss.terms.values())
    assert losses[-1] < losses[0]
    assert all(torch.equal(before[k], v) for k, v in small_clip.model.state_dict().items())
    assert all(p.grad is None for p in small_clip.model.parameters())
    assert parameters <= set(start) and all(p.requires_grad for p in method.parameters())
    assert all(not torch.equal(start[k], v) for k, v in method.state_dict().items() if k in parameters)
    assert all(torch.equal(value, method.state_dict()[k]) for k, value in buffers.items())


@pytest.mark.parametrize("case", STEPPED)
def test_evaluate_train_evaluate(small_clip: Clip, images: Tensor, case: str) -> None:
    """A class list made before training gives the same as one made after it: nothing in it goes stale."""
    method = make(small_clip, case).eval()
    early = method.class_list(NAMES, TEMPLATE)
    with torch.no_grad():
        before = method.logits(images, method.head(early), seen=True)
    train(method, images)
    late = method.class_list(NAMES, TEMPLATE)
    with torch.no_grad():
        after = method.logits(images, method.head(early), seen=True)
        assert torch.equal(after, method.logits(images, method.head(late), seen=True))
    assert not torch.equal(before, after)
    assert torch.equal(early.zero_shot, late.zero_shot)


@pytest.mark.parametrize("case", STEPPED)
def test_a_memory_budget_changes_no_number(exact_clip: Clip, images: Tensor, case: str) -> None:
    """With prompts encoded one at a time, and nothing random."""
    found = []
    for memory in (None, 1e-9):
        method = make(exact_clip, case, **({"dropout": 0.0} if case == "clip-lora" else {})).train()
        classes = method.class_list(NAMES, TEMPLATE, memory_gib=memory)
        assert classes.fed.chunk == (None if memory is None else 1)
        loss, gradients = step(method, images.double(), classes)
        found.append([loss.total, *[each for each in gradients if each is not None]])
    assert len(found[0]) == len(found[1])
    for whole, chunked in zip(*found):
        assert relative_error(chunked, whole, floor=1e-9) < TOLERANCE  # gradients of what has no influence yet are zero


# ---- precision ----


@pytest.mark.parametrize("case", STEPPED)
def test_float64_all_through(exact_clip: Clip, images: Tensor, case: str) -> None:
    method, images = make(exact_clip, case), images.double()
    losses = train(method, images)
    assert all(value.dtype == torch.float64 for value in method.state_dict().values() if value.is_floating_point()) and losses
    loss, gradients = step(method.train(), images, method.class_list(NAMES, TEMPLATE))
    assert loss.total.dtype == loss.logits.dtype == torch.float64
    assert all(gradient is not None and gradient.dtype == torch.float64 for gradient in gradients)


@pytest.mark.parametrize("case", CASES)
def test_bfloat16_is_close(small_clip: Clip, images: Tensor, case: str) -> None:
    method = make(small_clip, case)
    exact = answers(method, images)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = answers(method, images)
    assert rounded.dtype == torch.float32 and bool(rounded.isfinite().all())
    assert (rounded - exact).abs().max() < 0.02 * max(method.logit_scale, float(exact.abs().max()))
    if isinstance(method, TwoTower):
        with torch.no_grad():
            feature = method.image_features(images).class_token
            with torch.autocast("cpu", torch.bfloat16):
                again = method.image_features(images).class_token
        assert torch.nn.functional.cosine_similarity(feature, again.float()).min() > 0.99
    if method.trainable:
        with torch.autocast("cpu", torch.bfloat16):
            loss, gradients = step(method.train(), images, method.class_list(NAMES, TEMPLATE))
        assert bool(loss.total.isfinite()) and loss.logits.dtype == torch.float32
        assert all(g is not None and g.dtype == torch.float32 and bool(g.isfinite().all()) for g in gradients)


# ---- what is saved ----


@pytest.fixture(params=["state dict", "adapter"])
def saved_and_loaded(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[Method], Method]:
    """What another process gets of a method: by its tensors alone, and by the engine's adapter."""

    def by_tensors(method: Method) -> Method:
        again = methods.build(method.name, method.clip, method.options, task=task_of(method.clip, features=False))
        again.load_state_dict(method.state_dict(), strict=True)
        return again

    def by_adapter(method: Method) -> Method:
        engine.save_adapter(tmp_path / "adapter", method, classes=NAMES, template=TEMPLATE)
        loaded, config = engine.load_adapter(tmp_path / "adapter", clip=method.clip)
        assert config.class_names == tuple(NAMES) and config.template == TEMPLATE
        return loaded

    return by_tensors if request.param == "state dict" else by_adapter


@pytest.mark.parametrize("case", CASES)
def test_save_and_load(small_clip: Clip, images: Tensor, case: str, saved_and_loaded: Callable[[Method], Method]) -> None:
    method = make(small_clip, case)
    train(method, images)
    loaded = saved_and_loaded(method)
    assert loaded.options == method.options and loaded.state_dict().keys() == method.state_dict().keys()
    assert all(torch.equal(v, loaded.state_dict()[k]) for k, v in method.state_dict().items())
    assert torch.equal(answers(method, images), answers(loaded, images))


@pytest.mark.parametrize("case", CASES)
def test_tensors_of_something_else_are_refused_before_a_method_is_built(
    small_clip: Clip, case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One message, which names the tensor; a damaged file may ask for any amount of memory, so nothing is built of it."""
    method = make(small_clip, case)
    engine.save_adapter(tmp_path, method, classes=NAMES, template=TEMPLATE)
    own = {key: value.contiguous() for key, value in method.state_dict().items()}
    wrong: dict[str, dict[str, Tensor]] = {"an unknown tensor 'foreign.weight'": own | {"foreign.weight": torch.zeros(2)}}
    if own:
        name = max(own, key=lambda key: own[key].numel())
        wrong[f"'{name}' of shape .* where the options give"] = own | {name: torch.zeros(*own[name].shape, 2)}
        wrong[f"no tensor '{name}'"] = {key: value for key, value in own.items() if key != name}
    monkeypatch.setattr("mmrl.engine.adapter.build", lambda *_, **__: pytest.fail("it was built"))
    for message, tensors in wrong.items():
        write_tensors(tmp_path, tensors)
        with pytest.raises(MmrlError, match=f"do not fit method '{method.name}' with its options: {message}"):
            engine.load_adapter(tmp_path, clip=small_clip)


def write_tensors(adapter: Path, tensors: dict[str, Tensor]) -> None:
    """In place of the adapter's own, with a configuration that vouches for them."""
    content = save(tensors)
    (adapter / "adapter_model.safetensors").write_bytes(content)
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"sha256": hashlib.sha256(content).hexdigest()}))


@pytest.mark.parametrize("case", CASES)
def test_the_seed_decides_the_start(small_clip: Clip, case: str) -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    one, same = make(small_clip, case).state_dict(), make(small_clip, case).state_dict()
    assert torch.equal(torch.rand(1), expected)
    assert one.keys() == same.keys() and all(torch.equal(one[key], same[key]) for key in one)


# ---- methods without steps ----


@pytest.mark.parametrize("case", CLOSED_FORMS)
def test_closed_forms(exact_clip: Clip, images: Tensor, case: str) -> None:
    task = task_of(exact_clip)
    method = make(exact_clip, case, task=task)
    assert not list(method.parameters()) and method.state_dict()
    before = copy.deepcopy(method.state_dict())
    assert train(method, images.double(), task=task) == []
    assert answers(method, images.double()).isfinite().all()
    assert isinstance(task.features, Source) and {part for part, _ in task.features.asked} <= {"train", "val"}
    assert before.keys() == method.state_dict().keys()
    with pytest.raises(UsageError, match="nothing to train"):
        method.loss(images.double(), LABELS, method.class_list(NAMES, TEMPLATE))


@pytest.mark.parametrize("case", CASES)
def test_an_adapter_has_no_images(small_clip: Clip, case: str) -> None:
    """Set up again without passes over images, a method has the same tensors, and asks for none."""
    first, again = make(small_clip, case), make(small_clip, case, task=task_of(small_clip, features=False))
    shapes = [{key: (value.shape, value.dtype) for key, value in method.state_dict().items()} for method in (first, again)]
    assert shapes[0] == shapes[1]
    again.finish(task_of(small_clip, features=False))
