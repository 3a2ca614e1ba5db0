"""What a method costs: time of a training step and of a test image, and memory, on one machine (the paper's Table 6)."""

from __future__ import annotations

import multiprocessing
import statistics
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime, timezone
from itertools import cycle, islice, pairwise
from typing import Literal, NamedTuple, cast

import torch

from mmrl import methods
from mmrl.clip import ClassList, Clip, load_clip
from mmrl.data import Dataset, test_batches
from mmrl.engine.batches import Batch
from mmrl.engine.config import FitConfig
from mmrl.engine.context import Bench, Context, Prepared
from mmrl.engine.features import preprocess_of
from mmrl.engine.fit import TrainingData
from mmrl.engine.loop import Trainer
from mmrl.engine.memory import GIB, forget_peak, peak_resident, resident, room, text_memory
from mmrl.engine.pool import Repeatable, ViewPool
from mmrl.engine.record import environment
from mmrl.engine.schedule import length_of
from mmrl.engine.score import evaluate
from mmrl.errors import MmrlError
from mmrl.methods import Method, Task
from mmrl.protocols import Training
from mmrl.protocols.plan import ZERO_SHOT, variant_of
from mmrl.reports.cost import CostRow

WARM_UP = 2  # steps and test batches that are not timed
DISTINCT = 4  # training batches kept in memory, which take turns
MOST_TESTED = 10  # test batches timed


@dataclass(frozen=True)
class Measurement:
    """What is to be measured; plain data, so that it can be sent to another process.

    Attributes:
        training: on the base classes of `dataset`; None for zero-shot CLIP.
        steps: training steps to time, at least 1.
        threads: of torch.
    """

    bench: Bench
    dataset: str
    training: Training | None
    steps: int
    device: str = "cpu"
    threads: int = 1

    @property
    def method(self) -> str:
        return self.training.method if self.training else ZERO_SHOT


def measure_apart(what: Measurement) -> CostRow:
    """`measure` in a fresh process: memory that this one once took, or another method did, is none of its.

    Raises:
        MmrlError: it failed, or its process was killed.
    """
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        try:
            return pool.submit(measure, what).result()
        except BrokenProcessPool as error:
            raise MmrlError("its process was killed, which is what a lack of memory does; try --set memory_gib=4.") from error
        except (RuntimeError, OSError) as error:  # such as no memory left on the device
            raise MmrlError(str(error)) from error


def measure(what: Measurement) -> CostRow:
    """Cost of one method in this process, with images that lie decoded in memory; the HM is left open.

    Raises:
        MmrlError: unusable options, data or device.
    """
    torch.set_num_threads(what.threads)
    context = Context(what.bench, load_clip(what.bench.backbone, device=what.device))
    return measure_in(context, what.dataset, what.training, what.steps)


def measure_in(context: Context, dataset: str, training: Training | None, steps: int) -> CostRow:
    """As `measure`, with a backbone that is there; zero-shot CLIP is tested on the base classes, as a training of these is.

    Raises:
        MmrlError: unusable options or data.
    """
    started, clip, size = datetime.now(timezone.utc), context.clip, context.bench.batch_size
    part = context.dataset(dataset).restrict(training.classes if training else "base")
    ready = context.prepare(training) if training else None
    data = TrainingData.of(clip, part, ready.draw, ready.config) if ready else None
    drawn = list(islice(data.batches.epoch(0), DISTINCT)) if data else []
    tested = _tested(part, clip, size)
    memory = _Memory(clip)
    method = methods.build(training.method if training else ZERO_SHOT, clip, ready.resolved.method if ready else None, seed=1)
    began = time.perf_counter()
    if data:
        task = Task(data.classes, data.template, data.images, data.validation, features=data.features)
        method.setup(task)
        method.to(clip.device)
        method.finish(task)
    minutes = (time.perf_counter() - began) / 60
    limit = (ready.config.memory_gib or text_memory(clip.device)) if ready else None
    classes = method.class_list(part.classes, part.template, memory_gib=limit)
    step = _step(method, classes, drawn, ready.config, steps) if ready and method.trainable else None
    again = _again(method, classes, part, ready, steps) if ready and step is not None and ready.config.pool else None
    test = _test(method, classes, tested, min(steps, MOST_TESTED))
    batch = ready.config.batch_size * ready.config.accumulate if ready else 1
    if step is not None and ready and data:
        total, first = length_of(ready.config, len(data.batches))[0], -(-len(data.batches) // ready.config.accumulate)
        new = min(total, first * ready.config.pool) if again and ready.config.pool else total
        minutes += (step * new + (again.seconds if again else 0.0) * (total - new)) / 60
    views = again.bytes_an_image * (ready.config.pool or 0) * len(ready.draw.train) if again and ready else 0
    held = 0 if clip.device.type == "cuda" or not (again and ready) else max(0, min(views, room(ready.config.views_gib)) - again.measured)
    return CostRow(
        method=method.name,
        title=method.title,
        variant=variant_of(training.overrides) if training else "",
        modality=method.modality if method.trainable else "-",
        trained_parameters=sum(parameter.numel() for parameter in method.parameters()),
        train_ms_per_image=None if step is None else 1e3 * step / batch,
        train_minutes=minutes if ready else None,
        images_per_second=size / test,
        batch=size,
        peak_memory_gib=(memory.peak() + held) / GIB,
        views=ready.config.pool if again and ready else None,
        kept_ms_per_image=1e3 * again.seconds / batch if again else None,
        views_gib=views / GIB if again else None,
        hm=None,
        dataset=dataset,
        backbone=clip.name,
        shots=training.shots if training else None,
        precision=cast(Literal["fp32", "bf16", "fp16"], ready.config.precision) if ready else "fp32",  # what auto is, it is by now
        steps=steps,
        environment=environment(clip.device, started),
    )


class _Memory:
    """Peak of what the backbone and all that is made from now on take: on a CUDA device, or in main memory."""

    def __init__(self, clip: Clip) -> None:
        self.device = clip.device
        self.weights = sum(parameter.nbytes for parameter in clip.model.parameters())
        forget_peak()
        self.before = resident()

    def peak(self) -> int:
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        return self.weights + max(0, peak_resident() - self.before)


def _tested(dataset: Dataset, clip: Clip, size: int) -> Batch:
    """One test batch; images come again where there are fewer than `size`."""
    return next(test_batches(dataset, list(islice(cycle(dataset.test), size)), preprocess_of(clip), size))


class _Repeated:
    """The same few batches again and again, `count` in all."""

    def __init__(self, batches: Sequence[Batch], count: int) -> None:
        self.batches, self.count = batches, count

    def __len__(self) -> int:
        return self.count

    def epoch(self, number: int, start: int = 0) -> Iterator[Batch]:
        return islice(cycle(self.batches), start, self.count)


def _step(method: Method, classes: ClassList, batches: Sequence[Batch], config: FitConfig, steps: int) -> float:
    """Seconds of a training step, median."""
    clock = _Clock(method.clip)
    count = WARM_UP + steps
    short = {"iterations": count, "warmup_epochs": 0, "checkpoint_every": None, "log": None}
    repeated = _Repeated(batches, count * config.accumulate)
    Trainer(method, repeated, classes, config.model_copy(update=short), watch=lambda row: clock.tick(), read_every=1).run()
    return clock.median(steps)


class _Again(NamedTuple):
    """A step on views that were shown before: its seconds, and bytes kept of an image and view, and by the measurement itself."""

    seconds: float
    bytes_an_image: float
    measured: int


def _again(method: Method, classes: ClassList, dataset: Dataset, ready: Prepared, steps: int) -> _Again:
    """Measured with one view of a few of the images."""
    clock, config = _Clock(method.clip), ready.config
    some = ready.draw.train[: DISTINCT * config.batch_size * config.accumulate]
    batches = TrainingData.of(method.clip, dataset, some, config).batches
    assert isinstance(batches, Repeatable)
    first = -(-len(batches) // config.accumulate)
    short = config.model_copy(
        update={"views": 1, "iterations": first + WARM_UP + steps, "warmup_epochs": 0, "checkpoint_every": None, "log": None}
    )
    with closing(ViewPool(batches, short, method.clip, None)) as pool:
        Trainer(method, pool, classes, short, watch=lambda row: clock.tick(), read_every=1).run()
        return _Again(clock.median(steps), pool.held / batches.count, pool.held)


def _test(method: Method, classes: ClassList, batch: Batch, count: int) -> float:
    """Seconds of a test batch, median; class features are computed before the first."""
    clock = _Clock(method.clip)

    def repeated() -> Iterator[Batch]:
        for _ in range(WARM_UP + count):
            yield batch
            clock.tick()  # asked for the next: this one is done

    evaluate(method, classes, repeated(), seen=True)
    return clock.median(count)


class _Clock:
    def __init__(self, clip: Clip) -> None:
        self.device, self.ticks = clip.device, list[float]()

    def tick(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.ticks.append(time.perf_counter())

    def median(self, last: int) -> float:
        """Seconds between ticks, median of the `last` ones."""
        return statistics.median(later - earlier for earlier, later in pairwise(self.ticks[-last - 1 :]))
