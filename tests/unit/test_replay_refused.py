"""Steps that cannot be recorded and replayed, how that is found, and what is asked of torch on a GPU."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from mmrl import engine, methods
from mmrl.clip import ClassList, Clip
from mmrl.engine import replay
from mmrl.engine.loop import Trainer
from mmrl.engine.parallel import Peers
from mmrl.engine.replay import CudaGraphs, Direct, Recorder, recorder_of, why_eager
from mmrl.errors import Notice
from mmrl.methods import Loss, Method
from tests.unit import colours as of_colours
from tests.unit.colours import NAMES, PROMPT, Shuffled, clip_on_one_thread, fresh
from tests.unit.replayed import EAGER, FIT, by_steps, recorded_by, same, trained
from tests.unit.tape import Static, Tape

clip = pytest.fixture(scope="module")(clip_on_one_thread)
recorded = pytest.fixture(recorded_by)


# ---- where it cannot be ----


class Idle(Tape):
    """A recording that does nothing when it is replayed."""

    def record(self, work: Any) -> Any:
        super().record(work)
        return lambda: None


class Failing(Direct):
    static = True

    def record(self, work: Any) -> Any:
        raise RuntimeError("operation not permitted when stream is capturing\nmore lines")


class Late(Direct):
    """Fails when it is replayed, half-way."""

    static = True

    def record(self, work: Any) -> Any:
        def play() -> None:
            work()
            raise RuntimeError("an illegal thing")

        return play


@pytest.mark.parametrize(("recorder", "why"), [
    (Idle(), "one that was replayed came to other numbers"),
    (Failing(), r"recording one failed \(operation not permitted when stream is capturing\)"),
    (Late(), r"recording one failed \(an illegal thing\)"),
])  # fmt: skip
def test_a_recording_that_fails_is_told_once_and_changes_nothing(clip: Clip, recorded: Any, recorder: Recorder, why: str) -> None:
    """With dropout, whose random numbers go on as if nothing had been tried."""
    recorded(Static())
    usual = trained(clip, "clip-lora")
    made = recorded(recorder)
    with pytest.warns(Notice, match=f"compile=auto: steps of 'clip-lora' are not replayed as one, .*: {why}") as told:
        assert same(trained(clip, "clip-lora"), usual)
    assert len([each for each in told if isinstance(each.message, Notice)]) == 1
    assert made[0].replay is not None and not made[0].replay.recorded


class Alternating(methods.get("mmrl")):  # type: ignore[misc]
    """Decides in Python what every other step does, and says that it does not."""

    eager = ""

    def loss(self, images: Any, labels: Tensor, classes: ClassList) -> Loss:
        self.calls = getattr(self, "calls", 0) + 1
        found = super().loss(images, labels, classes)
        return found._replace(total=found.total * (3 if self.calls % 2 else 1))


class Reading(methods.get("mmrl")):  # type: ignore[misc]
    """Reads its loss back."""

    eager = ""

    def loss(self, images: Any, labels: Tensor, classes: ClassList) -> Loss:
        found = super().loss(images, labels, classes)
        return found._replace(total=found.total * (2 if float(found.total.detach()) > 0 else 1))


@pytest.mark.parametrize(("kind", "why"), [
    (Alternating, "one that was replayed came to other numbers"),
    (Reading, r"recording one failed \(_local_scalar_dense cannot be recorded\)"),
])  # fmt: skip
def test_a_method_that_says_too_much_is_found_out(clip: Clip, kind: Any, why: str) -> None:
    method = kind(clip, fresh(clip).options)
    trainer = Trainer(method, Shuffled(), method.class_list(NAMES, PROMPT), engine.FitConfig(**{**FIT, "epochs": 3}), recorder=Tape())
    with pytest.warns(Notice, match=why):
        trainer.run()
    assert trainer.replay is not None and not trainer.replay.recorded and len(trainer.history) == 9


class Stepping(methods.get("mmrl")):  # type: ignore[misc]
    def stepped(self, batches: Any, classes: Any, steps: Any) -> None:
        pass


def test_a_method_from_outside_is_replayed_if_it_says_so(clip: Clip) -> None:
    outside = type("Outside", (methods.get("coop"),), {})
    options = fresh(clip, "mmrl").options
    assert why_eager(outside(clip, fresh(clip, "coop", n_ctx=2).options)).startswith("it does not say that they decide nothing in Python")
    assert why_eager(Reading(clip, options)) == "" and why_eager(fresh(clip)) == ""
    assert why_eager(Stepping(clip, options)) == "it takes steps of its own after each"


def test_when_steps_are_recorded(clip: Clip, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CUDA device, unless `compile` is off; why not is said where it was asked for."""
    method, other, config = fresh(clip), fresh(clip, "plot", n_ctx=2), engine.FitConfig(epochs=2)

    def asked(config: engine.FitConfig, peers: Peers | None = None, own: bool = False, of: Method = method) -> Recorder | None:
        return recorder_of(of, config, peers or Peers(), own_optimizer=own)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert asked(config) is None  # on a processor
        monkeypatch.setattr(Clip, "device", property(lambda self: torch.device("cuda", 0)))
        monkeypatch.setattr(replay, "CudaGraphs", lambda device: ("recorder", device))
        assert asked(config) == ("recorder", torch.device("cuda", 0))
        assert asked(engine.FitConfig(epochs=2, compile="off")) is None
    for given, why in (
        ({"config": engine.FitConfig(epochs=2, precision="fp16")}, "in fp16 the scale of the loss is adapted in every step"),
        ({"peers": Peers(0, 2)}, "several processes train together"),
        ({"own": True}, "it has an optimiser of its own"),
        ({"of": other}, "Sinkhorn's algorithm"),
    ):
        with pytest.warns(Notice, match=f"are not replayed as one, but taken as usual, with the same numbers: {why}"):
            assert asked(**{"config": config, **given}) is None  # type: ignore[arg-type]


# ---- CUDA graphs ----


class Streams:
    """Stands in for `torch.cuda`; notes what is asked of it."""

    def __init__(self) -> None:
        self.log, self.now = list[str](), "usual"
        self.default_generators = (self,)

    def Stream(self, device: Any) -> Stream:
        return Stream(self, "aside")

    def current_stream(self, device: Any) -> Stream:
        return Stream(self, self.now)

    def current_device(self) -> int:
        return 0

    def clone_state(self) -> str:
        return "state"

    def graphsafe_set_state(self, state: str) -> None:
        self.log.append(f"generator: {state}")

    def CUDAGraph(self) -> Streams:
        return self

    def replay(self) -> None:
        self.log.append("replayed")

    def stream(self, stream: Stream) -> Any:
        return self._within(stream)

    def graph(self, graph: Any, pool: str, stream: Stream, capture_error_mode: str) -> Any:
        self.log.append(f"recorded on {stream.name} in {pool}, {capture_error_mode}")
        return self._within(stream)

    def _within(self, stream: Stream) -> Any:
        class Within:
            def __enter__(inner) -> None:
                self.now = stream.name

            def __exit__(inner, *_: object) -> None:
                self.now = "usual"

        return Within()


class Stream:
    def __init__(self, streams: Streams, name: str) -> None:
        self.streams, self.name = streams, name

    def wait_stream(self, other: Stream) -> None:
        self.streams.log.append(f"{self.name} waits for {other.name}")


@pytest.mark.parametrize("fails", [False, True])
def test_what_is_asked_of_torch(monkeypatch: pytest.MonkeyPatch, fails: bool) -> None:
    monkeypatch.setattr(torch, "cuda", streams := Streams())
    monkeypatch.setattr(replay, "_pool", lambda index: f"pool {index}")
    graphs = CudaGraphs(torch.device("cuda"))
    with graphs.aside():
        streams.log.append(f"warm on {streams.now}")
    assert streams.log == ["aside waits for usual", "warm on aside", "usual waits for aside"]
    streams.log.clear()

    def work() -> None:
        streams.log.append(f"work on {streams.now}")
        if fails:
            raise RuntimeError("captured badly")

    if fails:
        with pytest.raises(RuntimeError, match="captured badly"):
            graphs.record(work)
        assert streams.log == ["recorded on aside in pool 0, thread_local", "work on aside", "generator: state"] and streams.now == "usual"
    else:
        play = graphs.record(work)
        assert streams.log == ["recorded on aside in pool 0, thread_local", "work on aside"]
        play()
        assert streams.log[2:] == ["replayed"]


@pytest.fixture
def gpu_clip() -> Iterator[Clip]:
    yield of_colours.smallest_clip().to("cuda")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", [name for name in by_steps() if name not in (*EAGER, "coop", "prograd", "kgcoop", "tcp")])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_cuda_graph_does_what_its_steps_do(gpu_clip: Clip, name: str, precision: str) -> None:
    found = []
    for how in ("off", "auto"):
        with warnings.catch_warnings():
            warnings.simplefilter("error", Notice)
            found.append(trained(gpu_clip, name, compile=how, precision=precision, lr=1e-3, eps=1e-4))
    losses = [[row["loss"] for row in history] for _, history in found]
    assert losses[1] == pytest.approx(losses[0], rel=1e-3 if precision == "fp32" else 5e-2)
