"""What steps measured is read late: nothing in a step waits for the device, and what is not finite is found as if every step were read."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from mmrl import engine, methods
from mmrl.clip import ClassList, Clip, Images
from mmrl.data import Preprocess
from mmrl.engine.batches import OnePass, arriving, on_the_way, one_ahead
from mmrl.engine.guard import READ_EVERY, NonFiniteError
from mmrl.engine.loop import Trainer
from mmrl.engine.pool import ViewPool
from mmrl.errors import UsageError
from mmrl.methods import Loss, Method
from tests.unit.colours import NAMES, PROMPT, Batch, Same, Shuffled, clip_on_one_thread, fresh, noise
from tests.unit.tape import READS, Recording, Static

FIT: dict[str, Any] = {"epochs": 3, "warmup_epochs": 1, "lr": 1e-2, "schedule_step": "step"}

clip = pytest.fixture(scope="module")(clip_on_one_thread)


def trainer(method: Method, batches: Any, every: int | None, values: dict[str, Any] | None = None, **more: Any) -> Trainer:
    config = engine.FitConfig(**{**FIT, **(values or {})})
    return Trainer(method, batches, method.class_list(NAMES, PROMPT), config, read_every=every, **more)


def same(one: Trainer, other: Trainer) -> bool:
    a, b = one.method.state_dict(), other.method.state_dict()
    return one.history == other.history and all(torch.equal(value, b[key]) for key, value in a.items())


# ---- the same numbers ----


@pytest.mark.parametrize("every", [3, READ_EVERY])
@pytest.mark.parametrize("values", [{"accumulate": 2}, {"iterations": 7}, {"checkpoint_every": 2, "optimizer": "sgd"}])
def test_nothing_else_changes(clip: Clip, every: int, values: dict[str, Any]) -> None:
    """A watcher gets every row in order, late; a checkpoint has them all."""
    found, saved = [], {1: list[Any](), every: list[Any]()}
    for each, states in saved.items():
        rows: list[Any] = []

        def save(state: Any, states: list[Any] = states) -> None:
            states.append((state["step"], len(state["history"])))

        made = trainer(fresh(clip), Shuffled(5), each, values, watch=rows.append, save=save)
        made.run()
        assert rows == made.history and [row["step"] for row in rows] == [*range(1, made.steps + 1)]
        found.append(made)
    assert same(*found) and saved[1] == saved[every] and all(step == rows for step, rows in saved[every])


def test_when_it_is_read(clip: Clip) -> None:
    """On a processor every step, before the next one begins; else every few, and at the end of each epoch."""
    for every, expected in ((None, [*range(1, 11)]), (3, [0, 0, 3, 3, 3, 5, 5, 8, 8, 8])):
        made, seen, step = trainer(fresh(clip), Shuffled(5), every, {"epochs": 2}), list[int](), Trainer._step

        def noted(group: Any, made: Trainer = made, seen: list[int] = seen, step: Any = step) -> None:
            step(made, group)
            seen.append(len(made.history))

        made._step = noted  # type: ignore[method-assign]
        made.run()
        assert seen == expected and len(made.history) == 10


@pytest.mark.parametrize("name", ["mmrl", "mmrlpp", "maple", "promptsrc", "clip-lora", "cocoop", "provp", "clip-adapter", "rpo", "mma"])
def test_a_step_reads_nothing_back(small_clip: Clip, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """All of it: losses, gradients, their norm, the optimiser, and what is kept of it."""
    method = methods.build(name, small_clip, seed=1)
    made = trainer(method, Same(noise(2)), 100, {"epochs": 2}, recorder=Static())
    made.replay = None
    read: list[int] = []
    tolist = Tensor.tolist
    monkeypatch.setattr(Tensor, "tolist", lambda self: (read.append(made.step), tolist(self))[1])  # of a class list at step 0
    usual = made._step

    def watched(group: list[Batch]) -> None:
        if made.step == 0:  # caches are made
            return usual(group)
        with Recording() as recording:  # raises where a number is read back, or made of Python's
            usual(group)
        assert len(recording.done) > 100
        return None

    made._step = watched  # type: ignore[method-assign]
    made.run()
    assert [step for step in read if step] == [2, 4] and "_local_scalar_dense" in READS


# ---- what is not finite ----


class Poisoned(Method):
    """A method whose loss, or the gradient of it, is not finite from a step on; and which draws random numbers, as dropout does."""

    name = "poisoned"

    def __init__(self, clip: Clip, at: int, where: str) -> None:
        inner = fresh(clip)
        super().__init__(clip, inner.options)
        self.inner, self.at, self.where = inner, at, where
        self.register_buffer("calls", torch.zeros((), dtype=torch.long), persistent=False)

    def loss(self, images: Any, labels: Tensor, classes: ClassList) -> Loss:
        loss = self.inner.loss(images, labels, classes)
        loss = loss._replace(total=loss.total * (1 + 0.1 * torch.rand(())))
        if int(self.calls) + 1 < self.at:
            return loss
        if self.where == "gradient":
            zero = (self.inner.rep_space - self.inner.rep_space.detach()).abs().sum()  # type: ignore[operator, union-attr]
            return loss._replace(total=loss.total + zero.sqrt())
        return loss._replace(terms={**loss.terms, "ce_rep": loss.terms["ce_rep"] / 0}, total=loss.total / 0)

    def gradients(self, images: Any, labels: Tensor, classes: ClassList, differentiate: Any) -> Any:
        found = super().gradients(images, labels, classes, differentiate)
        self.calls += 1
        return found

    def head(self, classes: ClassList) -> Any:
        return self.inner.head(classes)

    def logits(self, images: Any, head: Any, seen: Tensor | bool) -> Tensor:
        return self.inner.logits(images, head, seen)


@pytest.mark.parametrize("at", [1, 4, 9])
@pytest.mark.parametrize("where", ["loss", "gradient", "image"])
def test_the_same_number_is_named_and_the_same_parameters_are_kept(clip: Clip, at: int, where: str) -> None:
    """However late it is found: steps in between have moved everything, and are taken back."""
    found = []
    for every in (1, 3, 100):
        batches = noise(5)
        if where == "image":
            batches[(at - 1) % 5][0][0, 0, 3, 3] = float("nan")
        torch.manual_seed(7)
        made = trainer(Poisoned(clip, at if where != "image" else 100, where), Same(batches), every, {"epochs": 2, "lr": 1e-3})
        with pytest.raises(NonFiniteError) as error:
            made.run()
        found.append((made, str(error.value), error.value.scores))
    name = {"loss": "loss term 'ce_rep'", "gradient": "the gradient of 'inner.rep_space'", "image": "an input image"}[where]
    step = at if where != "image" else (at - 1) % 5 + 1
    assert f"epoch {1 + (step > 5)}, step {step}: {name} is not finite" in found[0][1]
    assert len(found[0][0].history) == step - 1
    for made, said, scores in found[1:]:
        assert (said, scores) == found[0][1:] and same(made, found[0][0])


@pytest.mark.parametrize("every", [1, 5])
def test_an_update_that_blows_up(clip: Clip, every: int) -> None:
    """Also that of the last step, which no loss is computed after."""

    class Last(torch.optim.SGD):
        def step(self, closure: Any = None) -> None:  # type: ignore[override]
            super().step(closure)
            with torch.no_grad():
                self.param_groups[0]["params"][0].add_(float("inf"))

    for count, step in ((1, 1), (4, 2)):
        method, initial = fresh(clip), fresh(clip)
        method.optimizer = lambda parameters, fit: Last(parameters, lr=1e-3)  # type: ignore[method-assign]
        made = trainer(method, Same(noise(count)), every, {"epochs": 1, "warmup_epochs": 0})
        with pytest.raises(NonFiniteError, match=f"step {step}: parameter 'rep_space' is not finite"):
            made.run()
        assert all(torch.equal(value, initial.state_dict()[key]) for key, value in method.state_dict().items())


def test_what_fails_because_of_it_is_not_what_is_told(clip: Clip) -> None:
    """A step on numbers that are not finite may raise anything; an error of its own is told as it is."""

    def hook(fails: str) -> Any:
        def stepped(kept: Any, classes: Any, steps: Any) -> None:
            if fails == "always" or not all(bool(p.isfinite().all()) for p in method.parameters()):
                raise ZeroDivisionError(fails)

        return stepped

    batches = noise(4)
    batches[1][0][0, 0, 0, 0] = float("nan")
    method = fresh(clip)
    method.stepped = hook("not finite")  # type: ignore[method-assign]
    with pytest.raises(NonFiniteError, match="step 2: an input image is not finite") as error:
        trainer(method, Same(batches), 10).run()
    assert isinstance(error.value.__context__, ZeroDivisionError)
    method = fresh(clip)
    method.stepped = hook("always")  # type: ignore[method-assign]
    with pytest.raises(ZeroDivisionError):
        trainer(method, Same(batches), 10).run()


# ---- batches on their way ----


class Sending:
    """A way that notes what happens."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.inside = False

    @contextmanager
    def sending(self) -> Iterator[None]:
        self.inside = True
        try:
            yield
        finally:
            self.inside = False

    def send(self, batch: Any) -> Any:
        assert self.inside
        self.log.append(f"sent {batch}")
        return ("sent", batch)

    def received(self, sent: Any) -> Any:
        assert not self.inside
        return sent[1]


def test_the_next_batch_is_on_its_way_while_one_is_computed() -> None:
    way, taken = Sending(), []
    for batch in one_ahead(iter("abc"), way):  # type: ignore[arg-type]
        taken.append(batch)
        way.log.append(f"computed {batch}")
    assert taken == ["a", "b", "c"]
    assert way.log == ["sent a", "sent b", "computed a", "sent c", "computed b", "computed c"]
    assert list(one_ahead(iter(()), way)) == []


def test_a_batch_that_cannot_be_made_comes_in_its_place() -> None:
    def broken() -> Iterator[Any]:
        yield "a"
        yield "b"
        raise UsageError("photo.jpg cannot be read")

    batches = one_ahead(broken(), Sending())
    assert [next(batches), next(batches)] == ["a", "b"]
    with pytest.raises(UsageError, match="photo"):
        next(batches)


def test_only_what_is_not_there_yet_is_sent(clip: Clip, monkeypatch: pytest.MonkeyPatch) -> None:
    """To a processor nothing is; what puts its batches on the device by itself sends them where they are made."""
    batches = Shuffled()
    given = batches.epoch(0)
    assert on_the_way(given, torch.device("cpu")) is given
    ways: list[Any] = []
    monkeypatch.setattr("mmrl.engine.batches.Pinned", lambda device: ways.append(Sending()) or ways[-1])
    cuda, shared = torch.device("cuda"), OnePass(batches, torch.device("cpu"))
    assert len(list(arriving(batches, 0, 0, cuda))) == 3 and len(ways) == 1
    for placed in (shared, ViewPool.placed):
        assert getattr(placed, "placed", placed)
    found = list(arriving(shared, 0, 0, cuda))
    assert len(ways) == 1 and all(isinstance(images, Images) for images, _ in found)


def test_pixels_of_a_test_are_the_same_wherever_they_are_normalised() -> None:
    constants = (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)
    preprocess = Preprocess(8, *constants)
    planes = [torch.randint(0, 256, (3, 8, 8), generator=torch.Generator().manual_seed(i), dtype=torch.uint8).numpy() for i in range(3)]
    first, second = preprocess.batch(planes), preprocess.batch(planes, "cpu")
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in constants)
    expected = (torch.stack([torch.from_numpy(plane) for plane in planes]).float() / 255 - mean) / std
    assert torch.equal(first, second) and torch.equal(first, expected)
