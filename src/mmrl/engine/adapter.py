"""Adapters: a folder with the trained tensors, what is needed to use them, and a model card.

`adapter_model.safetensors` holds the method's parameters and persistent buffers alone, `adapter_config.json` an `AdapterConfig`,
`README.md` the card. The configuration names the SHA-256 of the tensor file, so that a file edited, cut or exchanged is noticed, and is
written last.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from mmrl.clip import Clip, load_clip
from mmrl.clip.device import AUTO
from mmrl.clip.load import hub_name
from mmrl.engine.shapes import shapes_of
from mmrl.errors import MmrlError, UsageError
from mmrl.files import encoded, json_text, read_json, read_regular, sweep, user_path, write_bytes, write_together
from mmrl.methods import Method, Task, build, get, make_options, registered
from mmrl.methods.options import option_problem
from mmrl.names import check_names
from mmrl.plugins import VARIABLE, file_of
from mmrl.reports.records import RunRecord
from mmrl.templates import Template, check_template
from mmrl.trust.state import Trust
from mmrl.version import __version__

FORMAT = 3
LARGEST_ADAPTER = 16 * 2**30  # bytes
TENSORS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
CARD = "README.md"


class AdapterConfig(BaseModel):
    """All that is needed to use an adapter besides its tensors and the backbone."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: int = FORMAT
    method: str
    title: str = Field("", description="the method's name in tables")
    plugin: str = Field("", description="name of the plugin file that the method came from; empty for one of a package")
    options: dict[str, Any] = Field(description="of the method")
    backbone: str = Field(description="name for load_clip")
    backbone_hash: str = Field(description="`Clip.identity`: of all that decides a feature of the backbone")
    open_vocabulary: bool = Field(True, description="whether it can classify among classes that it was not trained on")
    class_names: tuple[str, ...] = Field(fail_fast=True, description="classes trained on")
    dataset: str | None = Field(None, description="name of the data set trained on; null where it is not known")
    images: int = Field(0, ge=0, le=10**9, description="number of training images; decides the sizes of methods that keep features of them")
    template: Template = Field(description="prompt, with one {} for the class name; several are averaged")
    version: str = Field(description="of mmrl that wrote it")
    sha256: str = Field(description=f"of {TENSORS}, hex")
    trust: Trust | None = Field(None, description="calibration on held-out images, where there were some")


def save_adapter(
    folder: Path | str,
    method: Method,
    *,
    classes: Sequence[str],
    template: Template,
    dataset: str | None = None,
    record: RunRecord | None = None,
    trust: Trust | None = None,
) -> Path:
    """Write the adapter into `folder`, over an adapter that is there.

    Args:
        classes: names of the classes trained on; may be empty for zero-shot.
        dataset: name of the data set trained on, where it is known: on others, the class token alone is scored.
        record: the run that trained it, for the card.
        trust: its calibration.

    Returns:
        the folder.

    Raises:
        UsageError: bad class names or template, or `folder` holds a README.md of something else.
        MmrlError: it cannot be written.
    """
    from safetensors.torch import save

    folder = user_path(folder)
    if (folder / CARD).exists() and not ((folder / CONFIG).exists() or (folder / TENSORS).exists()):
        raise UsageError(f"{folder} has a {CARD} that no adapter belongs to, and the model card would replace it; choose another folder.")
    names = check_names(classes) if classes or method.state_dict() else ()
    template = check_template(template)
    tensors = {name: value.detach().cpu().contiguous() for name, value in method.state_dict().items()}
    _require_finite(tensors, where="the method")
    sweep(folder)
    content = save(tensors)
    config = AdapterConfig(
        method=method.name,
        title=method.title,
        plugin=file_of(type(method).__module__),
        options=method.options.model_dump(mode="json"),
        backbone=method.clip.name,
        backbone_hash=method.clip.identity,
        open_vocabulary=method.open_vocabulary(method.options),
        class_names=names,
        dataset=dataset,
        images=0 if method.task is None else method.task.images,
        template=template,
        version=__version__,
        sha256=hashlib.sha256(content).hexdigest(),
        trust=trust,
    )
    files = {TENSORS: content, **described(config, record)}
    write_together({folder / name: each for name, each in files.items()})  # the configuration last: it vouches for the tensors
    return folder


def write_trust(folder: Path | str, trust: Trust, record: RunRecord | None = None) -> None:
    """Put a calibration into the adapter in `folder`, in place of one that it has.

    Args:
        record: the run that trained it, for the card.

    Raises:
        as `read_config`; MmrlError: it cannot be written.
    """
    folder = user_path(folder)
    files = described(read_config(folder).model_copy(update={"trust": trust}), record)
    write_together({folder / name: each for name, each in files.items()})


def write_card(folder: Path, config: AdapterConfig, record: RunRecord | None = None) -> None:
    write_bytes(folder / CARD, described(config, record)[CARD])


def described(config: AdapterConfig, record: RunRecord | None = None, *, licence: str = "") -> dict[str, bytes]:
    """The card and the configuration, as files by name.

    Args:
        record: the run that trained it, for the card.
        licence: of the adapter, for the card.
    """
    from mmrl.reports.card import model_card  # here, as is jinja2 in it: reading an adapter needs no card

    plain = config.model_dump(mode="json")
    card = model_card(plain, record, base_model=hub_name(config.backbone), licence=licence)
    return {CARD: encoded(card), CONFIG: encoded(json_text(plain))}


def read_config(folder: Path | str) -> AdapterConfig:
    """The configuration of the adapter in `folder`.

    Raises:
        UsageError: there is no such folder, or no adapter in it.
        MmrlError: the file is damaged, or of a later format.
    """
    folder = user_path(folder)
    path = folder / CONFIG
    if not path.is_file():
        kind = "has no adapter: it lacks" if folder.is_dir() else "is no folder with an adapter: there is no"
        remedy = "Give the folder that `mmrl train --out` or `save_pretrained` wrote."
        if (folder / "training_state.bin").exists():
            remedy = "Its training has not finished; resume it: the same command with --resume, in Python resume=True."
        raise UsageError(f"{folder} {kind} {CONFIG}. {remedy}")
    content = read_json(path, what="adapter configuration")
    version = content.get("format") if isinstance(content, dict) else None
    if isinstance(version, int) and version > FORMAT:
        writer = f"mmrl {content.get('version')}, format {version}; this one reads format {FORMAT}"
        raise MmrlError(f"the adapter in {folder} was written by a later version ({writer}): upgrade mmrl.")
    try:
        config = AdapterConfig.model_validate(content)
        if config.class_names:
            check_names(config.class_names)
        check_template(config.template)
    except ValidationError as error:
        problems = " ".join(option_problem(problem) for problem in error.errors())
        raise MmrlError(f"adapter configuration is damaged: {path}: {problems}") from error
    except UsageError as error:
        raise MmrlError(f"adapter configuration is damaged: {path}: {error}") from error
    return config


def load_adapter(folder: Path | str, clip: Clip | None = None, *, device: str | torch.device = AUTO) -> tuple[Method, AdapterConfig]:
    """The adapter in `folder`, ready for evaluation, and its configuration.

    Args:
        clip: the backbone it was trained on; default: loaded by the name in the configuration.
        device: for the backbone where it is loaded here.

    Raises:
        UsageError: no adapter in `folder`, an unknown method, or another backbone than it was trained on.
        MmrlError: a file is missing, edited, cut, or of a later format, or the backbone cannot be loaded.
    """
    folder = user_path(folder)
    config = read_config(folder)
    _require_known(folder, config)
    tensors = read_tensors(folder, config)
    if clip is None:
        try:
            clip = load_clip(config.backbone, device=device)
        except MmrlError as error:
            raise type(error)(f"{error} The adapter in {folder} needs it.") from error
    if clip.identity != config.backbone_hash:
        raise UsageError(
            f"the adapter in {folder} was made for the backbone '{config.backbone}' (hash {config.backbone_hash}); '{clip.name}' is "
            f"another one (hash {clip.identity}): other weights, layers or preprocessing. Use the one it was made for."
        )
    try:
        made = make_options(get(config.method), config.options)
        task = Task(config.class_names, config.template, config.images) if config.class_names else None
        _require_fit(shapes_of(get(config.method), clip, made, task), tensors, method=config.method, where=str(folder))
        method = build(config.method, clip, made, task=task)
    except UsageError as error:
        raise MmrlError(f"adapter configuration is damaged: {folder / CONFIG}: {error}") from error
    load_tensors(method, tensors, where=str(folder))
    return method.eval(), config


def _require_known(folder: Path, config: AdapterConfig) -> None:
    """Raises UsageError, with the plugin that has it, if the method is not known here."""
    if config.method in registered():
        return
    came = f"it came from the plugin file {config.plugin}" if config.plugin else "it came from a plugin or another package"
    raise UsageError(
        f"the adapter in {folder} is of the method '{config.method}', which is not known here: {came}. Load that: "
        f"--plugin {config.plugin or 'FILE.py'} with any command, or {VARIABLE}={config.plugin or 'FILE.py'} in the environment"
        f"{'.' if config.plugin else ', or install the package.'}"
    )


def read_tensors(folder: Path, config: AdapterConfig) -> dict[str, Tensor]:
    """The tensors that `config` describes. Raises MmrlError where they are missing, others, damaged, or not finite."""
    from safetensors.torch import load

    path = folder / TENSORS
    try:
        content = read_regular(path, what="adapter", most=LARGEST_ADAPTER)
    except UsageError as error:
        raise MmrlError(f"{folder} lacks {TENSORS}, or it cannot be read: {error} Copy the adapter whole again.") from error
    if hashlib.sha256(content).hexdigest() != config.sha256:
        raise MmrlError(f"{path} is not the file that {CONFIG} describes: it was edited, cut or exchanged. Copy the adapter again.")
    try:
        tensors = load(content)
    except Exception as error:
        raise MmrlError(f"{path} is no safetensors file: {error}") from error
    _require_finite(tensors, where=str(path))
    return tensors


def _require_finite(tensors: Mapping[str, Tensor], *, where: str) -> None:
    odd = [name for name, value in tensors.items() if value.is_complex() or (value.is_floating_point() and value.dtype.itemsize < 2)]
    if odd:
        raise MmrlError(f"the tensor '{odd[0]}' of {where} has {tensors[odd[0]].dtype} values, as no adapter's has. Train or import again.")
    bad = [name for name, value in tensors.items() if not bool(value.isfinite().all())]
    if bad:
        raise MmrlError(f"the tensor '{bad[0]}' of {where} has values that are not finite, so it can classify nothing. Train again.")


def _require_fit(own: Mapping[str, tuple[int, ...]] | None, tensors: Mapping[str, Tensor], *, method: str, where: str) -> None:
    if own is None:
        return
    problems = [f"no tensor '{name}'" for name in own if name not in tensors][:1]
    problems += [f"an unknown tensor '{name}'" for name in tensors if name not in own][:1]
    problems += [
        f"'{name}' of shape {tuple(value.shape)} where the options give {own[name]}"
        for name, value in tensors.items()
        if name in own and own[name] != tuple(value.shape)
    ][:1]
    if problems:
        raise MmrlError(f"the tensors in {where} do not fit method '{method}' with its options: {'; '.join(problems)}.")


def load_tensors(method: Method, tensors: Mapping[str, Tensor], *, where: str) -> None:
    """Put `tensors` into `method`: the same names and shapes, or nothing.

    Raises:
        MmrlError: they do not fit; the first of each kind is named.
    """
    own = {name: tuple(value.shape) for name, value in method.state_dict().items()}
    _require_fit(own, tensors, method=method.name, where=where)
    method.load_state_dict(dict(tensors), strict=True)


def same(a: Any, b: Any) -> bool:
    """Whether two pieces of plain data are equal once written as JSON (tuples are lists there)."""
    return json.dumps(a, sort_keys=True) == json.dumps(b, sort_keys=True)
