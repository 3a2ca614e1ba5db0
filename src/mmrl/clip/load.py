"""Finding and loading a CLIP by name."""

from __future__ import annotations

import warnings
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmrl.clip.archive import NAMES, Archive, View, view_of
from mmrl.clip.backbone import Clip
from mmrl.clip.deferred import open_clip
from mmrl.clip.device import AUTO, checked_device
from mmrl.clip.identities import recall, stamp_of
from mmrl.clip.outside import heeded, hub_folder, why_not_fetched, without_waiting
from mmrl.errors import MmrlError, Notice, UsageError, first_line, unknown
from mmrl.files import user_path
from mmrl.pickles import Call

TINY = Path(__file__).parent / "tiny"
_PICKLED = (".pt", ".pth", ".bin")
_FILE_ENDINGS = (*_PICKLED, ".safetensors")
LONGEST_NAME = 1000  # letters of a tensor's name
_EXTRA_KEYS = ("input_resolution", "context_length", "vocab_size", "attn_mask")
NAMES_HELP = "tiny, ARCH/TAG as in 'ViT-B-16-quickgelu/openai', hf-hub:ORG/NAME, local-dir:FOLDER, or an OpenAI .pt or .safetensors file"


def load_clip(name: str = "tiny", *, device: str | torch.device = AUTO) -> Clip:
    """Load a frozen CLIP, in float32.

    Args:
        name: `tiny` (ships with the package), `ARCH/TAG` of open_clip such as `ViT-B-16-quickgelu/openai` (TAG may be a
            checkpoint file), `hf-hub:ORG/NAME`, `local-dir:FOLDER`, or a local file with OpenAI's weights: the published
            JIT archive, a plain state dict, or safetensors. Weights that were trained with QuickGELU get an architecture that
            computes it: `ViT-B-16/openai` is `ViT-B-16-quickgelu/openai`.
        device: auto (the best there is), cpu, cuda, cuda:1, ...; under torchrun or `accelerate launch`, cuda is the GPU of this process.

    Warns:
        Notice: another architecture than named was taken, or open_clip warned of something.

    Raises:
        UsageError: no such model or device, or a file that is no CLIP.
        MmrlError: the weights cannot be fetched or read.
    """
    place = checked_device(device)
    sources = _sources(name)
    before = stamp_of(sources)
    clip = _loaded(name)
    recall(clip, sources, before)
    clip.loadable = name
    return clip.to(place)


def _loaded(name: str) -> Clip:
    if name == "tiny":
        clip = _from_schema(f"local-dir:{TINY}")
        clip.name = "tiny"
    elif name.startswith(("hf-hub:", "local-dir:")):
        clip = _from_schema(name)
    elif name.endswith(_FILE_ENDINGS) and user_path(name).is_file():
        clip = _from_file(user_path(name))
    elif name.endswith(_FILE_ENDINGS) and name.split("/", 1)[0] not in _architectures():
        raise UsageError(f"backbone file not found: {name}. Give {NAMES_HELP}.")
    else:
        clip = _from_open_clip(name)
    return clip


def _sources(name: str) -> list[Path]:
    """Files and folders that decide the weights of `name`: of a model hub's, its folder in the hub's cache. Empty where none is known."""
    schema, _, rest = name.partition(":")
    tag = name.partition("/")[2]
    if name == "tiny":
        return [TINY]
    try:
        if schema == "local-dir" or (name.endswith(_FILE_ENDINGS) and user_path(name).is_file()):
            return [user_path(rest if schema == "local-dir" else name)]
        if schema != "hf-hub" and tag and user_path(tag).is_file():
            return [user_path(tag)]
    except UsageError:
        return []
    hub = hub_name(name)
    return [hub_folder(hub)] if hub else []


def hub_name(name: str) -> str:
    """ORG/NAME of the backbone `name` on a model hub; '' where it has none, or none is known."""
    schema, _, rest = name.partition(":")
    if schema == "hf-hub":
        return rest
    arch, _, tag = name.partition("/")
    return str((open_clip().get_pretrained_cfg(arch, tag) or {}).get("hf_hub", "")).rpartition("/")[0]


def random_clip(arch: str, *, seed: int = 0, **overrides: Any) -> Clip:
    """An untrained CLIP of an open_clip architecture, for benchmarks and tests of shapes.

    Args:
        overrides: replace parts of the configuration, e.g. `vision_cfg={"layers": 2}`.
    """
    config = open_clip().get_model_config(arch)
    if config is None:
        raise unknown("architecture", arch, _architectures())
    for key, value in overrides.items():
        config[key] = {**config[key], **value} if isinstance(value, dict) else value
    state = torch.random.get_rng_state()
    torch.manual_seed(seed)
    model = open_clip().CLIP(**{k: v for k, v in config.items() if k != "custom_text"})
    torch.random.set_rng_state(state)
    return Clip(f"{arch}/random", model, open_clip().SimpleTokenizer(context_length=model.context_length), preprocess=_openai_preprocess())


def outline(name: str, hashes: Mapping[str, str]) -> Clip:
    """The backbone for plans, which need its name, its layers and its identity: without the weights of a named one, which are not fetched.

    One that lies here, in a file, a folder or the package, is loaded.

    Args:
        hashes: identities by name, of backbones that were used before.
    """
    arch, _, tag = name.partition("/")
    if arch not in open_clip().list_models() or tag not in open_clip().list_pretrained_tags_by_model(arch):
        return load_clip(name)
    fit = _computing(arch, tag)
    try:
        clip = random_clip(fit)
    except (TypeError, AttributeError, UsageError):  # towers that open_clip builds in another way
        return load_clip(name)
    clip.name = f"{fit}/{tag}"
    clip.__dict__["identity"] = hashes.get(clip.name, f"unknown weights of {clip.name}")
    return clip


def _architectures() -> list[str]:
    return list(open_clip().list_models())


def _openai_preprocess() -> dict[str, Any]:
    return {"mean": open_clip().OPENAI_DATASET_MEAN, "std": open_clip().OPENAI_DATASET_STD, "interpolation": "bicubic"}


def _finish(name: str, model: torch.nn.Module, tokenizer: Any) -> Clip:
    config = open_clip().get_model_preprocess_cfg(model)
    preprocess = {"mean": config["mean"], "std": config["std"], "interpolation": config.get("interpolation", "bicubic")}
    return Clip(name, model, tokenizer, preprocess=preprocess)


def _from_schema(name: str) -> Clip:
    schema, _, rest = name.partition(":")
    if schema == "local-dir" and not (user_path(rest) / "open_clip_config.json").is_file():
        raise UsageError(
            f"'{rest}' is no open_clip folder: it has no open_clip_config.json. A local-dir: is a folder as open_clip saves it."
        )
    asked = True
    try:
        with heeded(name), without_waiting() as asked:
            where = f"local-dir:{user_path(rest)}" if schema == "local-dir" else name
            model = open_clip().create_model(where, device="cpu")
            tokenizer = open_clip().get_tokenizer(where)
    except Exception as error:
        why = first_line(error) if schema == "local-dir" else why_not_fetched(error, asked=asked)
        raise MmrlError(f"cannot load the backbone '{name}': {why}{_offline_hint(schema)}") from error
    return _finish(name, model, tokenizer)


def _from_open_clip(name: str) -> Clip:
    arch, _, tag = name.partition("/")
    if arch not in open_clip().list_models():
        known = [*_architectures(), "tiny"]
        raise UsageError(f"{str(unknown('backbone', arch, known)).split(' Known:')[0]} Give {NAMES_HELP}.")
    tags = open_clip().list_pretrained_tags_by_model(arch)
    if not tag:
        named = ", ".join(f"{_computing(arch, each)}/{each}" for each in tags)
        raise UsageError(f"backbone '{arch}' needs its weights: {named or 'a checkpoint file'}.")
    is_file = tag not in tags and user_path(tag).is_file()
    if tag not in tags and not is_file:
        raise unknown(f"weights of {arch}", tag, tags)
    fit = arch if is_file else _computing(arch, tag)
    if fit != arch:
        text = f"'{name}' was trained with QuickGELU, which '{fit}' computes and '{arch}' does not: '{fit}/{tag}' is used."
        warnings.warn(text, Notice, stacklevel=3)
    asked = True
    try:
        if is_file and user_path(tag).suffix in _PICKLED:
            _read_torch(user_path(tag))  # open_clip has torch read it, which a crafted one can crash
        with heeded(name), without_waiting() as asked:
            model = open_clip().create_model(fit, pretrained=str(user_path(tag)) if is_file else tag, device="cpu")
            tokenizer = open_clip().get_tokenizer(fit)
    except Exception as error:
        why = first_line(error) if is_file else why_not_fetched(error, asked=asked) + _offline_hint("hub")
        raise MmrlError(f"cannot load the backbone '{name}': {why}") from error
    return _finish(f"{fit}/{tag}", model, tokenizer)


def _computing(arch: str, tag: str) -> str:
    """The architecture that computes what the weights `tag` of `arch` were trained with: its QuickGELU form where they need it."""
    trained_with = open_clip().get_pretrained_cfg(arch, tag).get("quick_gelu", False)
    quick = f"{arch}-quickgelu"
    if trained_with and not (open_clip().get_model_config(arch) or {}).get("quick_gelu", False) and quick in _architectures():
        return quick
    return arch


def _offline_hint(schema: str) -> str:
    if schema == "local-dir":
        return ""
    return ". Weights are downloaded once and then cached; without a network, give a local file or local-dir:FOLDER."


def read_openai_weights(path: Path) -> dict[str, Tensor]:
    """Tensors of an OpenAI CLIP file: JIT archive, plain state dict, or safetensors. Executes nothing in it.

    Raises:
        MmrlError: the file is none of these, or is damaged.
        UsageError: it holds something else than a CLIP.
    """
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            weights: dict[str, Tensor] | None = load_file(path)
        else:
            weights = _read_torch(path)
    except Exception as error:
        raise MmrlError(f"cannot read {path}: {first_line(error)}") from error
    if weights is None:
        raise UsageError(f"{path} is no CLIP: it should hold named tensors only.")
    weights = {k.removeprefix("module."): v for k, v in weights.items() if k.removeprefix("module.") not in _EXTRA_KEYS}
    if "visual.proj" not in weights and "visual.attnpool.positional_embedding" not in weights:
        raise UsageError(f"{path} is no CLIP in OpenAI's layout: it has no 'visual.proj'. An adapter is loaded with from_pretrained.")
    return weights


def _read_torch(path: Path) -> dict[str, Tensor] | None:
    """The named tensors of a state dict, also under "state_dict", or of a TorchScript module; None where there is something else.

    Raises:
        Exception: of some kind; the file is damaged, or not of torch.save since torch 1.6, or holds what no weights need.
    """
    try:
        archive = Archive(path)
    except zipfile.BadZipFile as error:
        raise ValueError("it is cut, or not written by torch.save since torch 1.6; load and save it with a torch of today") from error
    if archive.scripted:  # its classes may have any name; none of their code is looked at
        views: Mapping[Any, View | None] = dict(_of_module(archive.notes()))
    else:
        content = archive.notes(allowed=NAMES)
        content = content.get("state_dict", content) if isinstance(content, dict) else None
        views = {name: view_of(note) for name, note in content.items()} if isinstance(content, dict) else {"": None}
    found = {name: view for name, view in views.items() if view is not None and isinstance(name, str)}
    if len(found) < len(views):
        return None
    archive.check(found.values())
    return {name: archive.read(view) for name, view in found.items()}


def _of_module(module: Any) -> Iterator[tuple[str, View]]:
    """Parameters and buffers of a TorchScript module and of those in it, from the notes on them, named as in its state dict."""
    left, seen = [("", module)], set[int]()
    while left:
        prefix, note = left.pop()
        if len(prefix) > LONGEST_NAME:
            raise ValueError("its modules are nested too deeply")
        if not isinstance(note, Call) or not isinstance(note.state, dict) or id(note) in seen:
            continue
        seen.add(id(note))
        for name, value in note.state.items():
            view = view_of(value)
            if view is not None:
                yield f"{prefix}{name}", view
            else:
                left.append((f"{prefix}{name}.", value))


def _from_file(path: Path) -> Clip:
    build = open_clip().model.build_model_from_openai_state_dict
    weights = read_openai_weights(path)
    try:
        with heeded(str(path)):
            model = build(weights, quick_gelu=True, cast_dtype=torch.float32).float()
        model.load_state_dict(weights)  # again: the builder rounds to half precision, which files in float32 would not survive
    except Exception as error:
        raise UsageError(f"{path} is no CLIP in OpenAI's layout: {first_line(error)}") from error
    tokenizer = open_clip().SimpleTokenizer(context_length=model.context_length)
    return Clip(str(path), model, tokenizer, preprocess=_openai_preprocess())
