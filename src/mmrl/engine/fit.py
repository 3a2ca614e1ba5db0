"""Training a method on a few images: `fit` from a data set, `train` from batches."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mmrl.clip import ClassList
from mmrl.data import Dataset, Draw, Item, TrainBatches
from mmrl.engine.checkpoint import load_adapter, load_tensors, save_adapter
from mmrl.engine.config import FitConfig, make_config
from mmrl.engine.evaluate import preprocess_of
from mmrl.engine.folder import RunFolder
from mmrl.engine.loop import Batches, NonFiniteError, Row, Trainer
from mmrl.engine.precision import accelerator, check_surroundings
from mmrl.engine.progress import training_progress
from mmrl.errors import UsageError
from mmrl.methods import Method

LAST_GOOD = "last_good"  # folder of the adapter that a training stopped by a non-finite number leaves


@dataclass(frozen=True)
class FitResult:
    """A finished training.

    Attributes:
        method: the one given, trained in place.
        classes: names trained on.
        history: one row a step: step and epoch (from 1), lr, loss, accuracy, and the loss terms.
        seconds: spent training, over all processes that took part.
        folder: where the adapter is, if anywhere.
    """

    method: Method
    classes: tuple[str, ...]
    template: str
    config: FitConfig
    history: list[Row]
    seconds: float
    folder: Path | None


def fit(
    method: Method,
    dataset: Dataset,
    items: Sequence[Item] | Draw,
    config: FitConfig | Mapping[str, Any] | None = None,
    *,
    out: Path | str | None = None,
    resume: bool = False,
    progress: bool = True,
    template: str | None = None,
    workers: int = 0,
) -> FitResult:
    """Train `method` in place on images of `dataset`, and write the adapter into `out`.

    Args:
        dataset: restricted to the classes to train on; labels of `items` are its.
        items: training images, or a draw of them.
        out: folder for adapter and checkpoints; None keeps nothing.
        resume: go on with the run that `out` holds, to the same result as without the interruption (bit for bit on a CPU).
        template: prompt; default: the data set's.
        workers: threads that prepare images.

    Raises:
        UsageError: bad options, a method without anything to train, a folder with another run.
        NonFiniteError: the numbers went wrong; `out` keeps the last checkpoint, and `out/last_good` an adapter.
        MmrlError: `out` cannot be written.
    """
    config = make_config(config)
    if isinstance(items, Draw):
        if items.classes != "all" and dataset.source is None:
            dataset = dataset.restrict(items.classes)
        items = items.train
    preprocess = preprocess_of(method.clip, flip=dataset.flip)
    batches = TrainBatches(dataset, items, preprocess, config.batch_size, config.seed, workers=workers)
    used = template or dataset.template
    data = {"dataset": dataset.name, "images": len(items), "hash": items_hash(items), "flip": dataset.flip}
    return train(method, batches, dataset.classes, config, template=used, data=data, out=out, resume=resume, progress=progress)


def items_hash(items: Sequence[Item]) -> str:
    """SHA-256 of keys and labels, in order."""
    return hashlib.sha256(json.dumps([[item.key, item.label] for item in items]).encode()).hexdigest()


def train(
    method: Method,
    batches: Batches,
    classes: Sequence[str],
    config: FitConfig,
    *,
    template: str,
    data: Mapping[str, Any] | None = None,
    out: Path | str | None = None,
    resume: bool = False,
    progress: bool = True,
) -> FitResult:
    """Train `method` in place on `batches`, whose labels are positions in `classes`.

    Args:
        data: plain data that identifies the batches; a run is resumed only with the same.

    Raises:
        as `fit`.
    """
    _check(method, batches)
    folder = None if out is None else Path(out).expanduser()
    check_surroundings(config, method.clip.device, folder)
    method.set_text_memory(config.memory_gib)
    prompts = method.class_list(classes, template)
    with ExitStack() as stack:
        held = stack.enter_context(RunFolder(folder, _identity(method, prompts, template, config, data), resume=resume)) if folder else None
        before = held.load() if held else None
        if held and before and before["finished"]:
            trained, _ = load_adapter(held.path, method.clip)
            load_tensors(method, trained.state_dict(), where=str(held.path))
            return FitResult(method, prompts.names, template, config, before["history"], before["seconds"], folder)
        step = before["step"] if before else 0
        tools = stack.enter_context(accelerator(config, method.clip.device, folder, first_step=step))
        stack.enter_context(_seeded(config.seed, method.clip.device))
        per_epoch = -(-len(batches) // config.accumulate)
        show = stack.enter_context(
            training_progress(f"training {method.name}", epochs=config.epochs, steps=config.epochs * per_epoch, done=step, show=progress)
        )

        def watch(row: Row) -> None:
            show(row)
            if config.log:
                tools.log({name: value for name, value in row.items() if name != "step"}, step=int(row["step"]))

        trainer = Trainer(method, batches, prompts, config, tools, save=held.save if held else None, watch=watch)
        if before:
            trainer.restore(before)
        elif held:
            held.save(trainer.state())  # from here on the folder is this run's, and its initial values are kept
        _run(trainer, prompts, template, folder)
        seconds = trainer.seconds
        if held:
            save_adapter(held.path, method, classes=prompts.names, template=template)
            held.save({"finished": True, "history": trainer.history, "seconds": seconds})
        return FitResult(method, prompts.names, template, config, trainer.history, seconds, folder)


def _run(trainer: Trainer, classes: ClassList, template: str, folder: Path | None) -> None:
    """Train; where numbers go wrong, leave the parameters of the last good step as an adapter of their own."""
    try:
        trainer.run()
    except NonFiniteError as error:
        if folder is None:
            raise
        kept = save_adapter(folder / LAST_GOOD, trainer.method, classes=classes.names, template=template)
        raise NonFiniteError(f"{error} They are kept in {kept}.") from error


def _check(method: Method, batches: Batches) -> None:
    if not method.trainable:
        raise UsageError(f"method '{method.name}' has nothing to train; evaluate it, or train another method.")
    other = [name for name, parameter in method.named_parameters() if parameter.dtype != torch.float32]
    if other:
        raise UsageError(f"trained tensors must be float32, but '{other[0]}' is not; set precision instead of converting the method.")
    if len(batches) == 0:
        raise UsageError("there is not one full batch to train on; lower batch_size or give more images.")


def _identity(method: Method, classes: ClassList, template: str, config: FitConfig, data: Mapping[str, Any] | None) -> dict[str, Any]:
    """What a resumed run must share with the interrupted one, as plain data."""
    return {
        "method": method.name,
        "options": method.options.model_dump(mode="json"),
        "backbone": {"name": method.clip.name, "fingerprint": method.clip.fingerprint},
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

