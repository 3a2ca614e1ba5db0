"""What a method does around the steps: its own gradients, ends of epochs, buffers, closed forms; all of it under resume too."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from mmrl import engine, methods
from mmrl.clip import ClassList, Clip
from mmrl.engine.checkpoint import STATE, RunFolder, read_state
from mmrl.engine.loop import Trainer
from mmrl.errors import Notice, UsageError
from mmrl.methods import Differentiate, Gradients, Loss, Method, MethodOptions, MoreSteps, TwoTower, register, registry
from mmrl.methods.options import NoOptions
from tests.oracle.pair import relative_error
from tests.unit.colours import NAMES, PROMPT, Batch, Same, Shuffled, base_draw, clip_on_one_thread, colours, fresh, noise, train, train_on

clip = pytest.fixture(scope="module")(clip_on_one_thread)
FITTING = import_module("mmrl.engine.fit")  # `mmrl.engine` has a function of that name
CONFIG = engine.FitConfig(epochs=3, warmup_epochs=0, lr=1e-2, checkpoint_every=1)


class Hooked(TwoTower):
    """Offsets of the class features. Steps go by the signs of two losses' gradients; epochs are averaged; a buffer counts the steps."""

    Options = NoOptions

    def __init__(self, clip: Clip, options: MethodOptions) -> None:
        super().__init__(clip, options)
        self.offset = nn.Parameter(torch.randn(clip.embed_dim) * 0.02)
        self.scale = nn.Parameter(torch.ones(clip.embed_dim))
        self.register_buffer("kept", torch.zeros(clip.embed_dim))  # in the adapter
        self.register_buffer("sum", torch.zeros(clip.embed_dim), persistent=False)
        self.register_buffer("steps", torch.zeros((), dtype=torch.long), persistent=False)
        self.ended: list[tuple[int, int]] = []

    def text_features(self, classes: ClassList) -> Tensor:
        return F.normalize(classes.zero_shot * self.scale + self.offset + self.kept, dim=-1)

    def losses(self, images: Tensor, labels: Tensor, classes: ClassList) -> Loss:
        loss = self.loss(images, labels, classes)
        return loss._replace(terms={**loss.terms, "size": self.offset.square().sum()})  # the second does not depend on `scale`

    def gradients(self, images: Tensor, labels: Tensor, classes: ClassList, differentiate: Differentiate) -> tuple[Loss, Gradients]:
        self.steps += 1
        loss = self.losses(images, labels, classes)
        first = differentiate(loss.terms["ce"], retain_graph=True)
        second = differentiate(loss.terms["size"])
        assert second[1] is None
        return loss, [a.sign() if b is None else a.sign() + b.sign() for a, b in zip(first, second) if a is not None]

    @torch.no_grad()
    def epoch_ended(self, epoch: int, epochs: int) -> None:
        self.ended.append((epoch, epochs))
        self.sum += self.offset * self.steps
        self.kept += self.sum / 100
        if epoch == epochs:
            self.offset.copy_(self.sum / epochs)


@pytest.fixture(scope="module", autouse=True)
def known() -> Iterator[None]:
    """For these tests alone: others go through all methods there are."""
    register("toy-hooks")(Hooked)
    yield
    del registry._REGISTRY["toy-hooks"]


def tensors(method: Method) -> dict[str, Tensor]:
    """With buffers that no adapter keeps."""
    return {name: value.detach().clone() for name, value in (*method.named_parameters(), *method.named_buffers())}


def equal(a: Method, b: Method) -> bool:
    return all(torch.equal(value, tensors(b)[name]) for name, value in tensors(a).items())


# ---- gradients and ends of epochs ----


def test_a_methods_own_gradients_and_ends_of_epochs_written_out(clip: Clip) -> None:
    method, plain = fresh(clip, "toy-hooks"), fresh(clip, "toy-hooks")
    assert isinstance(method, Hooked) and isinstance(plain, Hooked)
    history = train(method, Shuffled(), CONFIG).history
    optimizer = torch.optim.AdamW(plain.parameters(), weight_decay=5e-4)
    classes, losses = plain.class_list(NAMES, PROMPT), []
    for epoch, rate in enumerate(engine.learning_rates(3, 1e-2)):
        optimizer.param_groups[0]["lr"] = rate
        for images, labels in noise(3, seed=epoch):
            loss = plain.losses(images, labels, classes)
            offset, scale = torch.autograd.grad(loss.terms["ce"], list(plain.parameters()), retain_graph=True)
            plain.offset.grad, plain.scale.grad = offset.sign() + plain.offset.detach().sign(), scale.sign()
            optimizer.step()
            plain.steps += 1
            losses.append((float(loss.total.detach()), float(loss.terms["size"].detach())))
        plain.epoch_ended(epoch + 1, 3)
    assert [(row["loss"], row["size"]) for row in history] == losses
    assert equal(method, plain) and method.ended == [(1, 3), (2, 3), (3, 3)]
    assert int(method.steps) == 9 and bool(method.kept.any())


def test_more_steps_after_that_of_a_batch(clip: Clip) -> None:
    """At the rate of that step, with its optimiser, and of what the batches' losses kept; their gradients are those of no scaled loss."""
    method, kept = fresh(clip, "toy-hooks"), []
    parameters = list(method.parameters())

    def stepped(batches: list[tuple[Any, Tensor]], classes: ClassList, steps: MoreSteps) -> None:
        kept.append(([labels.tolist() for _, labels in batches], steps.rate))
        total = sum(parameter.square().sum() for parameter in parameters) / 2
        gradients = steps.gradients(total)
        assert all(gradient is not None and torch.allclose(gradient, p) for gradient, p in zip(gradients, parameters, strict=True))
        assert steps.gradients(parameters[0].sum())[1] is None
        assert (steps.gradients(parameters[0].sum() * 1e38 * 1e38) == [None] * len(parameters)) == trainer.stepper.scaler.is_enabled()
        before = [parameter.detach().clone() for parameter in parameters]
        steps.update([None if i else gradient for i, gradient in enumerate(gradients)])
        assert [torch.equal(*pair) for pair in zip(before, parameters, strict=True)] == [False] + [True] * (len(parameters) - 1)
        found.append((before[0] - parameters[0].detach()) / before[0])

    method.stepped = stepped  # type: ignore[method-assign]
    batches, found = noise(4), list[Tensor]()
    plain = {"optimizer": "sgd", "momentum": 0.0, "weight_decay": 0.0}
    config = engine.FitConfig(**plain, epochs=2, warmup_epochs=1, warmup_lr=0.01, lr=0.1, accumulate=2)
    for scaled in (False, True):
        trainer = Trainer(method, Same(batches), method.class_list(NAMES, PROMPT), config)
        trainer.stepper.scaler = torch.amp.GradScaler("cpu", enabled=scaled)
        trainer.run()
    labels = [labels.tolist() for _, labels in batches]
    rates = [rate for rate in engine.learning_rates(2, 0.1, warmup=1, warmup_lr=0.01) for _ in range(2)]
    assert [batch for batch, _ in kept] == [labels[:2], labels[2:]] * 4
    assert [rate for _, rate in kept] == rates * 2
    assert all(torch.allclose(share, torch.full_like(share, rate), rtol=1e-3) for share, rate in zip(found, rates * 2, strict=True))


@pytest.mark.parametrize("name", ["toy-hooks", "promptsrc", "prograd", "metaprompt"])
@pytest.mark.parametrize("iterations", [None, 7])
def test_hooks_and_buffers_are_resumed_bit_for_bit(clip: Clip, tmp_path: Path, name: str, iterations: int | None) -> None:
    config = engine.FitConfig(**{**CONFIG.model_dump(), "iterations": iterations})
    options = {"n_ctx": 4} if name == "prograd" else {}
    whole = fresh(clip, name, **options)
    undisturbed = train(whole, Shuffled(), config, tmp_path / "whole")
    steps = iterations or 9
    assert len(undisturbed.history) == steps
    for until in range(1, steps, 1 if name == "toy-hooks" else 3):
        first, resumed, out = fresh(clip, name, **options), fresh(clip, name, **options), tmp_path / f"{until}"
        with pytest.raises(KeyboardInterrupt):
            train(first, Shuffled(until=until), config, out)
        found = train(resumed, Shuffled(), config, out, resume=True)
        assert equal(whole, resumed) and found.history == undisturbed.history, until
        assert (out / "adapter_model.safetensors").read_bytes() == (tmp_path / "whole" / "adapter_model.safetensors").read_bytes()
        if isinstance(first, Hooked) and isinstance(resumed, Hooked):
            assert first.ended + resumed.ended == [(1, 3), (2, 3), (3, 3)], "every epoch ends once"


def test_a_checkpoint_after_the_last_step_ends_no_epoch_again(clip: Clip, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Interrupted between the last step and the adapter."""

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    whole, resumed = fresh(clip, "toy-hooks"), fresh(clip, "toy-hooks")
    train(whole, Shuffled(), CONFIG)
    with monkeypatch.context() as patch:
        patch.setattr(FITTING, "save_adapter", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train(fresh(clip, "toy-hooks"), Shuffled(), CONFIG, tmp_path)
    train(resumed, batches := Shuffled(), CONFIG, tmp_path, resume=True)
    assert equal(whole, resumed) and batches.taken == 0 and isinstance(resumed, Hooked) and resumed.ended == []


def test_checkpoints_have_all_buffers_and_adapters_the_persistent_ones(clip: Clip, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(fresh(clip, "toy-hooks"), Shuffled(until=5), CONFIG, tmp_path / "killed")
    kept = read_state(tmp_path / "killed" / STATE)["parameters"]
    assert set(kept) == {"offset", "scale", "kept", "sum", "steps"} and int(kept["steps"]) == 5
    method = fresh(clip, "toy-hooks")
    train(method, Shuffled(), CONFIG, tmp_path / "done")
    assert set(load_file(tmp_path / "done" / "adapter_model.safetensors")) == {"offset", "scale", "kept"}
    loaded, _ = engine.load_adapter(tmp_path / "done", clip)
    assert torch.equal(loaded.get_buffer("kept"), method.get_buffer("kept")) and not bool(loaded.get_buffer("sum").any())
    assert torch.equal(loaded.head(loaded.class_list(NAMES, PROMPT)), method.head(method.class_list(NAMES, PROMPT)))


class Summed(Hooked):
    """Two backward passes whose gradients add up to those of one loss."""

    name = "toy-hooks"

    def gradients(self, images: Tensor, labels: Tensor, classes: ClassList, differentiate: Differentiate) -> tuple[Loss, Gradients]:
        loss = self.losses(images, labels, classes)
        first, second = differentiate(loss.terms["ce"], retain_graph=True), differentiate(loss.terms["size"])
        return loss, [a if b is None else a + b for a, b in zip(first, second) if a is not None]


class Once(Hooked):
    """One backward pass of their sum."""

    name = "toy-hooks"
    gradients = Method.gradients

    def loss(self, images: Tensor, labels: Tensor, classes: ClassList) -> Loss:
        loss = super().loss(images, labels, classes)
        return loss._replace(total=loss.total + self.offset.square().sum())


def test_two_backward_passes_accumulate_as_one_does(clip: Clip) -> None:
    """Over 2 batches each, against one backward pass on batches twice as large; in float64, which `engine.fit` refuses."""
    exact = deepcopy(clip)
    exact.model.double()
    batches = [(images.double(), labels) for images, labels in noise(6)]
    joined: list[Batch] = [(torch.cat([a[0], b[0]]), torch.cat([a[1], b[1]])) for a, b in zip(batches[::2], batches[1::2])]

    def trained(kind: type[Hooked], given: list[Batch], accumulate: int) -> Method:
        torch.manual_seed(1)
        method = kind(exact, NoOptions()).double()
        config = engine.FitConfig(**{**CONFIG.model_dump(), "accumulate": accumulate})
        trainer = Trainer(method, Same(given), method.class_list(NAMES, PROMPT), config)
        trainer.run()
        assert len(trainer.history) == 9
        return method

    expected = trained(Once, joined, 1)
    for found in (trained(Summed, batches, 2), trained(Once, batches, 2), trained(Summed, joined, 1)):
        for name in ("offset", "scale"):
            assert relative_error(found.get_parameter(name), expected.get_parameter(name)) < 1e-9, name


# ---- closed forms ----

CLOSED: dict[str, dict[str, Any]] = {
    "ape": {"augment_epoch": 2, "search_step": (5, 4, 3)},
    "ape-t": {"augment_epoch": 2, "search_step": (5, 4)},
    "clap": {"augment_epoch": 2, "probe_epochs": 5},
    "linear-probe": {"c_search_steps": 2},
    "lpp": {"probe_steps": 15},
    "gda": {"augment_epoch": 2, "keep_samples": False},
    "tip-adapter": {"augment_epoch": 2, "search_step": (5, 4)},
    "tip-adapter-f": {"augment_epoch": 2, "search_step": (5, 4)},
}
FEW = {"epochs": 2, "warmup_epochs": 0, "batch_size": 4, "lr": 1e-3}


def logits(method: Method) -> Tensor:
    dataset = colours().restrict("base")
    images = noise(1, size=6, seed=5)[0][0]
    with torch.no_grad():
        return method.logits(images, method.head(method.class_list(dataset.classes, dataset.template)), True)


@pytest.mark.parametrize("name", CLOSED)
def test_a_closed_form_is_fitted_saved_and_loaded(clip: Clip, tmp_path: Path, name: str) -> None:
    method = fresh(clip, name, **CLOSED[name])
    result = train_on(method, colours(), base_draw(), FEW, tmp_path / "out")
    trained = name in ("ape-t", "tip-adapter-f")
    assert len(result.history) == (4 if trained else 0) and result.seconds > 0 and not result.loaded
    assert result.folder == tmp_path / "out" and (result.data.images, result.data.validation) == (8, 8)
    assert {file.name for file in (tmp_path / "out").iterdir()} == {STATE, "README.md", "adapter_config.json", "adapter_model.safetensors"}
    loaded, config = engine.load_adapter(tmp_path / "out", clip)
    assert (config.method, config.class_names, config.images, config.open_vocabulary) == (name, NAMES[:2], 8, False)
    assert torch.equal(logits(loaded), logits(method)) and loaded.state_dict().keys() == method.state_dict().keys()
    with pytest.raises(UsageError, match="knows only the 2 classes it was trained on, and 'blue'"):
        engine.evaluate_dataset(loaded, colours().restrict("novel"), seen=False)

    again = fresh(clip, name, **CLOSED[name])  # the finished run is loaded, and nothing is fitted
    config, place = engine.FitConfig(**FEW), engine.Place(tmp_path / "out", resume=True, progress=False)
    data = engine.TrainingData.of(clip, colours(), base_draw(), config, place)
    found = engine.fit(again, data, config, place)
    assert found.loaded and found.history == result.history and torch.equal(logits(again), logits(method))
    same = fresh(clip, name, **CLOSED[name])
    train_on(same, colours(), base_draw(), FEW)
    assert torch.equal(logits(same), logits(method))


@pytest.mark.parametrize("name", CLOSED)
def test_a_closed_form_that_was_interrupted_is_fitted_again(clip: Clip, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Interrupted before and after the adapter is written: what is there is no obstacle to the same command again."""
    whole = fresh(clip, name, **CLOSED[name])
    train_on(whole, colours(), base_draw(), FEW)
    config, save = engine.FitConfig(**FEW), RunFolder.save
    data = engine.TrainingData.of(clip, colours(), base_draw(), config)

    def once(out: Path) -> Method:
        method = fresh(clip, name, **CLOSED[name])
        engine.fit(method, data, config, engine.Place(out, resume=True, progress=False))
        return method

    def unfinished(folder: RunFolder, state: dict[str, Any]) -> None:
        if state["finished"]:
            raise KeyboardInterrupt
        save(folder, state)

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    for number, (where, what) in enumerate(((RunFolder, "save"), (FITTING, "save_adapter"))):
        with monkeypatch.context() as patch:
            patch.setattr(where, what, unfinished if what == "save" else interrupted)
            with pytest.raises(KeyboardInterrupt):
                once(tmp_path / str(number))
        assert torch.equal(logits(once(tmp_path / str(number))), logits(whole))
        assert torch.equal(logits(engine.load_adapter(tmp_path / str(number), clip)[0]), logits(whole))


def test_a_closed_form_of_one_passes_nothing_on(clip: Clip) -> None:
    """A method with a setup alone; it chooses on validation images in `finish`, and features do not outlive the call."""

    class Means(Method):
        name = "toy-means"
        Options = NoOptions
        order: list[str]

        def setup(self, task: methods.Task) -> None:
            super().setup(task)
            assert task.features is not None
            features, labels = task.features("train")
            self.register_buffer("means", torch.stack([features[0, labels == i].mean(0) for i in range(len(task.names))]))
            self.order = ["setup"]

        def finish(self, task: methods.Task) -> None:
            assert task.features is not None and task.validation == len(task.features("val")[1]) == 8
            self.order.append("finish")

        def head(self, classes: ClassList) -> Tensor:
            return self.get_buffer("means")[self.trained_columns(classes)]

        def logits(self, images: Tensor, head: Tensor, seen: Tensor | bool) -> Tensor:
            return self.clip.encode_image(images, normalise=False) @ head.T

    method = Means(clip, NoOptions())
    result = train_on(method, colours(), base_draw(), FEW)
    assert method.order == ["setup", "finish"] and result.history == [] and not method.trainable
    assert method.task is not None and method.task.features is None and method.task.names == NAMES[:2] and method.task.seed == 1
    assert engine.evaluate_dataset(method, colours().restrict("base"), seen=True).adapted.count == 16


def test_without_validation_images_a_closed_form_says_so(clip: Clip) -> None:
    with pytest.warns(Notice, match="'linear-probe' has no validation images to select C on"):
        train_on(fresh(clip, "linear-probe"), colours().restrict("base"), base_draw().train, FEW)


def test_zero_shot_is_not_fitted(clip: Clip, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="method 'zero-shot' has nothing to train; evaluate it, or train another method"):
        train_on(methods.build("zero-shot", clip), colours(), base_draw(), FEW, tmp_path / "x")
    assert not (tmp_path / "x").exists()
