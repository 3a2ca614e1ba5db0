"""Training a method on a few images: `fit` from a data set, `train` from batches."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmrl.clip import ClassList
from mmrl.data import Dataset, Draw, Item, TrainBatches, readable, require_every_class, warn_broken
from mmrl.engine.checkpoint import load_adapter, load_tensors, save_adapter
from mmrl.engine.config import FitConfig, make_config
from mmrl.engine.evaluate import preprocess_of
from mmrl.engine.folder import RunFolder
from mmrl.engine.loop import Batches, NonFiniteError, Row, Shareable, State, Trainer
from mmrl.engine.parallel import Peers, joined
from mmrl.engine.precision import accelerator, check_device, check_surroundings, start_log
from mmrl.engine.progress import training_progress
from mmrl.errors import DamagedError, MmrlError, UsageError
from mmrl.files import user_path
from mmrl.methods import Method
from mmrl.templates import Template, check_template

LAST_GOOD = "last_good"  # folder of the adapter that a training stopped by a non-finite number leaves


@dataclass(frozen=True)
class FitResult:
    """A finished training.

    Attributes:
        method: the one given, trained in place.
        classes: names trained on.
        history: one row a step: step and epoch (from 1), lr, loss, accuracy, and the loss terms.
        seconds: spent training, over all processes that took part one after another.
        folder: where the adapter is, if anywhere.
        processes: that trained it together.
        warnings: what the user should know: the images left out.
        loaded: whether the folder had the finished training, so that nothing was trained now.
    """

    method: Method
    classes: tuple[str, ...]
    template: Template
    config: FitConfig
    history: list[Row]
    seconds: float
    folder: Path | None
    processes: int = 1
    warnings: tuple[str, ...] = ()
    loaded: bool = False


def fit(
    method: Method,
    dataset: Dataset,
    items: Sequence[Item] | Draw,
    config: FitConfig | Mapping[str, Any] | None = None,
    *,
    out: Path | str | None = None,
    resume: bool = False,
    progress: bool = True,
    template: Template | None = None,
    workers: int = 0,
    skip_broken: bool = False,
) -> FitResult:
    """Train `method` in place on images of `dataset`, and write the adapter into `out`.

    Args:
        dataset: restricted to the classes to train on; labels of `items` are its.
        items: training images, or a draw of them.
        out: folder for adapter and checkpoints; None keeps nothing.
        resume: go on with the run that `out` holds, to the same result as without the interruption (bit for bit on a CPU).
        template: prompt, or several to average; default: the data set's.
        workers: threads that prepare images; `mmrl.data.usual_workers(dataset.read)` is a good number.
        skip_broken: train without images that are missing or broken; they are found before the first step.

    Warns:
        BrokenImageWarning: images were left out.

    Raises:
        UsageError: bad options, an image that cannot be read, a method without anything to train, a folder with another run.
        NonFiniteError: the numbers went wrong; `out` keeps the last checkpoint, and `out/last_good` the latest adapter that scores.
        MmrlError: `out` cannot be written.
    """
    config = make_config(config)
    if isinstance(items, Draw):
        if items.classes != "all" and dataset.source is None:
            dataset = dataset.restrict(items.classes)
        items = items.train
    found: tuple[str, ...] = ()
    if skip_broken:
        everything, (items, broken) = items, readable(dataset, items, workers)
        require_every_class(dataset, everything, items)
        found = warn_broken(broken, len(everything), of=dataset.name)
    preprocess = preprocess_of(method.clip, flip=dataset.flip)
    batches = TrainBatches(dataset, items, preprocess, config.batch_size, config.seed, workers=workers)
    used = template or dataset.template
    data = {"dataset": dataset.name, "images": len(items), "hash": items_hash(items), "flip": dataset.flip}
    fitted = train(method, batches, dataset.classes, config, template=used, data=data, out=out, resume=resume, progress=progress)
    return replace(fitted, warnings=found)


def items_hash(items: Sequence[Item]) -> str:
    """SHA-256 of keys and labels, in order."""
    return hashlib.sha256(json.dumps([[item.key, item.label] for item in items]).encode()).hexdigest()


def train(
    method: Method,
    batches: Batches,
    classes: Sequence[str],
    config: FitConfig,
    *,
    template: Template,
    data: Mapping[str, Any] | None = None,
    out: Path | str | None = None,
    resume: bool = False,
    progress: bool = True,
) -> FitResult:
    """Train `method` in place on `batches`, whose labels are positions in `classes`.

    Started by `torchrun` or `accelerate launch`, all processes train this one run: each takes its part of every batch, and the main one
    alone writes. The result, the same in all, is that of one process but for rounding.

    Args:
        data: plain data that identifies the batches; a run is resumed only with the same.

    Raises:
        as `fit`; a folder that cannot be used, or an image that cannot be read, in one process is an error in all.
    """
    _check(method, batches)
    template = check_template(template)
    folder = None if out is None else user_path(out)
    device = method.clip.device
    check_surroundings(config, device, folder)
    prompts = method.class_list(classes, template, memory_gib=config.memory_gib)
    held = None if folder is None else RunFolder(folder, _identity(method, prompts, template, config, data), resume=resume)
    with ExitStack() as stack:
        tools = stack.enter_context(accelerator(config, device, folder))
        peers = stack.enter_context(joined(tools.num_processes))
        check_device(tools, device, peers)
        batches = _share(batches, peers)
        before = peers.on_main(lambda: stack.enter_context(held).load() if held else None)
        if held and before and before["finished"]:
            load_tensors(method, peers.on_main(lambda: _trained(held.path, method)), where=str(held.path))
            history, seconds = before["history"], before["seconds"]
            return FitResult(method, prompts.names, template, config, history, seconds, folder, peers.count, loaded=True)
        step = before["step"] if before else 0
        peers.on_main(lambda: start_log(tools, first_step=step))
        stack.enter_context(_seeded(config.seed, device))
        steps = config.epochs * -(-len(batches) // config.accumulate)
        title = f"training {method.name}"
        show = stack.enter_context(training_progress(title, epochs=config.epochs, steps=steps, done=step, show=progress and peers.main))

        def watch(row: Row) -> None:
            show(row)
            if config.log:
                tools.log({name: value for name, value in row.items() if name != "step"}, step=int(row["step"]))

        def save(state: State) -> None:
            if held:
                peers.on_main(lambda: held.save(state))

        trainer = Trainer(method, batches, prompts, config, tools, peers=peers, save=save if held else None, watch=watch)
        if before:
            trainer.restore(before)
        elif held:
            save(trainer.state())  # from here on the folder is this run's, and its initial values are kept
        trained_on = (data or {}).get("dataset")
        _run(trainer, folder, classes=prompts.names, template=template, dataset=trained_on)
        seconds = trainer.seconds
        if held:
            peers.on_main(lambda: save_adapter(held.path, method, classes=prompts.names, template=template, dataset=trained_on))
            save({"finished": True, "history": trainer.history, "seconds": seconds})
        return FitResult(method, prompts.names, template, config, trainer.history, seconds, folder, peers.count)


def _share(batches: Batches, peers: Peers) -> Batches:
    """The part of `batches` that this process trains on. Raises UsageError if they cannot be divided."""
    if peers.count == 1:
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


def _run(trainer: Trainer, folder: Path | None, **adapter: Any) -> None:
    """Train; where numbers go wrong, leave the latest parameters whose loss was finite, and which score, as an adapter of their own."""
    try:
        trainer.run()
    except NonFiniteError as error:
        if folder is None or not error.scores:
            raise
        place, method = folder / LAST_GOOD, trainer.method
        trainer.peers.on_main(lambda: save_adapter(place, method, **adapter))
        raise NonFiniteError(f"{error} They are kept in {place}.") from error


def _check(method: Method, batches: Batches) -> None:
    if not method.trainable:
        raise UsageError(f"method '{method.name}' has nothing to train; evaluate it, or train another method.")
    other = [name for name, parameter in method.named_parameters() if parameter.dtype != torch.float32]
    if other:
        raise UsageError(f"trained tensors must be float32, but '{other[0]}' is not; set precision instead of converting the method.")
    if len(batches) == 0:
        raise UsageError("there is not one full batch to train on; lower batch_size or give more images.")


def _identity(method: Method, classes: ClassList, template: Template, config: FitConfig, data: Mapping[str, Any] | None) -> dict[str, Any]:
    """What a resumed run must share with the interrupted one, as plain data."""
    return {
        "method": method.name,
        "options": method.options.model_dump(mode="json"),
        "backbone": method.clip.identity,  # not its name: the same weights may lie elsewhere
        "classes": list(classes.names),
        "template": template,
        "fit": config.identity(),
        "data": dict(data or {}),
    }


@contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed torch for a while; the generators are given back as they were."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield
