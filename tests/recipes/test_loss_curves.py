"""Short real runs of the published recipe on the embedded model, against recorded numbers.

The numbers are recorded by `python -m tests.recipes.test_loss_curves`: after a change of tiny, of the digits or of a default, and for no
other reason.
A training lets differences grow, a hundred thousandfold in these forty steps: in float32 the last bits, which are the processor's
business, end up as a percent of the loss. So what is held to the record, and must learn, is the training loop in float64, initial values
included; the float32 training as a user starts it is held to that loop for its first epoch.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mmrl import api, engine, methods
from mmrl.clip import Clip, load_clip
from mmrl.data import Dataset, TrainBatches, load_dataset, test_batches
from mmrl.engine.context import Prepared
from mmrl.engine.features import preprocess_of
from mmrl.engine.loop import Trainer
from mmrl.methods import Method
from mmrl.protocols import Training
from mmrl.protocols.plan import values
from tests.oracle.pair import relative_error

RECORDED = Path(__file__).parents[1] / "golden" / "loss_curves.json"
METHODS = ("mmrl", "mmrlpp")
SHOTS, EPOCHS, SEED, EPOCH = 8, 4, 1, 10  # EPOCH: steps of one
TOLERANCE = 1e-9
Numbers = dict[str, Any]
Batch = tuple[Tensor, Tensor]


@contextmanager
def float64() -> Iterator[None]:
    """Random initial values are drawn in float64: in float32 their last bit depends on the processor."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


def in_float64(batches: Iterable[Batch]) -> Iterator[Batch]:
    yield from ((images.double(), labels) for images, labels in batches)


class InFloat64:
    """Training batches with images in float64."""

    def __init__(self, batches: TrainBatches) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def epoch(self, number: int, start: int = 0) -> Iterator[Batch]:
        yield from in_float64(self.batches.epoch(number, start))


def prepared(name: str, data: Dataset, clip: Clip, epochs: int = EPOCHS) -> Prepared:
    """Values and images as `api.train` takes them for a run on the base classes."""
    context = engine.Context(engine.Bench("tiny"), clip, datasets={data.name: data})
    return context.prepare(Training(name, data.name, "base", SHOTS, SEED, "base-to-novel", values({"epochs": epochs})))


def train_in_float64(method: Method, ready: Prepared, data: Dataset) -> list[float]:
    """The loop that `engine.fit` runs, which itself trains float32 alone: loss of every step."""
    losses: list[float] = []
    inner = method.loss

    def loss(*arguments: Any) -> methods.Loss:  # the history keeps float32
        result = inner(*arguments)
        losses.append(float(result.total.detach()))
        return result

    method.loss = loss  # type: ignore[method-assign]
    base, config = data.restrict("base"), ready.config
    images = preprocess_of(method.clip, flip=base.flip)
    batches = InFloat64(TrainBatches(base, ready.draw.train, images, config.batch_size, config.seed))
    Trainer(method, batches, method.class_list(base.classes, base.template), config).run()
    return losses


def base_accuracy(method: Method, data: Dataset) -> float:
    base = data.restrict("base")
    batches = in_float64(test_batches(base, base.test, preprocess_of(method.clip), 64))
    return engine.evaluate(method, method.class_list(base.classes, base.template), batches, seen=True).top1


def numbers(name: str, clip: Clip) -> Numbers:
    """Loss of every step, size and movement of every trained tensor, and accuracy on the base classes, with everything in float64."""
    data = load_dataset("mini:digits")
    ready = prepared(name, data, clip)
    with float64():
        method = methods.build(name, clip, ready.resolved.method, seed=SEED)
    before = {key: value.clone() for key, value in method.state_dict().items()}
    losses = train_in_float64(method, ready, data)
    after = method.state_dict()
    assert all(value.dtype == torch.float64 for value in after.values())
    sizes = {key: [float(value.norm()), float((value - before[key]).norm())] for key, value in after.items()}
    return {"losses": losses, "norm and movement": sizes, "base accuracy": base_accuracy(method, data)}


@pytest.fixture(scope="module")
def tiny() -> Clip:
    return load_clip("tiny", device="cpu")


@pytest.fixture(scope="module")
def exact() -> Clip:
    clip = load_clip("tiny", device="cpu")
    clip.model.double()
    return clip


@pytest.mark.parametrize("name", METHODS)
def test_the_recipe_learns_as_it_did(name: str, exact: Clip) -> None:
    found, recorded = numbers(name, exact), json.loads(RECORDED.read_text())[name]
    assert len(found["losses"]) == EPOCHS * EPOCH
    assert found["losses"] == pytest.approx(recorded["losses"], rel=TOLERANCE, abs=0)
    sizes, expected = found["norm and movement"], recorded["norm and movement"]
    assert sizes.keys() == expected.keys()
    for key, pair in sizes.items():
        assert pair == pytest.approx(expected[key], rel=TOLERANCE, abs=0), key
        assert pair[1] > 0.01 * pair[0], f"{key} hardly moved, so nothing was compared"
    zero_shot = base_accuracy(methods.build("zero-shot", exact), load_dataset("mini:digits"))
    assert found["base accuracy"] == recorded["base accuracy"] > zero_shot
    assert sum(found["losses"][-EPOCH:]) < sum(found["losses"][:EPOCH])


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.filterwarnings("ignore::mmrl.engine.BelowZeroShotWarning")
def test_a_run_begins_as_the_exact_loop_does(name: str, tiny: Clip, exact: Clip) -> None:
    data = load_dataset("mini:digits")
    result = api.train(
        data, method=name, backbone=tiny, shots=SHOTS, classes="base", seed=SEED, overrides={"epochs": EPOCHS}, progress=False
    )
    assert result.fitted is not None
    losses = torch.tensor([row["loss"] for row in result.fitted.history], dtype=torch.float64)
    ready = prepared(name, data, tiny)
    assert result.fitted.config == ready.config
    start = methods.build(name, tiny, ready.resolved.method, seed=SEED).state_dict()
    method = methods.build(name, exact, ready.resolved.method).double()
    method.load_state_dict(start)
    first = train_in_float64(method, prepared(name, data, exact, epochs=2), data)[:EPOCH]  # an epoch of warm-up, however many there are
    assert relative_error(losses[:EPOCH], torch.tensor(first, dtype=torch.float64)) <= 1e-4


if __name__ == "__main__":
    clip = load_clip("tiny", device="cpu")
    clip.model.double()
    RECORDED.write_text(json.dumps({name: numbers(name, clip) for name in METHODS}, indent=1) + "\n")
    sys.stdout.write(RECORDED.read_text())
