"""Training a method on a few images."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmrl.clip import Clip
from mmrl.data import Dataset, Draw, Item, TrainBatches, image_batches, readable, require_every_class, view_batches, warn_broken
from mmrl.engine.adapter import load_adapter, load_tensors, save_adapter
from mmrl.engine.batches import Batches, Shareable
from mmrl.engine.checkpoint import RunFolder
from mmrl.engine.config import FitConfig, make_config
from mmrl.engine.features import FeatureStore, preprocess_of
from mmrl.engine.guard import NonFiniteError, Row
from mmrl.engine.loop import State, Trainer
from mmrl.engine.memory import GIB, room, text_memory
from mmrl.engine.parallel import Peers, joined
from mmrl.engine.pool import shown_in_turn
from mmrl.engine.precision import check_surroundings, check_text_precision, compute_type, resolved_precision
from mmrl.engine.progress import Progress, Watch, training_log, training_progress, watching
from mmrl.engine.randomness import seeded
from mmrl.engine.schedule import length_of
from mmrl.engine.score import BATCH
from mmrl.engine.turns import Turns, finish
from mmrl.errors import DamagedError, MmrlError, UsageError
from mmrl.files import user_path
from mmrl.methods import FeatureSource, Method, Task
from mmrl.templates import Template, check_template

IMAGES_GIB = 1.0  # of memory for decoded training images
LAST_GOOD = "last_good"  # folder of the adapter that a training stopped by a non-finite number leaves


@dataclass(frozen=True)
class Place:
    """Where a training leaves what it makes, and how it works.

    Attributes:
        out: folder for adapter and checkpoints; None keeps nothing.
        resume: go on with the run that `out` holds, to the same result as without the interruption (bit for bit on a CPU).
        progress: whether a bar is shown on a terminal.
        workers: threads that prepare images; `mmrl.data.usual_workers(dataset.read)` is a good number.
        skip_broken: leave out images that are missing or broken; those to train on are found before the first step.
        processes: how many train on this machine at the same time, and share its memory.
        images_disk_gib: room for decoded training images in a temporary file of `out`, beyond those that are kept in memory, in GiB.
        watch: told of every training step and of every batch of images that is looked at once; what it raises ends the run between two
            of them. For a run of one process.
    """

    out: Path | str | None = None
    resume: bool = False
    progress: bool = True
    workers: int = 0
    skip_broken: bool = False
    processes: int = 1
    images_disk_gib: float = 4.0
    watch: Watch | None = None


@dataclass(frozen=True)
class TrainingData:
    """What a method is trained on.

    Attributes:
        batches: with labels that are positions in `classes`.
        classes: names, C.
        template: prompt, or several to average.
        images, validation, test: numbers of images; of test images a method is shown none, unless it selects as its authors did.
        features: passes of the frozen image tower over them, for methods that work on features.
        about: plain data that identifies the images; a run is resumed only with the same.
        warnings: such as images that were left out.
    """

    batches: Batches
    classes: tuple[str, ...]
    template: Template
    images: int = 0
    validation: int = 0
    test: int = 0
    features: FeatureSource | None = None
    about: Mapping[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    @classmethod
    def of(
        cls,
        clip: Clip,
        dataset: Dataset,
        items: Draw | Sequence[Item],
        config: FitConfig | None = None,
        place: Place | None = None,
        *,
        store: FeatureStore | None = None,
    ) -> TrainingData:
        """Images of `dataset`, restricted to the classes to train on, as `clip` takes them; labels of `items` are its.

        Args:
            store: where frozen features are looked for, and kept.

        Warns:
            BrokenImageWarning: images were left out.

        Raises:
            UsageError: nothing to train on, or a class without an image that can be read.
        """
        config, place = config or FitConfig(), place or Place()
        val: Sequence[Item] = ()
        if isinstance(items, Draw):
            dataset = dataset.restrict(items.classes) if items.classes != "all" and dataset.source is None else dataset
            val, items = items.val, items.train
        found: tuple[str, ...] = ()
        if place.skip_broken:
            everything, (items, broken) = items, readable(dataset, items, place.workers)
            require_every_class(dataset, everything, items)
            found, val = warn_broken(broken, len(everything), of=dataset.name), readable(dataset, val, place.workers)[0]
        batches = TrainBatches(
            dataset, items, preprocess_of(clip, flip=dataset.flip, crop_scale=config.crop_scale), config.batch_size, config.seed,
            config.drop_last, workers=place.workers, memory_gib=room(IMAGES_GIB, place.processes) / GIB, disk_gib=place.images_disk_gib,
            folder=None if place.out is None else user_path(place.out), fast=config.pixels == "fast", device=clip.device,
        )  # fmt: skip
        features = _Features(clip, dataset, {"train": items, "val": val}, config, place.workers, store, place.watch)
        about = {"dataset": dataset.name, "images": len(items), "hash": items_hash(items), "val": items_hash(val), "flip": dataset.flip}
        return cls(batches, dataset.classes, dataset.template, len(items), len(val), features=features, about=about, warnings=found)

    def as_authors(self, place: Place) -> TrainingData:
        """With the images that authors selected on: the whole validation part, or the test images where there is none; and test images.

        Raises:
            UsageError: the data set has no test images of its own.
        """
        if not isinstance(self.features, _Features):
            return self
        dataset = self.features.dataset
        if not dataset.test:
            said = f"selection is 'authors', which looks at test images, and '{dataset.name}' has none of its own"
            raise UsageError(f"{said}; choose selection=validation or fixed, or set some apart (--test, --test-share).")
        parts = {"val": dataset.val or dataset.test, "test": dataset.test}
        if place.skip_broken:
            parts = {part: readable(dataset, items, place.workers)[0] for part, items in parts.items()}
        about = {**self.about, **{part: items_hash(items) for part, items in parts.items()}}
        source = replace(self.features, items={**self.features.items, **parts})
        return replace(self, validation=len(parts["val"]), test=len(parts["test"]), features=source, about=about)


@dataclass(frozen=True)
class _Features:
    """Passes of the frozen image tower over the images of a training; a `FeatureSource`."""

    clip: Clip
    dataset: Dataset
    items: Mapping[str, Sequence[Item]]
    config: FitConfig
    workers: int
    store: FeatureStore | None = None
    watch: Watch | None = None

    def __call__(self, part: str, views: int = 0) -> tuple[Tensor, Tensor]:
        items, device = self.items[part], self.clip.device
        preprocess = preprocess_of(self.clip, flip=self.dataset.flip, crop_scale=self.config.crop_scale)
        varied = (self.config.seed, *preprocess.decides_varied) if views else ()
        entry = self.store.entry(self.clip, self.dataset, items, batch_size=BATCH, views=views, varied=varied) if self.store else None
        features = entry.whole() if entry else None
        if features is None:
            if views:
                batches = view_batches(self.dataset, items, preprocess, BATCH, self.config.seed, views, self.workers, device=device)
            else:
                batches = image_batches(self.dataset.image, items, preprocess, BATCH, self.workers, device=device)
            made, total = list[Tensor](), -(-len(items) // BATCH) * max(1, views)
            for images, _ in batches:
                if self.watch is not None:
                    self.watch(Progress("images", len(made), total))
                made.append(self.clip.encode_image(images, normalise=False))
            features = torch.cat(made)
            _require_finite(features, items)
            if entry:
                entry.keep(features)
        return features.to(device).unflatten(0, (max(1, views), -1)), torch.tensor([item.label for item in items], device=device)


def _require_finite(features: Tensor, items: Sequence[Item]) -> None:
    """Raises MmrlError where features (V * N, embed_dim) of N items are not finite; the first of these images is named. No classifier can
    be fitted to them, and what is said then names no image."""
    bad = (~features.isfinite().all(-1)).unflatten(0, (-1, len(items))).any(0).tolist() if items else []
    if any(bad):
        raise MmrlError(
            f"the frozen features of '{items[bad.index(True)].key}' are not finite ({sum(bad)} of {len(items)} images), so nothing can be "
            "fitted to them. If it is all of them, the weights of the backbone are damaged or too large for its precision."
        )


@dataclass(frozen=True)
class FitResult:
    """A finished training.

    Attributes:
        method: the one given, trained in place.
        data: what it was trained on.
        history: one row a step: step and epoch (from 1), lr, loss, accuracy, and the loss terms; none for a closed form.
        seconds: spent training, over all processes that took part one after another.
        folder: where the adapter is, if anywhere.
        loaded: whether the folder had the finished training, so that nothing was trained now.
    """

    method: Method
    data: TrainingData
    config: FitConfig
    history: list[Row]
    seconds: float
    folder: Path | None
    loaded: bool = False


def items_hash(items: Sequence[Item]) -> str:
    """SHA-256 of keys and labels, in order."""
    return hashlib.sha256(json.dumps([[item.key, item.label] for item in items]).encode()).hexdigest()


def fit(
    method: Method,
    data: TrainingData,
    config: FitConfig | Mapping[str, Any] | None = None,
    place: Place | None = None,
    *,
    peers: Peers | None = None,
) -> FitResult:
    """Train `method` in place, and write the adapter into `place.out`.

    Started by `torchrun` or `accelerate launch`, all processes train this one run: each takes its part of every batch (all of it, where a
    method cannot divide one), and the main one alone writes. The result, the same in all, is that of one process but for rounding.

    Args:
        peers: the processes, where the caller has joined them.

    Raises:
        UsageError: bad options, an image that cannot be read, a method without anything to train, a folder with another run.
        NonFiniteError: the numbers went wrong; the folder keeps the last checkpoint, and `last_good` in it the latest adapter that scores.
        MmrlError: the folder cannot be written. A folder that cannot be used, or an image that cannot be read, in one process is an
            error in all.
    """
    return finish(fitting(method, data, config, place, peers=peers))


def fitting(
    method: Method,
    data: TrainingData,
    config: FitConfig | Mapping[str, Any] | None = None,
    place: Place | None = None,
    *,
    peers: Peers | None = None,
) -> Turns[FitResult]:
    """As `fit`, a step a turn; a method that is not trained by steps takes one turn."""
    place, device = place or Place(), method.clip.device
    config = resolved_precision(make_config(config), device)
    data = replace(data, template=check_template(data.template))
    data = data.as_authors(place) if method.sees_test_images else data
    folder = None if place.out is None else user_path(place.out)
    task = Task(data.classes, data.template, data.images, data.validation, data.test, config.seed, data.features)
    check_surroundings(config, device, folder)
    check_text_precision(config, method)
    if not method.state_dict() and type(method).setup is Method.setup:
        raise UsageError(f"method '{method.name}' has nothing to train; evaluate it, or train another method.")
    with ExitStack() as stack:
        peers = peers or stack.enter_context(joined(device))
        peers.check_devices(device)
        held = None if folder is None else RunFolder(folder, _identity(method, data, config), resume=place.resume)
        before = peers.on_main(lambda: stack.enter_context(held).load() if held else None)
        if before and not before["finished"] and "step" not in before:  # a closed form that was interrupted begins again
            before = None
        stack.enter_context(seeded(config.seed, device))
        began = time.monotonic()
        method.setup(replace(task, features=None) if before else task)
        method.to(device)
        seconds = time.monotonic() - began
        if held and before and before["finished"]:
            load_tensors(method, peers.on_main(lambda: _trained(held.path, method)), where=str(held.path))
            return FitResult(method, data, config, before["history"], before["seconds"], folder, loaded=True)
        _check(method, data.batches)

        def keep(path: Path) -> None:
            peers.on_main(
                lambda: save_adapter(path, method, classes=data.classes, template=data.template, dataset=data.about.get("dataset"))
            )

        history: list[Row] = []
        if method.trainable:
            trainer = stack.enter_context(_trainer(method, data, config, place, peers, held, before))
            try:
                yield from trainer.turns()
            except NonFiniteError as error:
                if folder is None or not error.scores:
                    raise
                keep(folder / LAST_GOOD)  # the latest parameters whose loss was finite, and which score
                raise NonFiniteError(f"{error} They are kept in {folder / LAST_GOOD}.") from error
            history, seconds = trainer.history, seconds + trainer.seconds
        elif held:
            peers.on_main(lambda: held.save({"finished": False}))  # from here on the folder is this run's
        began = time.monotonic()
        method.finish(task)
        seconds += time.monotonic() - began
        if held:
            keep(held.path)
            peers.on_main(lambda: held.save({"finished": True, "history": history, "seconds": seconds}))
        return FitResult(method, data, config, history, seconds, folder)


@contextmanager
def _trainer(
    method: Method, data: TrainingData, config: FitConfig, place: Place, peers: Peers, held: RunFolder | None, before: State | None
) -> Iterator[Trainer]:
    """A trainer that shows and logs its steps and saves checkpoints in the folder `held`, set to the state `before` of it."""
    steps, epochs = length_of(config, len(data.batches))
    done, title = before["step"] if before else 0, f"training {method.name}"
    with ExitStack() as stack:
        bar = training_progress(title, epochs=epochs, steps=steps, done=done, show=place.progress and peers.main)
        shown: list[Callable[[Row], object]] = [stack.enter_context(bar)]
        if config.log and held and peers.main:
            shown.append(stack.enter_context(training_log(held.path, first_step=done)))
        shown += watching(place.watch, steps, epochs)

        def watch(row: Row) -> None:
            for show in shown:
                show(row)

        kept = done

        def save(state: State) -> None:
            nonlocal kept
            if held:
                peers.on_main(lambda: held.save(state))
                kept = state["step"]

        if config.precision != "fp32":  # before memory is asked for: what this takes is not free
            stack.enter_context(method.clip.weights_in(compute_type(config.precision)))
        limit = config.memory_gib or text_memory(method.clip.device, place.processes)
        classes = method.class_list(data.classes, data.template, memory_gib=limit)
        if config.text_precision != "fp32":
            classes = classes.prompts_in(compute_type(config.text_precision))
        shared, folder = _share(method, data.batches, peers), held.path if held else None
        batches = stack.enter_context(shown_in_turn(shared, config, method.clip, folder, place.processes))
        trainer = Trainer(method, batches, classes, config, peers=peers, save=save if held else None, watch=watch)
        if before:
            trainer.restore(before)
        elif held:
            save(trainer.state())  # from here on the folder is this run's, and its initial values are kept
        try:
            yield trainer
        except UsageError:  # such as an image that cannot be read: the corrected command is another run, and may have the folder
            if held and peers.main and not kept:
                held.leave()
            raise


def _share(method: Method, batches: Batches, peers: Peers) -> Batches:
    """The part of `batches` that this process trains `method` on. Raises UsageError if they cannot be divided."""
    if peers.count == 1 or method.whole_batch:
        return batches
    if not isinstance(batches, Shareable):
        raise UsageError(f"{peers.count} processes cannot train on a {type(batches).__name__}: it has no shard(rank, of); start one.")
    return batches.shard(peers.rank, peers.count)


def _trained(folder: Path, method: Method) -> dict[str, Tensor]:
    """The tensors of the adapter in `folder`, on the CPU."""
    try:
        trained, _ = load_adapter(folder, method.clip)
    except MmrlError as error:
        raise DamagedError(str(error)) from error
    return {name: value.cpu() for name, value in trained.state_dict().items()}


def _check(method: Method, batches: Batches) -> None:
    other = [name for name, parameter in method.named_parameters() if parameter.dtype != torch.float32]
    if other:
        raise UsageError(f"trained tensors must be float32, but '{other[0]}' is not; set precision instead of converting the method.")
    if len(batches) == 0:
        raise UsageError("there is not one full batch to train on; lower batch_size or give more images.")


def _identity(method: Method, data: TrainingData, config: FitConfig) -> dict[str, Any]:
    """What a resumed run must share with the interrupted one, as plain data."""
    return {
        "method": method.name,
        "options": method.options.model_dump(mode="json"),
        "backbone": method.clip.identity,  # not its name: the same weights may lie elsewhere
        "classes": list(data.classes),
        "template": data.template,
        "fit": config.identity(),
        "data": dict(data.about),
    }
