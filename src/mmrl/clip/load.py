"""Finding and loading a CLIP by name."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmrl.clip.backbone import Clip
from mmrl.errors import MmrlError, UsageError, unknown

TINY = Path(__file__).parent / "tiny"
_FILE_ENDINGS = (".pt", ".pth", ".bin", ".safetensors")
_EXTRA_KEYS = ("input_resolution", "context_length", "vocab_size", "attn_mask")
NAMES_HELP = "tiny, ARCH/TAG as in 'ViT-B-16-quickgelu/openai', hf-hub:ORG/NAME, local-dir:FOLDER, or an OpenAI .pt or .safetensors file"


@contextmanager
def _quiet() -> Iterator[None]:
    """open_clip logs and warns about what we decide ourselves."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def load_clip(name: str = "tiny", *, device: str | torch.device = "cpu") -> Clip:
    """Load a frozen CLIP, in float32.

    Args:
        name: `tiny` (ships with the package), `ARCH/TAG` of open_clip such as `ViT-B-16-quickgelu/openai` (TAG may be a
            checkpoint file), `hf-hub:ORG/NAME`, `local-dir:FOLDER`, or a local file with OpenAI's weights: the published
            JIT archive, a plain state dict, or safetensors.
        device: cpu, cuda, cuda:1, ...; under torchrun or `accelerate launch`, cuda is the GPU of this process.

    Raises:
        UsageError: no such model or device, or a file that is no CLIP.
        MmrlError: the weights cannot be fetched or read.
    """
    place = checked_device(device)
    if name == "tiny":
        clip = _from_schema(f"local-dir:{TINY}")
        clip.name = "tiny"
    elif name.startswith(("hf-hub:", "local-dir:")):
        clip = _from_schema(name)
    elif name.endswith(_FILE_ENDINGS) and Path(name).expanduser().is_file():
        clip = _from_file(Path(name).expanduser())
    elif name.endswith(_FILE_ENDINGS) and name.split("/", 1)[0] not in _architectures():
        raise UsageError(f"backbone file not found: {name}. Give {NAMES_HELP}.")
    else:
        clip = _from_open_clip(name)
    return clip.to(place)


def checked_device(name: str | torch.device) -> torch.device:
    try:
        device = _own_gpu(torch.device(name))
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        here = [
            kind
            for kind, there in (("cpu", True), ("cuda", torch.cuda.is_available()), ("mps", torch.backends.mps.is_available()))
            if there
        ]
        raise UsageError(f"device '{name}' cannot be used here: {_first_line(error)} Available: {', '.join(here)}.") from error
    return device


def _own_gpu(device: torch.device) -> torch.device:
    """'cuda' in one of several processes that a launcher started is a GPU of its own, the one that accelerate gives it."""
    if device.type != "cuda" or device.index is not None or "LOCAL_RANK" not in os.environ:
        return device
    return torch.device("cuda", int(os.environ["LOCAL_RANK"]) % max(1, torch.cuda.device_count()))


def random_clip(arch: str, *, seed: int = 0, **overrides: Any) -> Clip:
    """An untrained CLIP of an open_clip architecture, for benchmarks and tests of shapes.

    Args:
        overrides: replace parts of the configuration, e.g. `vision_cfg={"layers": 2}`.
    """
    import open_clip

    config = open_clip.get_model_config(arch)
    if config is None:
        raise unknown("architecture", arch, _architectures())
    for key, value in overrides.items():
        config[key] = {**config[key], **value} if isinstance(value, dict) else value
    state = torch.random.get_rng_state()
    torch.manual_seed(seed)
    model = open_clip.CLIP(**{k: v for k, v in config.items() if k != "custom_text"})
    torch.random.set_rng_state(state)
    return Clip(f"{arch}/random", model, open_clip.SimpleTokenizer(context_length=model.context_length), preprocess=_openai_preprocess())


def _architectures() -> list[str]:
    import open_clip

    return list(open_clip.list_models())


def _openai_preprocess() -> dict[str, Any]:
    from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD

    return {"mean": OPENAI_DATASET_MEAN, "std": OPENAI_DATASET_STD, "interpolation": "bicubic"}


def _finish(name: str, model: torch.nn.Module, tokenizer: Any) -> Clip:
    import open_clip

    config = open_clip.get_model_preprocess_cfg(model)
    preprocess = {"mean": config["mean"], "std": config["std"], "interpolation": config.get("interpolation", "bicubic")}
    return Clip(name, model, tokenizer, preprocess=preprocess)


def _from_schema(name: str) -> Clip:
    import open_clip

    schema, _, rest = name.partition(":")
    if schema == "local-dir" and not (Path(rest) / "open_clip_config.json").is_file():
        raise UsageError(
            f"'{rest}' is no open_clip folder: it has no open_clip_config.json. A local-dir: is a folder as open_clip saves it."
        )
    try:
        with _quiet():
            model = open_clip.create_model(name, device="cpu")
            tokenizer = open_clip.get_tokenizer(name)
    except Exception as error:
        raise MmrlError(f"cannot load the backbone '{name}': {_first_line(error)}{_offline_hint(schema)}") from error
    return _finish(name, model, tokenizer)


def _from_open_clip(name: str) -> Clip:
    import open_clip

    arch, _, tag = name.partition("/")
    if arch not in open_clip.list_models():
        known = [*_architectures(), "tiny"]
        raise UsageError(f"{str(unknown('backbone', arch, known)).split(' Known:')[0]} Give {NAMES_HELP}.")
    tags = open_clip.list_pretrained_tags_by_model(arch)
    is_file = bool(tag) and Path(tag).expanduser().is_file()
    if not tag:
        raise UsageError(f"backbone '{arch}' needs its weights: {', '.join(f'{arch}/{t}' for t in tags) or 'a checkpoint file'}.")
    if tag not in tags and not is_file:
        raise unknown(f"weights of {arch}", tag, tags)
    try:
        with _quiet():
            model = open_clip.create_model(arch, pretrained=str(Path(tag).expanduser()) if is_file else tag, device="cpu")
            tokenizer = open_clip.get_tokenizer(arch)
    except Exception as error:
        raise MmrlError(f"cannot load the backbone '{name}': {_first_line(error)}{'' if is_file else _offline_hint('hub')}") from error
    return _finish(name, model, tokenizer)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _offline_hint(schema: str) -> str:
    if schema == "local-dir":
        return ""
    return " (the weights are downloaded once and then cached; without a network, give a local file or local-dir:FOLDER)"


def read_openai_weights(path: Path) -> dict[str, Tensor]:
    """Tensors of an OpenAI CLIP file: JIT archive, plain state dict, or safetensors. Executes nothing in it.

    Raises:
        MmrlError: the file is none of these, or is damaged.
        UsageError: it holds something else than a CLIP.
    """
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            weights: Any = load_file(path)
        else:
            weights = _read_torch(path)
    except Exception as error:
        raise MmrlError(f"cannot read {path}: {_first_line(error)}") from error
    weights = weights.get("state_dict", weights) if isinstance(weights, dict) else weights
    if not isinstance(weights, dict) or not all(isinstance(v, Tensor) for v in weights.values()):
        raise UsageError(f"{path} is no CLIP: it should hold named tensors only.")
    weights = {k.removeprefix("module."): v for k, v in weights.items() if k.removeprefix("module.") not in _EXTRA_KEYS}
    if "visual.proj" not in weights and "visual.attnpool.positional_embedding" not in weights:
        raise UsageError(f"{path} is no CLIP in OpenAI's layout: it has no 'visual.proj'. An adapter is loaded with from_pretrained.")
    return weights


def _read_torch(path: Path) -> Any:
    """A TorchScript archive is read as tensors (its code is never called); anything else through the safe unpickler."""
    with _quiet():
        try:
            return dict(torch.jit.load(path, map_location="cpu").state_dict())
        except RuntimeError:
            return torch.load(path, map_location="cpu", weights_only=True)


def _from_file(path: Path) -> Clip:
    from open_clip import SimpleTokenizer
    from open_clip.model import build_model_from_openai_state_dict

    weights = read_openai_weights(path)
    try:
        with _quiet():
            model = build_model_from_openai_state_dict(weights, quick_gelu=True, cast_dtype=torch.float32).float()
        model.load_state_dict(weights)  # again: the builder rounds to half precision, which files in float32 would not survive
    except Exception as error:
        raise UsageError(f"{path} is no CLIP in OpenAI's layout: {_first_line(error)}") from error
    tokenizer = SimpleTokenizer(context_length=model.context_length)
    return Clip(str(path), model, tokenizer, preprocess=_openai_preprocess())
