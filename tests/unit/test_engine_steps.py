"""Optimisers, schedules, and what a step and an epoch are made of."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mmrl import engine
from mmrl.clip import Clip
from mmrl.data import Preprocess, TrainBatches
from mmrl.engine.features import preprocess_of
from mmrl.engine.schedule import length_of, rates_of
from mmrl.errors import UsageError
from mmrl.methods import Method
from tests.unit.colours import NAMES, PROMPT, Batch, Shuffled, base_draw, clip_on_one_thread, colours, fresh, noise, train, train_on

clip = pytest.fixture(scope="module")(clip_on_one_thread)
QUICK = {"epochs": 2, "warmup_epochs": 0, "lr": 1e-2}
OPTIMISERS: dict[str, tuple[Any, dict[str, Any]]] = {
    "sgd": (torch.optim.SGD, {"momentum": 0.7, "weight_decay": 0.1}),
    "adam": (torch.optim.Adam, {"eps": 1e-3, "weight_decay": 0.1}),
    "adamw": (torch.optim.AdamW, {"eps": 1e-4, "weight_decay": 0.1}),
}


def tensors(method: Method) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in method.state_dict().items()}


def equal(a: Method, b: Method) -> bool:
    return all(torch.equal(value, b.state_dict()[name]) for name, value in a.state_dict().items())


def written_out(method: Method, steps: list[tuple[float, list[Batch]]], optimizer: torch.optim.Optimizer, names: Any = NAMES) -> None:
    """Steps, each at its rate on the mean loss of its batches."""
    classes = method.class_list(names, PROMPT)
    for rate, batches in steps:
        optimizer.param_groups[0]["lr"] = rate
        optimizer.zero_grad()
        for images, labels in batches:
            total = method.loss(images, labels, classes).total
            (total / len(batches) if len(batches) > 1 else total).backward()
        optimizer.step()


# ---- optimisers ----


@pytest.mark.parametrize("name", OPTIMISERS)
def test_an_optimiser_equals_torchs(clip: Clip, name: str) -> None:
    kind, values = OPTIMISERS[name]
    method, plain, other = fresh(clip), fresh(clip), fresh(clip)
    config = engine.FitConfig(**QUICK, optimizer=name, schedule="constant", **values)
    train(method, Shuffled(), config)
    batches = [batch for epoch in range(2) for batch in noise(3, seed=epoch)]
    written_out(plain, [(1e-2, [batch]) for batch in batches], kind(plain.parameters(), lr=1.0, **values))
    assert equal(method, plain)
    key = "momentum" if name == "sgd" else "eps"
    train(other, Shuffled(), engine.FitConfig(**{**config.model_dump(), key: 0.1}))
    assert not equal(method, other), f"{key} does not reach the optimiser"


@pytest.mark.parametrize("name", OPTIMISERS)
def test_an_optimiser_goes_on_after_resuming(clip: Clip, tmp_path: Path, name: str) -> None:
    config = engine.FitConfig(**QUICK, optimizer=name, checkpoint_every=1, **OPTIMISERS[name][1])
    whole, resumed = fresh(clip), fresh(clip)
    train(whole, Shuffled(), config)
    with pytest.raises(KeyboardInterrupt):
        train(fresh(clip), Shuffled(until=4), config, tmp_path)
    train(resumed, Shuffled(), config, tmp_path, resume=True)
    assert equal(whole, resumed)


# ---- schedules ----


def cosine(at: float, lr: float = 1e-2, final: float = 0.0) -> float:
    return final + (lr - final) * (1 + math.cos(math.pi * at)) / 2


@pytest.mark.parametrize(("values", "rates"), [
    ({"schedule": "constant"}, [1e-2] * 9),
    ({"schedule": "constant", "warmup_epochs": 1, "warmup_lr": 1e-4}, [1e-4] * 3 + [1e-2] * 6),
    ({"schedule": "constant", "warmup_epochs": 1, "warmup_lr": 1e-4, "schedule_step": "step"}, [1e-4] * 3 + [1e-2] * 6),
    ({}, [cosine(epoch / 3) for epoch in range(3) for _ in range(3)]),
    ({"final_lr": 1e-3}, [cosine(epoch / 3, final=1e-3) for epoch in range(3) for _ in range(3)]),
    ({"schedule_step": "step"}, [cosine(step / 9) for step in range(9)]),
    ({"schedule_step": "step", "warmup_epochs": 1, "warmup_lr": 1e-4}, [1e-4] * 3 + [cosine(step / 9) for step in range(6)]),
    ({"schedule_step": "step", "accumulate": 2}, [cosine(step / 6) for step in range(6)]),
    ({"schedule_step": "step", "accumulate": 2, "warmup_epochs": 1, "warmup_lr": 2e-4}, [2e-4] * 2 + [cosine(i / 6) for i in range(4)]),
    ({"schedule_step": "step", "iterations": 5, "final_lr": 1e-3}, [cosine(step / 5, final=1e-3) for step in range(5)]),
    ({"iterations": 5}, [cosine(0)] * 3 + [cosine(1 / 2)] * 2),
])  # fmt: skip
def test_every_step_has_the_schedules_rate(clip: Clip, values: dict[str, Any], rates: list[float]) -> None:
    """And takes it: a plain SGD moves as far as it says."""
    config = engine.FitConfig(**{**QUICK, "epochs": 3, "optimizer": "sgd", "weight_decay": 0.0, "momentum": 0.0, **values})
    method, plain = fresh(clip), fresh(clip)
    history = train(method, Shuffled(), config).history
    assert [row["lr"] for row in history] == pytest.approx(rates, rel=1e-12)
    each = config.accumulate
    groups = [noise(3, seed=epoch)[i : i + each] for epoch in range(3) for i in range(0, 3, each)]
    written_out(plain, list(zip([row["lr"] for row in history], groups)), torch.optim.SGD(plain.parameters(), lr=1.0))
    for name, value in method.state_dict().items():
        assert torch.allclose(value, plain.state_dict()[name], rtol=1e-5, atol=1e-7), name
    if each == 1:
        assert equal(method, plain)


def test_warm_up_that_is_longer_than_the_iterations() -> None:
    config = engine.FitConfig(epochs=10, warmup_epochs=4, warmup_lr=1e-4, iterations=5)
    assert length_of(config, 3) == (5, 2) and rates_of(config, 3) == [1e-4, 1e-4]
    assert rates_of(engine.FitConfig(**{**config.model_dump(), "schedule_step": "step"}), 3) == [1e-4] * 5


# ---- iterations ----


@pytest.mark.parametrize(("iterations", "accumulate", "epochs"), [
    (5, 1, [1, 1, 1, 2, 2]), (1, 1, [1]), (7, 1, [1, 1, 1, 2, 2, 2, 3]), (6, 1, [1, 1, 1, 2, 2, 2]), (3, 2, [1, 1, 2]),
])  # fmt: skip
def test_iterations_may_end_inside_an_epoch(clip: Clip, iterations: int, accumulate: int, epochs: list[int]) -> None:
    """They count steps, whatever `epochs` says."""
    batches = Shuffled()
    config = engine.FitConfig(**QUICK, iterations=iterations, accumulate=accumulate, schedule="constant")
    assert [row["epoch"] for row in train(fresh(clip), batches, config).history] == epochs
    if accumulate == 1:
        method, plain = fresh(clip), fresh(clip)
        train(method, Shuffled(), config)
        taken = [batch for epoch in range(3) for batch in noise(3, seed=epoch)][:iterations]
        written_out(plain, [(1e-2, [batch]) for batch in taken], torch.optim.AdamW(plain.parameters(), weight_decay=5e-4))
        assert equal(method, plain) and batches.taken == iterations


@pytest.mark.parametrize("checkpoint_every", [None, 1, 2])
@pytest.mark.parametrize("until", range(1, 5))
def test_iterations_are_resumed_bit_for_bit(clip: Clip, tmp_path: Path, until: int, checkpoint_every: int | None) -> None:
    config = engine.FitConfig(**QUICK, iterations=5, schedule_step="step", checkpoint_every=checkpoint_every)
    whole, resumed = fresh(clip), fresh(clip)
    undisturbed = train(whole, Shuffled(), config, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train(fresh(clip), Shuffled(until=until), config, tmp_path / "killed")
    found = train(resumed, Shuffled(), config, tmp_path / "killed", resume=True)
    assert equal(whole, resumed) and found.history == undisturbed.history and len(found.history) == 5
    files = [(tmp_path / name / "adapter_model.safetensors").read_bytes() for name in ("whole", "killed")]
    assert files[0] == files[1]


def test_iterations_of_images(clip: Clip, tmp_path: Path) -> None:
    """Of 8 images, 2 a batch: the second epoch has other batches, of which two are taken."""
    method, plain, dataset = fresh(clip), fresh(clip), colours().restrict("base")
    values = {**QUICK, "iterations": 6, "batch_size": 2, "schedule": "constant"}
    assert [row["epoch"] for row in train_on(method, colours(), base_draw(), values, tmp_path).history] == [1, 1, 1, 1, 2, 2]
    batches = TrainBatches(dataset, base_draw().train, preprocess_of(clip), 2, 1)
    taken = [*batches.epoch(0), *list(batches.epoch(1))[:2]]
    optimizer = torch.optim.AdamW(plain.parameters(), weight_decay=5e-4)
    written_out(plain, [(1e-2, [batch]) for batch in taken], optimizer, dataset.classes)
    assert equal(method, plain)


# ---- images ----


def test_the_last_incomplete_batch_may_count(clip: Clip) -> None:
    """Of 8 images, 3 a batch."""
    dataset, values = colours().restrict("base"), {**QUICK, "epochs": 1, "batch_size": 3, "schedule": "constant"}
    assert len(train_on(fresh(clip), colours(), base_draw(), values).history) == 2
    method, plain = fresh(clip), fresh(clip)
    history = train_on(method, colours(), base_draw(), {**values, "drop_last": False}).history
    batches = list(TrainBatches(dataset, base_draw().train, preprocess_of(clip), 3, 1, drop_last=False).epoch(0))
    assert [len(labels) for _, labels in batches] == [3, 3, 2] and len(history) == 3
    assert history[-1]["accuracy"] in (0, 0.5, 1)
    optimizer = torch.optim.AdamW(plain.parameters(), weight_decay=5e-4)
    written_out(plain, [(1e-2, [batch]) for batch in batches], optimizer, dataset.classes)
    assert equal(method, plain)


def test_a_batch_larger_than_the_draw(clip: Clip) -> None:
    with pytest.raises(UsageError, match="batch size 9 is larger than the 8 training images"):
        train_on(fresh(clip), colours(), base_draw(), {**QUICK, "batch_size": 9})
    assert len(train_on(fresh(clip), colours(), base_draw(), {**QUICK, "batch_size": 9, "drop_last": False}).history) == 2


def test_the_crop_scale_reaches_the_images(clip: Clip, tmp_path: Path) -> None:
    dataset, items = colours().restrict("base"), base_draw().train

    def given(**values: Any) -> engine.TrainingData:
        return engine.TrainingData.of(clip, colours(), base_draw(), engine.FitConfig(batch_size=8, **values))

    def first(data: engine.TrainingData) -> Tensor:
        return next(data.batches.epoch(0))[0]

    preprocess = Preprocess(clip.image_size, clip.mean, clip.std, clip.interpolation, crop_scale=(0.08, 0.2))
    expected = next(TrainBatches(dataset, items, preprocess, 8, 1).epoch(0))[0]
    small, usual = given(crop_scale=(0.08, 0.2)), given()
    assert torch.equal(first(small), expected) and not torch.equal(first(usual), expected)
    assert torch.equal(first(usual), first(given(crop_scale=(0.5, 1.0))))
    assert small.features is not None and usual.features is not None
    assert not torch.equal(small.features("train", 2)[0], usual.features("train", 2)[0])
    assert torch.equal(small.features("train")[0], usual.features("train")[0])  # the test transform crops nothing

    trained = [fresh(clip) for _ in range(2)]
    for method, scale in zip(trained, ((0.08, 0.2), (0.5, 1.0))):
        train_on(method, colours(), base_draw(), {**QUICK, "crop_scale": scale}, tmp_path / str(scale[0]))
    assert not equal(*trained)
    config = engine.FitConfig(**QUICK)
    with pytest.raises(UsageError, match=r"fit\.crop_scale was \(0\.08, 0\.2\), is \(0\.5, 1\.0\)"):
        place = engine.Place(tmp_path / "0.08", resume=True, progress=False)
        engine.fit(fresh(clip), engine.TrainingData.of(clip, colours(), base_draw(), config), config, place)
    with pytest.raises(UsageError, match="crop_scale is .*0 < from <= to <= 1"):
        engine.FitConfig(crop_scale=(0.5, 0.2))


def test_features_are_of_every_image_in_order(clip: Clip) -> None:
    """What closed forms work on: the frozen tower's, none dropped, labels of the classes trained on."""
    draw, dataset = base_draw(), colours().restrict("base")
    data = engine.TrainingData.of(clip, colours(), draw, engine.FitConfig(batch_size=3))
    assert data.features is not None and (data.images, data.validation) == (8, len(draw.val)) and data.classes == dataset.classes
    preprocess = preprocess_of(clip)
    for part, items in (("train", draw.train), ("val", draw.val)):
        features, labels = data.features(part)  # type: ignore[arg-type]
        images = torch.stack([preprocess.test(dataset.image(item)) for item in items])
        assert features.shape == (1, len(items), clip.embed_dim) and labels.tolist() == [item.label for item in items]
        with torch.no_grad():
            assert torch.allclose(features[0], clip.encode_image(images, normalise=False), rtol=1e-5, atol=1e-6)
    views, labels = data.features("train", 3)
    assert views.shape == (3, 8, clip.embed_dim) and len(labels) == 8
    assert not torch.equal(views[0], views[1]) and torch.equal(views[:2], data.features("train", 2)[0])
