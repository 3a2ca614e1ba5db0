"""A step that is recorded and replayed is the step: of every method, on fresh images and on kept ones, and resumed."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor

from mmrl import engine
from mmrl.clip import Clip
from mmrl.engine.batches import Batches, OnePass
from mmrl.engine.guard import NonFiniteError
from mmrl.engine.loop import Trainer
from mmrl.engine.optimizers import make_optimizer, set_rate
from mmrl.engine.replay import WARM_UP, Direct, Recorder, why_eager
from tests.oracle.pair import relative_error
from tests.unit.colours import NAMES, PROMPT, Same, Shuffled, clip_on_one_thread, fresh, noise
from tests.unit.replayed import EAGER, FIT, by_steps, recorded_by, same, trained
from tests.unit.tape import Static, Tape

clip = pytest.fixture(scope="module")(clip_on_one_thread)
recorded = pytest.fixture(recorded_by)


# ---- the same numbers ----


def test_which_methods_can_be_replayed(small_clip: Clip) -> None:
    assert [name for name in by_steps() if why_eager(fresh(small_clip, name))] == sorted(EAGER, key=by_steps().index)
    assert len(by_steps()) > 15


@pytest.mark.parametrize("name", by_steps())
def test_the_same_path_without_a_recording_changes_no_bit(small_clip: Clip, recorded: Any, name: str) -> None:
    recorded(None)
    usual = trained(small_clip, name, iterations=5)
    made = recorded(Direct())
    assert same(trained(small_clip, name, iterations=5), usual)
    assert [trainer.replay is not None and trainer.replay.recorded for trainer in made] == [name not in EAGER]


@pytest.mark.parametrize("name", [name for name in by_steps() if name not in EAGER])
def test_a_recording_that_is_replayed_changes_no_bit(small_clip: Clip, recorded: Any, name: str) -> None:
    """Nor does it read a number back, or need one from Python."""
    recorded(Static())
    usual = trained(small_clip, name, iterations=6)
    recorded(tape := Tape())
    assert same(trained(small_clip, name, iterations=6), usual)
    assert [recording.plays for recording in tape.recordings] == [len(usual[1]) - WARM_UP]


OPTIMISERS: list[dict[str, Any]] = [
    {"optimizer": "sgd", "momentum": 0.9}, {"optimizer": "sgd", "momentum": 0.0}, {"optimizer": "adam"}, {"optimizer": "adamw"},
]  # fmt: skip


@pytest.mark.parametrize("values", OPTIMISERS)
@pytest.mark.parametrize(("kind", "most"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
def test_one_kernel_for_all_parameters_moves_them_as_torch_does(values: dict[str, Any], kind: torch.dtype, most: float) -> None:
    """With the learning rate at its place in memory."""
    config, moved = engine.FitConfig(**values, weight_decay=0.1), []
    for static in (False, True):
        generator = torch.Generator().manual_seed(0)
        parameters = [torch.nn.Parameter(torch.randn(shape, generator=generator, dtype=kind)) for shape in ((3, 4), (5,), ())]
        optimizer = make_optimizer(parameters, config, static=static)
        place = optimizer.param_groups[0]["lr"]
        for step in range(20):
            for parameter in parameters:
                parameter.grad = torch.randn(parameter.shape, generator=generator, dtype=kind)
            set_rate(optimizer, 2.0 ** -(6 + step % 3), static=static)  # what float32 has exactly
            optimizer.step()
        assert static == isinstance(place, Tensor) and (not static or optimizer.param_groups[0]["lr"] is place)
        moved.append(torch.cat([parameter.detach().flatten() for parameter in parameters]))
    assert relative_error(*moved) < most


@pytest.mark.parametrize("values", OPTIMISERS)
def test_every_optimiser_is_replayed(clip: Clip, recorded: Any, values: dict[str, Any]) -> None:
    found = []
    for recorder in (Static(), Tape()):
        recorded(recorder)
        found.append(trained(clip, "mmrl", weight_decay=0.1, **values))
    assert same(*found)


@pytest.mark.parametrize("values", [
    {"accumulate": 2}, {"accumulate": 3}, {"iterations": 7}, {"batch_size": 3, "drop_last": False}, {"precision": "bf16"},
    {"checkpoint_every": 2}, {"memory_gib": 1e-5},
])  # fmt: skip
def test_however_it_is_trained(clip: Clip, recorded: Any, values: dict[str, Any]) -> None:
    """Incomplete groups and batches at the end of an epoch are no obstacle."""
    found, tape = [], Tape()
    for recorder in (Static(), tape):
        made = recorded(recorder)
        found.append(trained(clip, "mmrl", **{**FIT, "epochs": 6, **values}))
        assert made[0].replay is not None and made[0].replay.recorded
    assert same(*found) and tape.recordings[0].plays > 1


def test_epochs_that_end_with_a_hook(clip: Clip, recorded: Any) -> None:
    found = []
    for recorder in (Static(), Tape()):
        recorded(recorder)
        found.append(trained(clip, "promptsrc"))
    assert same(*found)


@pytest.mark.parametrize("name", ["mmrl", "kgcoop", "provp"])
@pytest.mark.parametrize("kind", ["views", "one pass"])
def test_images_that_come_with_passes(small_clip: Clip, recorded: Any, name: str, kind: str) -> None:
    """Kept states and features are copied to their places; no frozen layer is recorded."""

    def one_pass(batches: Batches) -> Batches:
        return OnePass(batches, small_clip.device)

    more: dict[str, Any] = {"views": 2, "epochs": 3} if kind == "views" else {"wrap": one_pass, "epochs": 2}
    recorded(None)
    usual = trained(small_clip, name, **more)
    recorded(Direct())
    assert same(trained(small_clip, name, **more), usual)
    recorded(Static())
    static = trained(small_clip, name, **more)
    recorded(kept := Tape())
    assert same(trained(small_clip, name, **more), static)
    recorded(new := Tape())
    trained(small_clip, name, epochs=2)
    convolutions = [sum("conv" in str(func) for func, *_ in tape.recordings[0].done) for tape in (kept, new)]
    assert convolutions == [0, 1]


def test_it_is_resumed_bit_for_bit(clip: Clip) -> None:
    """At any step: while it warms up, where it is recorded, and after."""

    def trainer(recorder: Recorder, **more: Any) -> Trainer:
        method = fresh(clip)
        config = engine.FitConfig(epochs=2, warmup_epochs=0, lr=1e-2, checkpoint_every=1)
        return Trainer(method, Shuffled(), method.class_list(NAMES, PROMPT), config, recorder=recorder, **more)

    states: list[Any] = []
    whole = trainer(Tape(), save=lambda state: states.append(copied(state)))
    whole.run()
    assert [state["step"] for state in states] == [*range(1, 7)]
    for state in states[:-1]:
        again = trainer(Tape())
        again.restore(copied(state))
        again.run()
        assert again.history == whole.history
        assert all(torch.equal(value, again.method.state_dict()[key]) for key, value in whole.method.state_dict().items())


def copied(tree: Any) -> Any:
    if isinstance(tree, Tensor):
        return tree.clone()
    if isinstance(tree, dict):
        return {key: copied(value) for key, value in tree.items()}
    return [copied(value) for value in tree] if isinstance(tree, list) else tree


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_state_goes_from_one_kind_of_optimiser_to_the_other(clip: Clip, optimizer: str) -> None:
    """As from a GPU to a processor and back; in float64, which `engine.fit` refuses."""
    exact = deepcopy(clip)
    exact.model.double()
    batches = [(images.double(), labels) for images, labels in noise(3)]
    config = engine.FitConfig(epochs=3, warmup_epochs=0, lr=2.0**-10, schedule="constant", optimizer=optimizer)

    def trainer(recorder: Recorder | None, states: list[Any]) -> Trainer:
        method = fresh(exact).double()
        classes = method.class_list(NAMES, PROMPT)
        return Trainer(method, Same(batches), classes, config, recorder=recorder, save=lambda state: states.append(copied(state)))

    for recorder, other in ((Tape(), None), (None, Tape())):
        states = list[Any]()
        first, second = trainer(recorder, states), trainer(other, [])
        first.run()
        second.restore(states[0])
        second.run()
        for each, static in ((first, recorder is not None), (second, other is not None)):
            (group,) = each.optimizer.param_groups
            assert isinstance(group["lr"], Tensor) == static and bool(group["fused"]) == static
        assert all(relative_error(value, first.method.state_dict()[key]) < 1e-9 for key, value in second.method.state_dict().items())
        assert [row["loss"] for row in second.history] == pytest.approx([row["loss"] for row in first.history], rel=1e-6)


def test_a_number_that_is_not_finite_is_found_in_replayed_steps(clip: Clip) -> None:
    batches = noise(9)
    batches[7][0][0, 0, 3, 3] = float("nan")
    found = []
    for recorder, every in ((Static(), 1), (Tape(), 1), (Tape(), 4), (Tape(), 20)):
        method = fresh(clip)
        config = engine.FitConfig(epochs=1, warmup_epochs=0, lr=1e-3, eps=1e-4)
        trainer = Trainer(method, Same(batches), method.class_list(NAMES, PROMPT), config, recorder=recorder, read_every=every)
        with pytest.raises(NonFiniteError, match="epoch 1, step 8: an input image is not finite") as error:
            trainer.run()
        assert len(trainer.history) == 7 and error.value.scores
        found.append(({key: value.clone() for key, value in method.state_dict().items()}, trainer.history))
    assert all(same(found[0], other) for other in found[1:])
