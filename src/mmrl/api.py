"""The whole of mmrl in Python: teach, save, load, classify.

import mmrl

clf = mmrl.fit("photos/", method="mmrl", backbone="ViT-B-16-quickgelu/openai", shots=16)
clf.predict("cat.jpg", classes=["cat", "dog", "red panda"])
clf.save_pretrained("my-classifier")
clf = mmrl.from_pretrained("my-classifier")
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmrl import methods
from mmrl.clip import Clip, load_clip
from mmrl.clip.device import AUTO
from mmrl.clip.outside import without_waiting
from mmrl.data import Dataset, Draw, dataset_names, load_dataset, usual_workers
from mmrl.engine import RunResult, load_adapter, prepare, run
from mmrl.errors import MmrlError, Notice, UsageError, first_line
from mmrl.files import user_path
from mmrl.serve.predictor import Classifier
from mmrl.templates import DEFAULT_TEMPLATE, Template


def train(
    data: str | Path | Dataset,
    *,
    root: str | Path | None = None,
    method: str = "mmrl",
    backbone: str | Clip | None = None,
    shots: int = 16,
    classes: str = "all",
    seed: int = 1,
    out: str | Path | None = None,
    resume: bool = False,
    device: str = AUTO,
    template: Template | None = None,
    protocol: str | None = None,
    overrides: Mapping[str, Any] | None = None,
    allow_fewer: bool = False,
    draw: Draw | str | Path | None = None,
    progress: bool = True,
    workers: int | None = None,
    skip_broken: bool = False,
    test: str | Path | None = None,
    test_share: float | None = None,
    source: str = "call",
) -> RunResult:
    """One run: draw shots, train, score on the test images beside zero-shot, write adapter and record into `out`.

    Args:
        data: a name of `mmrl data list`, a folder with one subfolder of images a class, or a file that lists images.
        root: folder with the downloaded datasets; default: the environment variable DATA.
        backbone: a CLIP, or its name for `load_clip`; default: `tiny`, which ships with the package and is for trying.
        shots: training images a class; 0 takes all.
        classes: train on "all" classes or on the "base" half.
        protocol: whose published values to use; default: few-shot for all classes of a known dataset, else base-to-novel.
        overrides: options of the method and of training, by name.
        template: prompt with one `{}`, or several, whose class features are averaged; default: the dataset's.
        draw: the training images: a draw made before, its `draw.json`, or CoOp's `shot_16-seed_1.pkl`; then `shots` does not matter.
        workers: threads that prepare images; default: one a core, at most 8, and none for sets in memory.
        skip_broken: leave out images that are missing or broken, for training and testing; the record names them.
        device: auto (the best there is), cpu, cuda, cuda:1, ...
        test: for a folder or list without test images, a folder of such.
        test_share: for the same, a share of each class's images to set apart to test. Without either, all images that are not drawn to
            train are tested on.

    Warns:
        Notice: `tiny` is used on data of one's own, or how many images test.

    Raises:
        UsageError: unknown names, bad values, bad data, or an `out` that holds another run.
        MmrlError: something failed; what was computed is kept in `out`.
    """
    if isinstance(data, Dataset):
        if test is not None or test_share is not None:
            raise UsageError("test and test_share are for folders and lists; a Dataset has its test images, or divided() sets some apart.")
        dataset = data
    else:
        dataset = load_dataset(str(data), root=root, test=test, test_share=test_share)
    workers = usual_workers(dataset.read) if workers is None else workers
    published = classes == "all" and dataset.name in dataset_names()
    chosen = protocol or ("few-shot" if published else "base-to-novel")
    ready = prepare(
        method, dataset, shots=shots, classes=classes, seed=seed, protocol=chosen,
        overrides=overrides, allow_fewer=allow_fewer, source=source, skip_broken=skip_broken, workers=workers, draw=draw,
    )  # fmt: skip
    if backbone is None and dataset.name not in dataset_names():
        warnings.warn(TINY_NOTE, Notice, stacklevel=2)
    clip = backbone if isinstance(backbone, Clip) else load_clip(backbone or "tiny", device=device)
    built = methods.build(method, clip, ready.resolved.method, seed=seed)
    return run(
        built, dataset, ready.draw, ready.config, out=out, resume=resume, progress=progress, protocol=chosen,
        options=ready.resolved.to_json(), template=template, workers=workers, skip_broken=skip_broken,
    )  # fmt: skip


TINY_NOTE = (
    "no backbone was named, so the embedded 'tiny' is used, which is for trying and knows little of photographs. For a real CLIP name "
    "'ViT-B-16-quickgelu/openai': it is downloaded once, about 600 MB."
)


def fit(data: str | Path | Dataset, **options: Any) -> Classifier:
    """Teach a classifier the classes of `data` and give it back; arguments as those of `train`, options of method and training by name.

    Example:
        `mmrl.fit("photos/", method="mmrlpp", backbone="tiny", shots=8, epochs=20, lam=0.5)`

    Raises:
        as `train`.
    """
    own = {name: options.pop(name) for name in list(options) if name in _TRAIN_ARGUMENTS}
    overrides = {**(own.pop("overrides", None) or {}), **options}
    result = train(data, overrides=overrides, **own)
    fitted = result.fitted
    return Classifier(fitted.method, trained=fitted.classes, template=fitted.template, trained_on=result.record.dataset)


_TRAIN_ARGUMENTS = set(train.__kwdefaults__ or {})


def from_pretrained(adapter: str | Path, *, backbone: str | Clip | None = None, device: str = AUTO) -> Classifier:
    """The classifier saved in a folder, or on a model hub under `ORG/NAME`.

    Args:
        backbone: another name or copy of the same weights; default: the one the adapter names.
        device: auto (the best there is), cpu, cuda, cuda:1, ...

    Raises:
        UsageError: no adapter there, or another backbone than it was made for.
        MmrlError: the files are damaged, or cannot be fetched.
    """
    folder = user_path(adapter)
    if not folder.exists():
        folder = _from_hub(str(adapter))
    clip = load_clip(backbone, device=device) if isinstance(backbone, str) else backbone
    method, config = load_adapter(folder, clip, device=device)
    return Classifier(method, trained=config.class_names, template=config.template, trained_on=config.dataset)


def _from_hub(name: str) -> Path:
    """Download an adapter; only its three files, none of which is code."""
    parts = name.split("/")
    if len(parts) != 2 or not all(parts) or name.startswith((".", "~")):
        raise UsageError(f"no adapter in '{name}': it is neither a folder that exists nor a hub name ORG/NAME.")
    from huggingface_hub import snapshot_download

    try:
        with without_waiting():
            return Path(snapshot_download(name, allow_patterns=["adapter_model.safetensors", "adapter_config.json", "README.md"]))
    except Exception as error:
        raise MmrlError(f"'{name}' is no folder here, and cannot be fetched from the hub: {first_line(error)}") from error


def zero_shot(backbone: str | Clip = "tiny", *, template: Template = DEFAULT_TEMPLATE, device: str = AUTO) -> Classifier:
    """The frozen CLIP as a classifier: give `predict` the class names."""
    clip = backbone if isinstance(backbone, Clip) else load_clip(backbone, device=device)
    return Classifier(methods.build("zero-shot", clip), template=template)
