"""A whole training step, recorded once and then replayed: one launch in place of thousands.

A step is recorded as it works on batches at fixed places in memory; to take another one, its batches are copied there. On a GPU the
recording is a CUDA graph. What a graph cannot have is said in `why_eager`, or found when it is recorded: the first replayed step is
compared with the same step taken as usual, and unless they agree, all steps are taken as usual.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from mmrl.clip import AnyImages, Clip, Images
from mmrl.clip.vision import ImageHidden
from mmrl.engine.batches import Batch
from mmrl.engine.config import FitConfig
from mmrl.engine.parallel import Peers
from mmrl.engine.randomness import random_state, set_random_state
from mmrl.engine.step import Computed, Stepper
from mmrl.errors import MmrlError, Notice, first_line
from mmrl.methods import Method

WARM_UP = 3  # steps before one is recorded: optimiser states, caches and the libraries' workspaces are made in them
AGREE = 1e-2  # most difference of a replayed step from the same step taken as usual, relative: what is not the same is far from it
PACKAGE = "mmrl.methods."


# ---- recording ----


class Recorder(Protocol):
    """Records work on a device.

    Attributes:
        static: whether what is decided in Python is decided once, so that the learning rate must be a tensor.
    """

    static: bool

    def aside(self) -> AbstractContextManager[None]:
        """Where work is done that comes before a recording."""
        ...

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        """What does `work`, each time that it is called, on the same memory. Recording alone leaves all tensors as they were."""
        ...


class Direct:
    """No recording: the work is called each time. The way of a processor, and of a look at what is not the recording's fault."""

    static = False

    def aside(self) -> AbstractContextManager[None]:
        return nullcontext()

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        return work


@cache
def _pool(index: int) -> Any:
    """Memory that all graphs of a process on a GPU work in, so that trainings that take turns do not each hold a step's activations. What
    one leaves there is overwritten by the next: all that outlives a step is elsewhere, or copied right after it."""
    return torch.cuda.graph_pool_handle()


class CudaGraphs:
    """CUDA graphs of the work on one GPU."""

    static = True

    def __init__(self, device: torch.device) -> None:
        self._device, self._stream = device, torch.cuda.Stream(device)

    @contextmanager
    def aside(self) -> Iterator[None]:
        """On another stream than the usual one, as torch asks for."""
        now = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(now)
        try:
            with torch.cuda.stream(self._stream):
                yield
        finally:
            now.wait_stream(self._stream)

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        """Raises RuntimeError, of torch, if the work waits for the device or does what else a graph cannot have."""
        index = torch.cuda.current_device() if self._device.index is None else self._device.index
        generator = torch.cuda.default_generators[index]
        usual, graph = generator.clone_state(), torch.cuda.CUDAGraph()
        try:
            # Other threads decode images meanwhile, which is none of the graph's business.
            with torch.cuda.graph(graph, pool=_pool(index), stream=self._stream, capture_error_mode="thread_local"):
                work()
        except BaseException:
            generator.graphsafe_set_state(usual)  # a recording that failed leaves it as if it went on
            raise
        return graph.replay


def recorder_of(method: Method, config: FitConfig, peers: Peers, *, own_optimizer: bool) -> Recorder | None:
    """How steps are recorded; None where they are taken as usual.

    Warns:
        Notice: why, where `compile=auto` asks for a recording and the device has one.
    """
    device = method.clip.device
    if config.compile == "off" or device.type != "cuda":
        return None
    why = (
        "in fp16 the scale of the loss is adapted in every step" if config.precision == "fp16"
        else "several processes train together" if peers.count > 1
        else "it has an optimiser of its own" if own_optimizer
        else why_eager(method)
    )  # fmt: skip
    if why:
        _tell(method, why)
        return None
    return CudaGraphs(device)


def why_eager(method: Method) -> str:
    """Why steps of `method` cannot be replayed; '' where they can."""
    cls = type(method)
    if cls.eager is not None:
        return cls.eager
    if cls.stepped is not Method.stepped:
        return "it takes steps of its own after each"
    return "" if cls.__module__.startswith(PACKAGE) else "it does not say that they decide nothing in Python (eager = '')"


def _tell(method: Method, why: str) -> None:
    said = f"compile=auto: steps of '{method.name}' are not replayed as one, but taken as usual, with the same numbers: {why}."
    warnings.warn(said, Notice, stacklevel=2)


# ---- batches at fixed places ----


class _Kept(Images):
    """Frozen passes over images, at fixed places: those that were asked for once, filled from each batch's own."""

    def __init__(self) -> None:
        super().__init__(lambda: self._first(lambda: self._source.pixels))
        self._source: Images
        self.closed = False

    def _first(self, make: Callable[[], Tensor]) -> Tensor:
        if self.closed:
            raise MmrlError("it asked for another pass over the images than in the steps before")
        return make().clone()

    @torch.no_grad()
    def fill(self, source: Images, clip: Clip) -> None:
        self._source = source
        for layer, hidden in self.states.items():
            hidden.main.copy_(source.entering(clip, layer).main)
        if self.features is not None:
            self.features.copy_(source.encoded(clip))
        if isinstance(self._pixels, Tensor):
            self._pixels.copy_(source.pixels)

    def __len__(self) -> int:
        return len(self._source)

    @torch.no_grad()
    def entering(self, clip: Clip, layer: int) -> ImageHidden:
        if layer not in self.states:
            self.states[layer] = ImageHidden(self._first(lambda: self._source.entering(clip, layer).main))
        return self.states[layer]

    @torch.no_grad()
    def encoded(self, clip: Clip) -> Tensor:
        if self.features is None:
            self.features = self._first(lambda: self._source.encoded(clip))
        return self.features


Shape = tuple[object, ...]


def shape_of(group: Sequence[Batch]) -> Shape:
    """What a recording is good for: batches of these sizes, types and kinds."""
    return tuple((len(images) if isinstance(images, Images) else (images.shape, images.dtype), labels.shape) for images, labels in group)


def _images_of(group: Sequence[Batch]) -> int:
    return sum(len(labels) for _, labels in group)


class _Inputs:
    """A group of batches at fixed places. Of images alone the pixels are there, and frozen passes are part of the step; of those that come
    with passes, what the step asks for."""

    def __init__(self, group: Sequence[Batch], clip: Clip) -> None:
        self.shape, self.images, self._clip = shape_of(group), _images_of(group), clip
        self._places: list[tuple[_Kept | Tensor, Tensor]] = [
            (
                _Kept() if isinstance(images, Images) else torch.empty_like(images, device=clip.device),
                torch.empty_like(labels, device=clip.device),
            )
            for images, labels in group
        ]

    def fill(self, group: Sequence[Batch]) -> None:
        for (place, label), (images, labels) in zip(self._places, group, strict=True):
            label.copy_(labels, non_blocking=True)
            self._fill(place, images)

    def _fill(self, place: _Kept | Tensor, images: AnyImages) -> None:
        if isinstance(place, Tensor):
            assert isinstance(images, Tensor)
            place.copy_(images, non_blocking=True)
        else:
            place.fill(Images.of(images), self._clip)

    def close(self) -> None:
        """From now on the places are all there are."""
        for place, _ in self._places:
            if isinstance(place, _Kept):
                place.closed = True

    def batches(self) -> list[tuple[Images, Tensor]]:
        return [(Images.of(place), labels) for place, labels in self._places]


# ---- steps ----


class _State(NamedTuple):
    """All that a step changes, copied."""

    tensors: list[Tensor]
    random: dict[str, Any]


@dataclass
class Replay:
    """Takes steps of `stepper` on groups of `batches` batches each, by `recorder`.

    The first few are taken as usual, on the fixed places; then one is recorded. Groups of another shape than the recorded one (an
    incomplete one at the end of an epoch) are the caller's.
    """

    stepper: Stepper
    recorder: Recorder
    batches: int

    def __post_init__(self) -> None:
        self._inputs: _Inputs | None = None
        self._play: Callable[[], None] | None = None
        self._warmed = 0
        self._failed = False

    @property
    def recorded(self) -> bool:
        return self._play is not None

    def step(self, group: Sequence[Batch]) -> Computed | None:
        """A step, or None where it is to be taken as usual."""
        if self._failed or len(group) != self.batches:
            return None
        inputs = self._inputs
        if inputs is None or inputs.shape != shape_of(group):
            if inputs is not None and (self._play is not None or _images_of(group) < inputs.images):
                return None
            inputs = self._inputs = _Inputs(group, self.stepper.method.clip)
            self._warmed = 0
        with self.stepper.autocast():  # frozen passes of kept images may run here
            inputs.fill(group)
        if self._play is not None:
            self._play()
            return self._result()
        self._warmed += 1
        return self._usual(inputs) if self._warmed <= WARM_UP else self._record(inputs)

    def _usual(self, inputs: _Inputs) -> Computed:
        with self.recorder.aside():
            return self.stepper.whole(inputs.batches())

    def _record(self, inputs: _Inputs) -> Computed:
        """Take the step as usual, then go back, record it and take it again; what it came to, either way."""
        before = self._state()
        computed = self._usual(inputs)
        after = self._state()
        if not bool(computed.measured.isfinite().all()):
            return computed  # there is nothing to compare, and training stops
        self._back(before)
        inputs.close()
        try:
            play = self.recorder.record(lambda: self._keep(self.stepper.whole(inputs.batches())))
            play()
            why = self._disagreement(computed, before, after)
        except Exception as error:
            why = f"recording one failed ({first_line(error)})"
        if why:
            self._failed = True
            self._inputs = None
            self._back(after)
            _tell(self.stepper.method, why)
            return computed
        self._play = play
        return self._result()

    def _keep(self, computed: Computed) -> None:
        self._computed = computed

    def _result(self) -> Computed:
        """Of the step replayed last; the next one leaves it as it is."""
        return self._computed._replace(measured=self._computed.measured.clone())

    def _disagreement(self, computed: Computed, before: _State, after: _State) -> str:
        """How the replayed step differs from the same step taken as usual; '' where it does not, but for rounding."""
        found, expected = self._computed.measured.double(), computed.measured.double()
        loss, norm = (bool((found[at] - expected[at]).abs() <= AGREE * expected[at].abs()) for at in (0, -1))
        moved, off = _distance(after.tensors, before.tensors), _distance(self._tensors(), after.tensors)
        if loss and norm and off <= AGREE * moved:
            return ""
        return "one that was replayed came to other numbers"

    def _tensors(self) -> list[Tensor]:
        method, states = self.stepper.method, self.stepper.optimizer.state.values()
        kept = (value for state in states for value in state.values() if isinstance(value, Tensor))
        return [*method.parameters(), *method.buffers(), *kept]

    def _state(self) -> _State:
        return _State([tensor.detach().clone() for tensor in self._tensors()], random_state(self.stepper.device))

    @torch.no_grad()
    def _back(self, state: _State) -> None:
        for tensor, value in zip(self._tensors(), state.tensors, strict=True):
            if not torch.equal(tensor, value):  # what depends on a buffer's version is not made anew for nothing
                tensor.copy_(value)
        set_random_state(state.random, self.stepper.device)


@torch.no_grad()
def _distance(a: Sequence[Tensor], b: Sequence[Tensor]) -> float:
    """Euclidean."""
    return float(sum(((x.double() - y.double()).square().sum().cpu() for x, y in zip(a, b, strict=True)), torch.zeros(()))) ** 0.5
